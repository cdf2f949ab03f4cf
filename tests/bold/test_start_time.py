"""The clock of a series: what its sidecar says of it reaches the store, its copies, and the fit."""

import json
import math
from fractions import Fraction
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nilearn.interfaces.bids.query import infer_slice_timing_start_time_from_dataset

from vidbrain.bold.bids import find_runs
from vidbrain.bold.checks import reference_of
from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.export import export_runs
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.parcels.placement import add_parcels
from vidbrain.bold.parcels.series import write_parcel_store
from vidbrain.bold.store import open_bold
from vidbrain.encoding.prepare import prepare
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, BoldError, EncodingError, ResumeError
from vidbrain.testing.brains import ToyFeatures

TR_S, N_TRS, SHAPE = "1.49", 40, (4, 3, 3)
RUNS = ("sub-01_task-x_run-1", "sub-01_task-x_run-2", "sub-01_task-x_run-3")
CONFIG = IngestConfig(clean=CleanConfig(confounds="none", high_pass="none"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three runs as fMRIPrep leaves them, without confounds."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "bids" / "derivatives" / "fmriprep" / "sub-01" / "func"
    folder.mkdir(parents=True)
    for run in RUNS:
        image = nibabel.Nifti1Image(rng.integers(400, 900, (*SHAPE, N_TRS)).astype(np.int16), np.eye(4))
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = float(TR_S)
        image.to_filename(folder / f"{run}_space-M_desc-preproc_bold.nii.gz")
        nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)).to_filename(
            folder / f"{run}_space-M_desc-brain_mask.nii.gz"
        )
    return folder.parents[1]


def say(tree: Path, start_s: object, runs=RUNS) -> None:
    """Write sidecars with a `StartTime`; None writes none."""
    for run in runs:
        record = {"RepetitionTime": float(TR_S), "SliceTimingCorrected": start_s is not None}
        record |= {} if start_s is None else {"StartTime": start_s}
        path = tree / "sub-01" / "func" / f"{run}_space-M_desc-preproc_bold.json"
        path.write_text(json.dumps(record))


@pytest.mark.parametrize("start", ["0", "0.715", "0.745", "1.49", "3.725", "-1.49", None])
def test_volumes_stand_for_the_time_that_the_sidecar_says(tree, tmp_path, start):
    say(tree, None if start is None else float(start))
    ingest(tree, tmp_path / "b", CONFIG)
    store = open_bold(tmp_path / "b")
    if start is not None:
        assert infer_slice_timing_start_time_from_dataset(str(tree), []) == float(start)
    first = Fraction(TR_S) / 2 if start is None else Fraction(start)
    expected = [float(first + k * Fraction(TR_S)) for k in range(N_TRS)]
    for run in store.runs:
        data = store.open(run)
        np.testing.assert_allclose(data["time_s"], expected, rtol=0, atol=1e-9)
        assert data.attrs["slice_time_ref"] == pytest.approx(float(first / Fraction(TR_S)))
    # Parcels and files that go out again keep the clock.
    add_parcels(store, "own", n=3)
    write_parcel_store(open_bold(tmp_path / "b"), tmp_path / "p")
    np.testing.assert_array_equal(open_bold(tmp_path / "p").open(RUNS[0])["time_s"], data["time_s"])
    (out,) = export_runs(store, tmp_path / "out", [RUNS[0]])
    said = json.loads(Path(str(out).removesuffix(".nii.gz") + ".json").read_text())
    assert said["StartTime"] == pytest.approx(expected[0])


def test_a_clock_that_changed_is_another_input(tree, tmp_path):
    say(tree, 0.5)
    ingest(tree, tmp_path / "b", CONFIG)
    ingest(tree, tmp_path / "b", CONFIG)
    say(tree, 0.745, RUNS[1:2])
    with pytest.raises(ResumeError, match="run-2 was"):
        ingest(tree, tmp_path / "b", CONFIG)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("0.745", "StartTime of the sidecar is '0.745', not a number of seconds"),
        (True, "StartTime of the sidecar is True"),
        (math.nan, "StartTime of the sidecar is nan"),
        (745, r"StartTime of the sidecar is 745 s, the run has 59\.6 s"),
        (7.6, r"7\.6 s, the run has 59\.6 s: more than 7\.45 s cannot lie before the first volume"),
    ],
)
def test_a_clock_that_cannot_be_is_refused_before_work(tree, tmp_path, wrong, message):
    say(tree, wrong, RUNS[:1])
    with pytest.raises(BoldError, match=message):
        ingest(tree, tmp_path / "b", CONFIG)
    assert not (tmp_path / "b").exists()


def test_a_long_run_does_not_hide_milliseconds(tree):
    say(tree, 745)
    files = find_runs(tree)[0]
    with pytest.raises(BoldError, match=r"more than 60 s cannot lie before") as caught:
        reference_of(files, 600, float(TR_S))
    assert "milliseconds" in str(caught.value)
    say(tree, 60)
    assert reference_of(files, 600, float(TR_S)) == pytest.approx(60 / float(TR_S))


def test_volumes_that_were_taken_away_at_the_begin_do_not_make_a_series_short(tree, tmp_path):
    """40 volumes, of which the first was the third that was scanned, reach to the end of the 42nd."""
    raw = tree.parents[1] / "sub-01" / "func"
    raw.mkdir(parents=True)
    (raw / f"{RUNS[0]}_events.tsv").write_text("onset\tduration\n1\t61.5\n")
    with pytest.raises(BoldError, match=r"40 volumes \(59\.6 s\), events end at 62\.5 s"):
        ingest(tree, tmp_path / "b", CONFIG)
    say(tree, 2.5 * float(TR_S))
    ingest(tree, tmp_path / "b", CONFIG)
    (raw / f"{RUNS[0]}_events.tsv").write_text("onset\tduration\n1\t61.6\n")
    with pytest.raises(BoldError, match=r"40 volumes \(62\.6 s\), events end at 62\.6 s"):
        ingest(tree, tmp_path / "c", CONFIG)


def features_of(reference: float, n_rows: int) -> ToyFeatures:
    """Features whose rows stand for ``(k + reference) TR``; each row differs from every other."""

    class Clocked(ToyFeatures):
        def read(self, layer, run):
            data = super().read(layer, run)
            return data.assign_coords(time_s=data["time_s"] + (reference - 0.5) * self.tr_s)

    rows = np.random.default_rng(1).normal(size=(n_rows, 2)).astype(np.float32)
    return Clocked({"toy": dict.fromkeys(RUNS, rows)}, tr_s=float(TR_S))


@pytest.mark.parametrize(("start_trs", "reference"), [(2.5, 0.5), (2.25, 0.25), (-1.0, 0.0), (1.0, 0.0), (0.5, 0.5)])
def test_features_meet_the_volumes_that_stand_for_their_time(tree, tmp_path, start_trs, reference):
    say(tree, start_trs * float(TR_S))
    ingest(tree, tmp_path / "b", CONFIG)
    n_rows, delay = 35, 2
    features = features_of(reference, n_rows)
    config = EncodeConfig(delays=(delay,), n_permutations=0, clean=False)
    found = prepare(features, open_bold(tmp_path / "b"), config).design
    # Volume k stands for (start + k) TR, row j for (reference + j) TR. No video before the BOLD's first volume.
    row_of = {k: round(start_trs + k - reference) for k in range(N_TRS)}
    usable = [k for k in range(N_TRS) if k >= delay and 0 <= row_of[k - delay] < n_rows]
    for run in range(3):
        mine = found.run == run
        assert found.tr[mine].tolist() == usable
        place = run * N_TRS + np.array(usable) - delay
        expected = features.values["toy"][RUNS[run]][[row_of[k - delay] for k in usable]]
        for column in range(2):  # the design shifts and scales its columns
            assert np.corrcoef(found.features[place, column], expected[:, column])[0, 1] > 1 - 1e-6


def test_times_less_than_a_volume_apart_are_refused_with_the_way_out(tree, tmp_path):
    say(tree, 2.25 * float(TR_S))
    ingest(tree, tmp_path / "b", CONFIG)
    with pytest.raises(AlignmentError, match=r"0\.37\d s") as caught:
        prepare(features_of(0.5, 30), open_bold(tmp_path / "b"), EncodeConfig(n_permutations=0))
    assert "--slice-time-ref 0.25" in str(caught.value)
    prepare(features_of(0.25, 30), open_bold(tmp_path / "b"), EncodeConfig(n_permutations=0))
    with pytest.raises(EncodingError, match="keeps 0 of 40 TRs"):
        prepare(features_of(0.25, 2), open_bold(tmp_path / "b"), EncodeConfig(n_permutations=0))
