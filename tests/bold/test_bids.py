import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from vidbrain.bold.bids import find_runs, refuse_missing
from vidbrain.bold.datasets import identity
from vidbrain.bold.raw import events_above, events_end
from vidbrain.errors import BoldError
from vidbrain.records import RunKey

MNI = "space-MNI152NLin2009cAsym"


def put(path: Path, content: bytes = b"x" * 600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_run(root: Path, stem: str, space: str = MNI, confounds: str = "timeseries") -> None:
    folder = root / stem.split("_")[0] / "func"
    put(folder / f"{stem}_{space}_desc-preproc_bold.nii.gz")
    put(folder / f"{stem}_{space}_desc-preproc_bold.json", json.dumps({"RepetitionTime": 1.49}).encode())
    put(folder / f"{stem}_{space}_desc-brain_mask.nii.gz")
    put(folder / f"{stem}_desc-confounds_{confounds}.tsv")


def test_runs_are_found_however_they_are_spelt(tmp_path):
    put_run(tmp_path, "sub-01_ses-001_task-toy_run-1")
    put_run(tmp_path, "sub-01_ses-001_task-toy_run-02")
    put_run(tmp_path, "sub-02_task-toy", confounds="regressors")
    put(tmp_path / "sub-01" / "func" / f"sub-01_ses-001_task-toy_run-1_{MNI}_desc-preproc_bold__dup-01.nii.gz")
    put(tmp_path / "sub-01" / "func" / f"sub-01_ses-001_task-toy_run-1_{MNI}_boldref.nii.gz")
    runs = find_runs(tmp_path)
    assert [files.run for files in runs] == [
        RunKey("01", "001", "toy", 1),
        RunKey("01", "001", "toy", 2),
        RunKey("02", None, "toy", None),
    ]
    assert [files.space for files in runs] == ["MNI152NLin2009cAsym"] * 3
    assert [files.confounds.name[-14:] for files in runs] == ["timeseries.tsv", "timeseries.tsv", "regressors.tsv"]
    assert all(files.mask is not None and files.sidecar_tr_s == 1.49 for files in runs)
    assert [files.run.subject for files in find_runs(tmp_path, subject="02")] == ["02"]


def test_a_space_must_be_chosen_where_there_are_several(tmp_path):
    for space in (MNI, "space-T1w", f"{MNI}_res-2"):
        put_run(tmp_path, "sub-01_task-toy_run-1", space)
    with pytest.raises(BoldError, match="several spaces") as caught:
        find_runs(tmp_path)
    assert "--space" in str(caught.value)
    assert find_runs(tmp_path, space="T1w")[0].bold.name.endswith("space-T1w_desc-preproc_bold.nii.gz")
    assert "res-2" in find_runs(tmp_path, space="MNI152NLin2009cAsym:res-2")[0].bold.name
    with pytest.raises(BoldError, match="no run in space 'T2w'"):
        find_runs(tmp_path, space="T2w")


def test_a_run_that_is_there_twice_is_refused(tmp_path):
    put_run(tmp_path, "sub-01_task-toy_run-1")
    put_run(tmp_path, "sub-01_task-toy_run-01")
    with pytest.raises(BoldError, match="is there twice"):
        find_runs(tmp_path)


def test_missing_pieces_are_named_at_once(tmp_path):
    for run in (1, 2, 3):
        put_run(tmp_path, f"sub-01_task-toy_run-{run}")
    folder = tmp_path / "sub-01" / "func"
    (folder / "sub-01_task-toy_run-1_desc-confounds_timeseries.tsv").unlink()
    (folder / f"sub-01_task-toy_run-3_{MNI}_desc-brain_mask.nii.gz").unlink()
    runs = find_runs(tmp_path)
    with pytest.raises(BoldError, match="2 files are missing") as caught:
        refuse_missing(runs, need_mask=True, need_confounds=True)
    assert "run-1: *_desc-confounds" in str(caught.value)
    assert "run-3: *_desc-brain_mask" in str(caught.value)
    with pytest.raises(BoldError, match="1 files are missing"):
        refuse_missing(runs, need_mask=False, need_confounds=True)


def test_content_that_was_never_fetched_is_named(tmp_path):
    put_run(tmp_path, "sub-01_task-toy_run-1")
    put_run(tmp_path, "sub-01_task-toy_run-2")
    folder = tmp_path / "sub-01" / "func"
    link = folder / f"sub-01_task-toy_run-1_{MNI}_desc-preproc_bold.nii.gz"
    link.unlink()
    link.symlink_to("../.git/annex/objects/aa/bb/none.nii.gz")
    put(folder / f"sub-01_task-toy_run-2_{MNI}_desc-preproc_bold.nii.gz", b"/annex/objects/MD5E-s100--abc.nii.gz\n")
    with pytest.raises(BoldError, match="2 files are names without content") as caught:
        find_runs(tmp_path)
    assert "datalad get" in str(caught.value)


def test_nothing_to_find_is_said(tmp_path):
    with pytest.raises(BoldError, match="no such folder"):
        find_runs(tmp_path / "none")
    with pytest.raises(BoldError, match="no preprocessed BOLD"):
        find_runs(tmp_path)
    put(tmp_path / "sub-01" / "func" / f"sub-01_run-1_{MNI}_desc-preproc_bold.nii.gz")
    with pytest.raises(BoldError, match="names no run"):
        find_runs(tmp_path)


def test_events_end_with_the_last_row_recorded_or_not(tmp_path):
    func = tmp_path / "sub-01" / "ses-1" / "func"
    put(
        func / "sub-01_ses-1_task-toy_run-01_events.tsv",
        b"trial_type\tonset\tduration\tstim_file\ngame\t0.5\t20\ta.bk2\ngame\t30\t12.5\tMissing file\n",
    )
    put(func / "sub-01_ses-1_task-toy_run-01_desc-annotated_events.tsv", b"onset\tduration\n0\t999\n")
    assert events_end(tmp_path) == {RunKey("01", "1", "toy", 1): 42.5}
    derivatives = tmp_path / "derivatives" / "fmriprep"
    derivatives.mkdir(parents=True)
    assert events_above(derivatives) == tmp_path.resolve()
    assert events_above(tmp_path) is None
    put(func / "sub-01_ses-1_task-toy_run-02_events.tsv", b"onset\n1\n")
    with pytest.raises(BoldError, match="cannot be read"):
        events_end(tmp_path)
    with pytest.raises(BoldError, match=r"no \*_events.tsv"):
        events_end(derivatives)


def test_a_packed_file_is_named_by_its_checksum(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, size=(40, 40, 20, 6)).astype(np.int16)
    names = []
    for change in (0, 1):
        values[20, 20, 10, 3] += change
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "s.nii.gz")
        names.append(identity(tmp_path / "s.nii.gz"))
    assert names[0] != names[1]


def test_a_large_file_is_named_by_blocks_that_lie_evenly(tmp_path):
    path = put(tmp_path / "large", bytes(1000))
    names = set()
    for place in (None, 5, 107, 207, 501, 998):
        path.write_bytes(bytes(1 if k == place else 0 for k in range(1000)))
        names.add(identity(path, whole_bytes=500, block_bytes=10, n_between=9))
    assert len(names) == 6


def test_volumes_surfaces_and_grayordinates_lie_side_by_side(tmp_path):
    put_run(tmp_path, "sub-01_ses-2_task-toy_run-1")
    folder = tmp_path / "sub-01" / "func"
    stem = "sub-01_ses-2_task-toy_run-1"
    for hemisphere in "LR":
        put(folder / f"{stem}_hemi-{hemisphere}_space-fsaverage5_bold.func.gii")
        put(folder / f"{stem}_space-fsaverage6_hemi-{hemisphere}.func.gii")  # fMRIPrep before 21.0
    put(folder / f"{stem}_space-fsLR_den-91k_bold.dtseries.nii")
    put(folder / f"{stem}_space-fsLR_den-91k_bold.json", b'{"RepetitionTime": 1.49}')
    put(folder / f"{stem}_bold__dup-01.dtseries.nii")
    with pytest.raises(BoldError, match="MNI152NLin2009cAsym, fsLR:den-91k, fsaverage5, fsaverage6"):
        find_runs(tmp_path)
    for space in ("fsaverage5", "fsaverage6"):
        (surface,) = find_runs(tmp_path, space=space)
        assert (surface.form, surface.run) == ("surface", RunKey("01", "2", "toy", 1))
        assert "hemi-L" in surface.bold.name
        assert "hemi-R" in surface.right.name
        assert surface.confounds.name == f"{stem}_desc-confounds_timeseries.tsv"
        assert surface.mask is None
        refuse_missing([surface], need_mask=True, need_confounds=True)
    (dense,) = find_runs(tmp_path, space="fsLR:den-91k")
    assert (dense.form, dense.sidecar_tr_s) == ("cifti", 1.49)
    assert dense.confounds == surface.confounds


def test_a_raw_tree_is_taken_where_nothing_is_preprocessed(tmp_path):
    put(tmp_path / "sub-01" / "ses-1" / "func" / "sub-01_ses-1_task-toy_run-01_bold.nii.gz")
    put(tmp_path / "sub-01" / "ses-1" / "func" / "sub-01_ses-1_task-toy_run-01_sbref.nii.gz")
    put(tmp_path / "sub-01" / "ses-1" / "func" / "sub-01_ses-1_task-toy_run-01_bold.json", b'{"RepetitionTime": 2}')
    (files,) = find_runs(tmp_path)
    assert (files.run, files.space, files.sidecar_tr_s) == (RunKey("01", "1", "toy", 1), "func", 2.0)
    put_run(tmp_path, "sub-02_task-toy")
    assert [found.run.subject for found in find_runs(tmp_path)] == ["02"]


def test_series_that_aroma_cleaned_are_asked_for_by_name(tmp_path):
    put_run(tmp_path, "sub-01_task-toy_run-1")
    with pytest.raises(BoldError, match=r"no \*_desc-smoothAROMAnonaggr_bold"):
        find_runs(tmp_path, desc="smoothAROMAnonaggr")
    put(tmp_path / "sub-01" / "func" / f"sub-01_task-toy_run-1_{MNI}_desc-smoothAROMAnonaggr_bold.nii.gz")
    (files,) = find_runs(tmp_path, desc="smoothAROMAnonaggr")
    assert files.bold.name.endswith("_desc-smoothAROMAnonaggr_bold.nii.gz")
    assert files.mask.name == f"sub-01_task-toy_run-1_{MNI}_desc-brain_mask.nii.gz"
    assert len(find_runs(tmp_path)) == 1
