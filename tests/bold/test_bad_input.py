"""Bad input: each a clear error before work starts where headers show it, or a stated and recorded policy."""

import gzip
import json
import re
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
from vidbrain.bold.export import export_runs
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.raw import raw_runs
from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run
from vidbrain.errors import BoldError, ConfigError, ResumeError, StorageError

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


@pytest.mark.parametrize("tr_s", [0.0, -2.0, 0.01, 61.0, np.nan, np.inf])
def test_an_impossible_repetition_time_is_refused_before_work(tree, tmp_path, tr_s):
    with pytest.raises(ConfigError, match=r"tr_s must lie between 0\.05 and 60 s"):
        ingest(tree, tmp_path / "b", IngestConfig(tr_s=tr_s))
    if np.isfinite(tr_s):
        sidecar = func(tree) / "sub-01_task-x_run-1_space-M_desc-preproc_bold.json"
        sidecar.write_text(json.dumps({"RepetitionTime": tr_s}))
        with pytest.raises(BoldError, match=r"cannot be \S+ s, as the sidecar of"):
            ingest(tree, tmp_path / "b")
        sidecar.unlink()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("zoom", "unit", "said"),
    [
        (150.0, "sec", "150"),
        (1.49, "msec", "0.00149"),
        (1e30, "sec", "1e+27"),
        (-2.0, "sec", "-2"),
        (np.nan, "sec", "nan"),
        (np.inf, "sec", "inf"),
    ],
)
def test_an_impossible_repetition_time_of_a_header_is_refused(tree, tmp_path, zoom, unit, said):
    image = nibabel.Nifti1Image(np.ones((*SHAPE, N_TRS), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = zoom
    path = write_series(func(tree), np.ones((*SHAPE, N_TRS), np.int16))
    # Byte by byte: nibabel mends what it writes.
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[:348] = image.header.binaryblock
    content[108:112], content[344:348] = np.float32(352).tobytes(), b"n+1\0"
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(BoldError, match=f"cannot be {re.escape(said)} s, as the header of"):
        ingest(tree, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_sidecars_above_are_inherited_and_the_nearest_wins(tree, tmp_path):
    (tree / "task-x_bold.json").write_text(json.dumps({"RepetitionTime": 3.0, "StartTime": 0.5}))
    (tree / "task-y_bold.json").write_text(json.dumps({"RepetitionTime": 9.0}))
    assert find_runs(tree)[0].sidecar_tr_s == 3.0
    with pytest.raises(BoldError, match=r"the header of .* says 2 s, the sidecar of .* says 3 s"):
        ingest(tree, tmp_path / "b")
    (tree / "sub-01" / "sub-01_task-x_bold.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    assert find_runs(tree)[0].sidecar_tr_s == 2.5
    sidecar = func(tree) / "sub-01_task-x_run-1_space-M_desc-preproc_bold.json"
    sidecar.write_text(json.dumps({"RepetitionTime": 2.0}), encoding="utf-8-sig")
    files = find_runs(tree)[0]
    assert (files.sidecar_tr_s, files.sidecar_start_s) == (2.0, 0.5)
    ingest(tree, tmp_path / "b")


def test_one_file_is_taken_with_what_belongs_to_it(tree, tmp_path):
    files = find_runs(tree)[0]
    sidecar = files.bold.with_name(files.bold.name.replace(".nii.gz", ".json"))
    sidecar.write_text(json.dumps({"RepetitionTime": 1.49}))
    with pytest.raises(BoldError, match="repetition times disagree"):
        ingest(files.bold, tmp_path / "b")
    sidecar.write_text(json.dumps({"RepetitionTime": 2.0, "StartTime": 0.5}))
    raw = tree.parents[1] / "sub-01" / "func"
    raw.mkdir(parents=True)
    (raw / "sub-01_task-x_run-01_events.tsv").write_text("onset\tduration\n100\t21\n")
    with pytest.raises(BoldError, match="shorter than their events"):
        ingest(files.bold, tmp_path / "b")
    shutil.rmtree(raw)
    ingest(files.bold, tmp_path / "b")
    ingest(tree, tmp_path / "c")
    one, all_runs = open_bold(tmp_path / "b"), open_bold(tmp_path / "c")
    assert one.info["fingerprint"] == all_runs.info["fingerprint"]
    values = np.random.default_rng(5).standard_normal((N_TRS, 6))
    np.save(tmp_path / "sub-01_task-x.npy", values)
    (tmp_path / "sub-01_task-x.json").write_text(json.dumps({"RepetitionTime": 1.5}))
    ingest(tmp_path / "sub-01_task-x.npy", tmp_path / "d", IngestConfig(clean=AS_IT_IS))
    assert open_bold(tmp_path / "d").tr_s == 1.5


def test_what_was_exported_can_be_ingested(tree, tmp_path):
    ingest(tree, tmp_path / "b")
    store = open_bold(tmp_path / "b")
    export_runs(store, tmp_path / "out")
    ingest(tmp_path / "out", tmp_path / "c", IngestConfig(clean=AS_IT_IS), mask=find_runs(tree)[0].mask)
    again = open_bold(tmp_path / "c")
    assert np.array_equal(again.read(again.runs[0]), store.read(store.runs[0]))


def test_a_change_in_the_middle_of_an_unpacked_series_is_another_input(tree, tmp_path):
    rng = np.random.default_rng(4)
    shape = (16, 16, 16, N_TRS)
    values = rng.integers(400, 900, shape).astype(np.int16)
    values[:2], values[-2:] = 0, 0
    packed = write_series(func(tree), values)
    nibabel.Nifti1Image(np.ones(shape[:3], np.uint8), np.eye(4)).to_filename(
        func(tree) / "sub-01_task-x_run-1_space-M_desc-brain_mask.nii.gz"
    )
    path = packed.with_suffix("")
    content = bytearray(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    path.write_bytes(content)
    ingest(tree, tmp_path / "b")
    shutil.copy(path, tmp_path / "copy")
    path.unlink()
    shutil.copy(tmp_path / "copy", path)
    ingest(tree, tmp_path / "b")  # a copy is the same input
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResumeError, match="run-1 was"):
        ingest(tree, tmp_path / "b")


def test_masks_and_runs_that_lie_elsewhere_say_both_affines(tree, tmp_path):
    mask = func(tree) / "sub-01_task-x_run-1_space-M_desc-brain_mask.nii.gz"
    nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), np.diag([1, 1, 2.5, 1])).to_filename(mask)
    with pytest.raises(
        BoldError, match=r"another grid: its affine 1 0 0 0; 0 1 0 0; 0 0 2\.5 0 is not that of the series 1 0"
    ):
        ingest(tree, tmp_path / "b")


def test_fewer_volumes_than_events_are_refused(tree, tmp_path):
    raw = tree.parents[1] / "sub-01" / "func"
    raw.mkdir(parents=True)
    (raw / "sub-01_task-x_run-01_events.tsv").write_text("onset\tduration\n100\t21\n")
    with pytest.raises(BoldError, match=r"60 volumes \(120.0 s\), events end at 121.0 s"):
        ingest(tree, tmp_path / "b")


@pytest.mark.parametrize("rows", ["1\tn/a\n5\tn/a\n", ""])
def test_events_without_an_end_are_not_called_checked(tree, tmp_path, rows):
    raw = tree.parents[1] / "sub-01" / "func"
    raw.mkdir(parents=True)
    (raw / "sub-01_task-x_run-01_events.tsv").write_text("onset\tduration\n" + rows)
    ingest(tree, tmp_path / "b")
    assert open_bold(tmp_path / "b").info["events_checked"] is False
    (raw / "sub-01_task-x_run-01_events.tsv").write_text("onset\tduration\n1\t2\n" + rows)
    ingest(tree, tmp_path / "c")
    assert open_bold(tmp_path / "c").info["events_checked"] is True


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
