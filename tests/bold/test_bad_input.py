"""Bad input: each a clear error before work starts where headers show it, or a stated and recorded policy."""

import json
import shutil
from pathlib import Path

import nibabel
import nilearn.interfaces.fmriprep as fmriprep
import numpy as np
import pandas as pd
import pytest
from nilearn.signal import clean

from vidbrain.bold.bids import find_runs
from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.raw import raw_runs
from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run
from vidbrain.errors import BoldError, StorageError

AS_IT_IS = CleanConfig(confounds="none", high_pass="none", detrend=False, standardize="none")
SHAPE, N_TRS = (5, 6, 4), 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small run as fMRIPrep leaves it; values differ in every voxel and volume."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "bids" / "derivatives" / "fmriprep" / "sub-01" / "func"
    folder.mkdir(parents=True)
    table = pd.DataFrame(
        {
            f"{name}{end}": rng.standard_normal(N_TRS)
            for name in ("csf", "white_matter", "trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
            for end in ("", "_derivative1", "_power2", "_derivative1_power2")
        }
    )
    for k in range(2):
        table[f"cosine{k:02d}"] = np.cos(np.pi * (np.arange(N_TRS) + 0.5) * (k + 1) / N_TRS)
    table.to_csv(folder / "sub-01_task-x_run-1_desc-confounds_timeseries.tsv", sep="\t", index=False)
    (folder / "sub-01_task-x_run-1_desc-confounds_timeseries.json").write_text("{}")
    nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)).to_filename(
        folder / "sub-01_task-x_run-1_space-M_desc-brain_mask.nii.gz"
    )
    write_series(folder, rng.integers(400, 900, (*SHAPE, N_TRS)).astype(np.int16))
    return folder.parents[1]


def write_series(
    folder: Path, values: np.ndarray, *, slope: float = 1.0, inter: float = 0.0, tr_s: float = 2.0
) -> Path:
    path = folder / "sub-01_task-x_run-1_space-M_desc-preproc_bold.nii.gz"
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = tr_s
    image.header.set_slope_inter(slope, inter)
    image.to_filename(path)
    return path


def func(tree: Path) -> Path:
    return tree / "sub-01" / "func"


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "u4"])
def test_scaled_integers_do_not_overflow(tree, tmp_path, dtype):
    edge = np.iinfo(dtype)
    values = np.random.default_rng(1).integers(edge.max - 900, edge.max, (*SHAPE, N_TRS), endpoint=True).astype(dtype)
    values[..., ::2] = edge.min
    path = write_series(func(tree), values, slope=7.5, inter=-1000.0)
    ingest(tree, tmp_path / "b", IngestConfig(clean=AS_IT_IS))
    store = open_bold(tmp_path / "b")
    expected = nibabel.load(path).get_fdata()[tuple(store.ijk.T)].T
    assert np.array_equal(store.read(store.runs[0]), expected.astype(np.float32))


def test_values_that_float32_cannot_hold_are_refused(tree, tmp_path):
    values = np.random.default_rng(1).standard_normal((*SHAPE, N_TRS)) * 1e300
    write_series(func(tree), values)
    with pytest.raises(BoldError, match="do not fit into float32"):
        ingest(tree, tmp_path / "b", IngestConfig(clean=AS_IT_IS))
    assert not (tmp_path / "b" / "info.json").exists()


def test_nan_and_constant_voxels_are_zeros_flagged_and_recorded(tree, tmp_path):
    values = np.random.default_rng(2).standard_normal((*SHAPE, N_TRS)).astype(np.float32)
    values[1, 1, 1, 5] = np.nan
    values[2, 2, 2] = np.inf
    values[3, 3, 3] = 4.0
    write_series(func(tree), values)
    ingest(tree, tmp_path / "b")
    store = open_bold(tmp_path / "b")
    dead = store.ijk[store.dead].tolist()
    assert sorted(dead) == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    assert (store.read(store.runs[0])[:, store.dead] == 0).all()
    assert "kept as zeros, flagged `dead`" in store.info["dead_voxels"]
    assert store.info["runs"][0]["n_dead"] == 3


def test_leading_gaps_of_derivatives_are_filled_as_nilearn_fills_them(tree, tmp_path):
    table_path = func(tree) / "sub-01_task-x_run-1_desc-confounds_timeseries.tsv"
    table = pd.read_csv(table_path, sep="\t")
    table.loc[0, [name for name in table if "derivative1" in name]] = np.nan
    table.to_csv(table_path, sep="\t", index=False, na_rep="n/a")
    ingest(tree, tmp_path / "b")
    store = open_bold(tmp_path / "b")
    path = find_runs(tree)[0].bold
    confounds, _ = fmriprep.load_confounds_strategy(str(path), denoise_strategy="simple")
    series = nibabel.load(path).get_fdata()[tuple(store.ijk.T)].T
    expected = clean(series, confounds=confounds, filter=False, detrend=True, standardize="zscore_sample")
    assert np.abs(store.read(store.runs[0]) - expected).max() < 1e-5


def test_the_clock_of_header_sidecar_and_argument_must_be_one(tree, tmp_path):
    sidecar = func(tree) / "sub-01_task-x_run-1_space-M_desc-preproc_bold.json"
    sidecar.write_text(json.dumps({"RepetitionTime": 2.0}))
    with pytest.raises(BoldError, match=r"tr_s says 1.49 s, the header of .* says 2 s"):
        ingest(tree, tmp_path / "b", IngestConfig(tr_s=1.49))
    sidecar.write_text(json.dumps({"RepetitionTime": 1.49}))
    with pytest.raises(BoldError, match=r"the header of .* says 2 s, the sidecar of .* says 1.49 s"):
        ingest(tree, tmp_path / "b")


def test_fewer_volumes_than_events_are_refused(tree, tmp_path):
    raw = tree.parents[1] / "sub-01" / "func"
    raw.mkdir(parents=True)
    (raw / "sub-01_task-x_run-01_events.tsv").write_text("onset\tduration\n100\t21\n")
    with pytest.raises(BoldError, match=r"60 volumes \(120.0 s\), events end at 121.0 s"):
        ingest(tree, tmp_path / "b")


def test_runs_that_were_scanned_but_not_preprocessed_are_named_and_recorded(tree, tmp_path):
    raw = tree.parents[1]
    for name in (
        "sub-01/func/sub-01_task-x_run-01",
        "sub-01/func/sub-01_task-x_run-02",
        "sub-02/ses-1/func/sub-02_ses-1_task-x",
    ):
        path = raw / f"{name}_bold.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("not/fetched")
    (raw / "sub-01" / "func" / "sub-01_task-x_run-03_bold__dup-01.nii.gz").write_bytes(b"x")
    (raw / "sub-01" / "func" / "sub-01_task-x_run-01_events.tsv").write_text("onset\tduration\n1\t2\n")
    assert [key.label for key in raw_runs(raw)] == [
        "sub-01_task-x_run-1",
        "sub-01_task-x_run-2",
        "sub-02_ses-1_task-x",
    ]
    ingest(tree, tmp_path / "b")
    assert open_bold(tmp_path / "b").info["runs_without_series"] == ["sub-01_task-x_run-2", "sub-02_ses-1_task-x"]
    ingest(tree, tmp_path / "c", IngestConfig(subject="01"))
    assert open_bold(tmp_path / "c").info["runs_without_series"] == ["sub-01_task-x_run-2"]


def test_a_store_of_a_newer_version_is_refused(tree, tmp_path, capsys):
    ingest(tree, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "info.json").read_text())
    (tmp_path / "b" / "info.json").write_text(json.dumps(record | {"format_version": 99}))
    with pytest.raises(StorageError, match="newer version"):
        open_bold(tmp_path / "b")
    assert run(["bold", "ls", str(tmp_path / "b")]) == 1
    assert "update vidbrain" in capsys.readouterr().err


def test_a_truncated_or_flipped_gzip_leaves_no_store(tree, tmp_path):
    path = find_runs(tree)[0].bold
    whole = path.read_bytes()
    for spoilt in (whole[: len(whole) // 2], whole[:-4], whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]):
        path.write_bytes(spoilt)
        with pytest.raises(BoldError, match=r"damaged or cut off"):
            ingest(tree, tmp_path / "b")
        assert not list((tmp_path / "b").glob("sub-*"))
        assert not (tmp_path / "b" / "info.json").exists()


def test_a_lost_chunk_is_named_never_nan(tree, tmp_path, capsys):
    ingest(tree, tmp_path / "b")
    label = "sub-01_task-x_run-1"
    shutil.rmtree(tmp_path / "b" / f"{label}.zarr" / "bold" / "c")
    with pytest.raises(StorageError, match="a part of bold is missing"):
        open_bold(tmp_path / "b").read(label)
    assert run(["bold", "verify", str(tmp_path / "b"), "--json"]) == 1
    out = capsys.readouterr()
    lost, columns = json.loads(out.out)
    assert (lost["part"], lost["whole"], columns["whole"]) == (label, False, True)
    assert lost["where"].endswith(f"{label}.zarr/bold/c/0/0")
    assert "1 of 2 parts are damaged" in out.err
