import pickle

import pytest

from vidbrain.errors import ConfigError, ShardError
from vidbrain.records import ClipSpec, RunKey, World


def test_raw_and_derivative_names_mean_the_same_run():
    raw = RunKey.parse("sub-99/ses-001/func/sub-99_ses-001_task-shinobi_run-01_bold.nii.gz")
    derived = RunKey.parse("sub-99_ses-001_task-shinobi_run-1_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")
    assert raw == derived
    assert raw.label == "sub-99_ses-001_task-shinobi_run-1"
    assert RunKey.parse("sub-1_task-x_bold.nii").label == "sub-1_task-x"


@pytest.mark.parametrize("name", ["bold.nii.gz", "sub-01_bold.nii.gz", "sub-01_task-x_run-one_bold.nii"])
def test_names_without_entities_are_refused(name):
    with pytest.raises(ConfigError):
        RunKey.parse(name)


def test_span_counts_first_to_last_frame():
    assert ClipSpec(16, 4).span == 61
    assert ClipSpec(1, 4).span == 1


def test_errors_survive_the_way_home_from_a_worker():
    error = ShardError("broken", where="x.tar", hint="verify")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (ShardError, str(error))


def test_a_rank_outside_its_world_is_refused():
    with pytest.raises(ConfigError):
        World(2, 2)
