import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import nilearn.interfaces.fmriprep as fmriprep
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nilearn.signal import clean

from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.forms.nifti_writer import SeriesWriter
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.store import open_bold
from vidbrain.cluster import client
from vidbrain.errors import AlignmentError, BoldError, ResumeError, StorageError
from vidbrain.records import RunKey
from vidbrain.storage.atomic import PART
from vidbrain.storage.zarrs import write_dataset

RUN = "sub-01_ses-001_task-toy_run-1"


@pytest.fixture
def mine(derivatives: Path, tmp_path: Path) -> Path:
    """A copy of the derivatives to spoil, away from the events."""
    return Path(shutil.copytree(derivatives, tmp_path / "fmriprep", ignore=shutil.ignore_patterns("truth")))


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def bold_of(root: Path, run: int) -> Path:
    return next(root.rglob(f"*run-{run}_space*_desc-preproc_bold.nii.gz"))


def rewrite(path: Path, change) -> None:
    image = nibabel.load(path)
    values = np.asarray(image.dataobj.get_unscaled())
    header = image.header.copy()
    header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    values, affine = change(values, image.affine.copy(), header)
    out = nibabel.Nifti1Image(values, affine, header)
    out.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    out.to_filename(path)


def test_a_store_holds_what_nibabel_and_nilearn_make_of_the_files(store_root, derivatives):
    store = open_bold(store_root)
    assert store.runs == (RUN, RUN.replace("run-1", "run-2"))
    for run, path in zip(store.runs, (bold_of(derivatives, 1), bold_of(derivatives, 2)), strict=True):
        image = nibabel.load(path)
        i, j, k = store.ijk.T
        series = image.get_fdata()[i, j, k].T
        table, _ = fmriprep.load_confounds_strategy(str(path), denoise_strategy="simple")
        expected = clean(series, confounds=table, filter=False, standardize="zscore_sample")
        assert np.abs(store.read(run) - expected).max() < 1e-5
        assert np.abs(store.clean_like(run, series[:, :5]) - expected[:, :5]).max() < 1e-9
    mask = nibabel.load(next(derivatives.rglob("*brain_mask.nii.gz"))).get_fdata() > 0
    assert store.n_voxels == mask.sum()
    assert np.array_equal(store.to_volume(np.ones(store.n_voxels)) > 0, mask)
    assert np.allclose(store.affine, image.affine)
    assert store.simulated
    assert store.info["events_checked"]


def test_other_readers_open_a_store_lazily_in_blocks(store_root):
    data = xr.open_zarr(store_root / f"{RUN}.zarr", chunks=None)
    assert data["bold"].dims == ("tr", "voxel")
    assert data["bold"].dtype == np.float32
    assert not data["bold"]._in_memory
    store = open_bold(store_root)
    block = store.read(RUN, slice(100, 164))
    assert block.shape == (store.n_trs(RUN), 64)
    assert np.array_equal(block, data["bold"][:, 100:164].values)
    assert np.allclose(data["time_s"], (np.arange(len(block)) + 0.5) * 1.49)
    meta = json.loads((store_root / f"{RUN}.zarr" / "bold" / "zarr.json").read_text())
    inner = meta["codecs"][0]["configuration"]["chunk_shape"]
    assert inner[0] == meta["chunk_grid"]["configuration"]["chunk_shape"][0] == len(block)
    assert inner[1] <= 1024


def test_a_run_explains_itself_to_xarray_alone(store_root):
    code = """
import sys, xarray
data = xarray.open_zarr(sys.argv[1], chunks=None)
assert not [name for name in sys.modules if name.startswith("vidbrain")]
assert set(data.coords) == {"time_s", "i", "j", "k"}, set(data.coords)
assert set(data.data_vars) == {"bold", "dead", "kept", "confounds"}
assert not [name for name in data.variables if not data[name].attrs.get("long_name")]
assert data["bold"].dims == ("tr", "voxel") and data["bold"].attrs["units"] == "standard deviations"
assert data["time_s"].attrs["units"] == "s"
assert data["confounds"].attrs["names"] == data.attrs["confound_names"] and len(data.attrs["confound_names"]) > 26
for name in ("run", "subject", "session", "task", "space", "affine", "shape", "tr_s", "clean", "source", "simulated"):
    assert name in data.attrs, name
assert data.attrs["subject"] == "01" and data.attrs["run_number"] == 1 and data.attrs["layout"] == "volume"
early = data["bold"].where(data["kept"], drop=True).isel(voxel=data["i"] == int(data["i"][0]))
assert early.sizes["voxel"] > 3 and abs(float(early.std("tr", ddof=1).mean()) - 1) < 1e-3
"""
    for run in open_bold(store_root).runs:
        arguments = [sys.executable, "-W", "error", "-c", code, str(store_root / f"{run}.zarr")]
        if not run.endswith("1"):
            arguments[4] = code.replace('["run_number"] == 1', '["run_number"] == 2')
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_labels_are_found_in_any_spelling(store_root):
    store = open_bold(store_root)
    assert store.label("sub-01_ses-001_task-toy_run-01") == RUN
    assert store.label(RunKey("01", "001", "toy", 1)) == RUN
    with pytest.raises(AlignmentError, match="no run"):
        store.read("sub-01_ses-001_task-toy_run-9")
    with pytest.raises(AlignmentError, match="does not fit"):
        store.clean_like(RUN, np.zeros((3, 2)))


def test_workers_do_not_change_a_byte(store_root, derivatives, tmp_path):
    with client("local", 2) as two:
        ingest(derivatives, tmp_path / "b", client=two)
    assert files_of(tmp_path / "b") == files_of(store_root)


def test_runs_that_do_not_fit_in_memory_give_the_same_store(store_root, derivatives, tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.bold.run.HELD_BYTES", 0)
    monkeypatch.setattr("vidbrain.bold.forms.series.BLOCK_BYTES", 1)
    monkeypatch.setattr("vidbrain.bold.run._CLEAN_VALUES", 20_000)
    ingest(derivatives, tmp_path / "b")
    store = open_bold(tmp_path / "b")
    for run in store.runs:
        assert np.abs(store.read(run) - open_bold(store_root).read(run)).max() < 1e-6
    assert {path.name for path in (tmp_path / "b").iterdir()} == {path.name for path in store_root.iterdir()}


def test_parts_of_long_runs_are_narrower_and_verify(tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.bold.parts._PART_VALUES", 60_000)
    monkeypatch.setattr("vidbrain.bold.parts.CHUNK_VOXELS", 64)
    monkeypatch.setattr("vidbrain.bold.run.CHUNK_VOXELS", 64)
    values = np.random.default_rng(0).standard_normal((300, 700)).astype(np.float32)
    np.save(tmp_path / "sub-01_task-x.npy", values)
    config = CleanConfig(confounds="none", high_pass="none", detrend=False, standardize="none")
    ingest(tmp_path / "sub-01_task-x.npy", tmp_path / "b", IngestConfig(tr_s=2.0, clean=config))
    store = open_bold(tmp_path / "b")
    data = store.open(store.runs[0])
    assert data["bold"].encoding["shards"] == (300, 192)
    assert len(data.attrs["part_sha256"]) == 4
    assert np.array_equal(store.read(store.runs[0]), values)
    store.verify(store.runs[0])
    damaged = tmp_path / "b" / "sub-01_task-x.zarr" / "bold" / "c" / "0" / "2"
    shutil.copy(damaged.with_name("1"), damaged)
    with pytest.raises(StorageError, match="voxels 384 to 576 have another checksum"):
        store.verify(store.runs[0])


MEASURE = """
import resource, sys
import vidbrain.bold.run as worker
import vidbrain.bold.store as store
from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.forms.nifti_writer import SeriesWriter
from vidbrain.bold.forms import series
from vidbrain.bold.ingest import IngestConfig, ingest
worker.HELD_BYTES, store._PART_VALUES, series.BLOCK_BYTES = 0, 1_000_000, 4 << 20
ingest(sys.argv[1], sys.argv[2], IngestConfig(clean=CleanConfig(confounds="none")), mask=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path):
    """240 more volumes of 60,000 voxels are 29 MB in the type of the file, 58 MB in float32, 115 MB in float64."""
    shape, rng, peaks = (40, 50, 30), np.random.default_rng(0), []
    nibabel.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)).to_filename(tmp_path / "mask.nii.gz")
    for n_trs in (60, 300):
        folder = tmp_path / str(n_trs) / "sub-01" / "func"
        folder.mkdir(parents=True)
        path = folder / "sub-01_task-x_bold.nii.gz"
        with SeriesWriter(path, (*shape, n_trs), np.eye(4), 0.9, 1.0) as writer:
            for _ in range(n_trs // 20):
                writer.put(rng.integers(400, 900, (20, *shape), dtype=np.int16))
        cosines = folder / "sub-01_task-x_desc-confounds_timeseries.tsv"
        columns = {f"cosine{k:02d}": np.cos(np.pi * (np.arange(n_trs) + 0.5) * (k + 1) / n_trs) for k in range(2)}
        pd.DataFrame(columns).to_csv(cosines, sep="\t", index=False)
        cosines.with_suffix(".json").write_text("{}")
        words = [sys.executable, "-c", MEASURE, tmp_path / str(n_trs), tmp_path / f"b{n_trs}", tmp_path / "mask.nii.gz"]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 18e6


def test_a_finished_store_is_left_alone_and_other_settings_are_refused(store_root, derivatives):
    before = {path: path.stat().st_mtime_ns for path in store_root.rglob("*")}
    ingest(derivatives, store_root)
    assert {path: path.stat().st_mtime_ns for path in store_root.rglob("*")} == before
    with pytest.raises(ResumeError, match="simple-gsr"):
        ingest(derivatives, store_root, IngestConfig(clean=CleanConfig(confounds="simple-gsr")))


KILLED = """
import os, signal, sys
import vidbrain.bold.ingest as stage
import vidbrain.bold.run as worker
grid, columns = stage.write_dataset, worker.write_by_columns
def killed_after_grid(path, dataset, **options):
    grid(path, dataset, **options)
    if sys.argv[3] in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
def killed_in_run(path, what, parts, finish):
    def last():
        if sys.argv[3] in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return finish()
    columns(path, what, parts, last)
stage.write_dataset, worker.write_by_columns = killed_after_grid, killed_in_run
stage.ingest(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("where", ["grid.zarr", "run-2.zarr"])
def test_killed_and_started_again_it_is_the_same(store_root, derivatives, tmp_path, where):
    out = tmp_path / "b"
    code = subprocess.run([sys.executable, "-c", KILLED, derivatives, out, where], check=False).returncode
    assert code == -9
    assert not (out / "info.json").exists()
    with pytest.raises(StorageError, match="unfinished"):
        open_bold(out)
    if where == "run-2.zarr":
        assert any(PART in path.name for path in out.iterdir())
        done = (out / f"{RUN}.zarr" / "zarr.json").stat().st_mtime_ns
    ingest(derivatives, out)
    assert files_of(out) == files_of(store_root)
    if where == "run-2.zarr":
        assert (out / f"{RUN}.zarr" / "zarr.json").stat().st_mtime_ns == done


def test_a_given_mask_chooses_the_voxels(mine, tmp_path, store_root):
    image = nibabel.load(next(mine.rglob("*brain_mask.nii.gz")))
    half = np.asarray(image.dataobj).copy()
    half[: half.shape[0] // 2] = 0
    nibabel.Nifti1Image(half, image.affine).to_filename(tmp_path / "half.nii.gz")
    ingest(mine, tmp_path / "b", mask=tmp_path / "half.nii.gz")
    small, whole = open_bold(tmp_path / "b"), open_bold(store_root)
    assert small.n_voxels == half.sum()
    volume = np.zeros(whole.shape, np.float32)
    volume[tuple(whole.ijk.T)] = whole.read(RUN)[5]
    assert np.allclose(volume[tuple(small.ijk.T)], small.read(RUN)[5], atol=1e-6)
    nibabel.Nifti1Image(half, image.affine * 1.1).to_filename(tmp_path / "off.nii.gz")
    with pytest.raises(BoldError, match="grid"):
        ingest(mine, tmp_path / "c", mask=tmp_path / "off.nii.gz")
    nibabel.Nifti1Image(half * 0, image.affine).to_filename(tmp_path / "none.nii.gz")
    with pytest.raises(BoldError, match="no voxel"):
        ingest(mine, tmp_path / "c", mask=tmp_path / "none.nii.gz")


def test_voxels_without_signal_are_zeros_and_flagged(mine, tmp_path, store_root):
    ijk = open_bold(store_root).ijk

    def still(values, affine, header):
        values[tuple(ijk[[3, 40]].T)] = 77
        return values, affine

    rewrite(bold_of(mine, 2), still)
    ingest(mine, tmp_path / "b")
    store = open_bold(tmp_path / "b")
    assert np.flatnonzero(store.dead).tolist() == [3, 40]
    assert (store.read(store.runs[1])[:, [3, 40]] == 0).all()
    assert (store.read(store.runs[0])[:, 3] != 0).any()
    assert [run["n_dead"] for run in store.info["runs"]] == [0, 2]


def test_a_run_without_any_signal_is_refused(mine, tmp_path):
    rewrite(bold_of(mine, 2), lambda values, affine, header: (values * 0 + 5, affine))
    with pytest.raises(BoldError, match="every voxel of the series is constant"):
        ingest(mine, tmp_path / "b")
    assert not (tmp_path / "b" / "info.json").exists()


def test_a_series_shorter_than_its_events_is_refused_before_work(derivatives, tree, tmp_path, mine):
    rewrite(bold_of(mine, 2), lambda values, affine, header: (values[..., :90], affine))
    with pytest.raises(BoldError, match="shorter than their events") as caught:
        ingest(mine, tmp_path / "b", events=tree)
    assert "90 volumes (134.1 s), events end at 148.9 s" in str(caught.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v, a, h: (v, a + np.diag([0, 0, 0.5, 0])), "affine"),
        (lambda v, a, h: (v[:-1], a), "do not lie on one grid"),
        (lambda v, a, h: (h["pixdim"].__setitem__(4, 2.0), (v, a))[1], "repetition times disagree"),
        (lambda v, a, h: (v[..., :-2], a), "rows of confounds for"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_work(mine, tmp_path, spoil, message):
    rewrite(bold_of(mine, 2), spoil)
    with pytest.raises(BoldError, match=message):
        ingest(mine, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_argument_must_agree_with_headers(mine, tmp_path):
    with pytest.raises(BoldError, match=r"tr_s says 2 s, the header .* says 1.49 s"):
        ingest(mine, tmp_path / "b", IngestConfig(tr_s=2.0))


def test_a_sidecar_must_agree_with_headers(mine, tmp_path):
    sidecar = next(mine.rglob("*run-2*_bold.json"))
    sidecar.write_text(json.dumps({"RepetitionTime": 1.5}))
    with pytest.raises(BoldError, match=r"the sidecar .* says 1.5 s"):
        ingest(mine, tmp_path / "b")
    sidecar.write_text("[")
    with pytest.raises(BoldError, match="not a JSON object"):
        ingest(mine, tmp_path / "b")


def test_a_cut_series_leaves_nothing_that_reads_as_whole(mine, tmp_path):
    path = bold_of(mine, 2)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BoldError, match=r"cut off|ends before") as caught:
        ingest(mine, tmp_path / "b")
    assert path.name in str(caught.value)
    assert not (tmp_path / "b" / "info.json").exists()
    assert not (tmp_path / "b" / f"{RUN.replace('run-1', 'run-2')}.zarr").exists()
    with pytest.raises(StorageError, match="unfinished"):
        open_bold(tmp_path / "b")


def test_one_subject_without_session_and_plain_nifti(mine, tmp_path, store_root):
    old = bold_of(mine, 1)
    folder = tmp_path / "plain" / "sub-07" / "func"
    folder.mkdir(parents=True)
    stem = "sub-07_task-toy"
    (folder / f"{stem}_desc-preproc_bold.nii").write_bytes(gzip.decompress(old.read_bytes()))
    shutil.copy(next(old.parent.glob("*run-1*brain_mask.nii.gz")), folder / f"{stem}_desc-brain_mask.nii.gz")
    shutil.copy(next(old.parent.glob("*run-1*confounds*.tsv")), folder / f"{stem}_desc-confounds_regressors.tsv")
    shutil.copy(next(old.parent.glob("*run-1*confounds*.json")), folder / f"{stem}_desc-confounds_regressors.json")
    facts = ingest(tmp_path / "plain", tmp_path / "b")
    assert facts["space"] == "func"
    assert not facts["simulated"]
    assert np.array_equal(open_bold(tmp_path / "b").read("sub-07_task-toy"), open_bold(store_root).read(RUN))


def test_verify_finds_changed_values_and_damaged_files(store_root, tmp_path):
    copy = Path(shutil.copytree(store_root, tmp_path / "b"))
    store = open_bold(copy)
    store.verify(RUN)
    data = store.open(RUN).load().drop_encoding()
    data["bold"][4, 7] += 1e-3
    write_dataset(copy / f"{RUN}.zarr", data)
    with pytest.raises(StorageError, match="checksum"):
        store.verify(RUN)
    chunk = max((copy / f"{store.runs[1]}.zarr" / "bold" / "c").rglob("*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    chunk.write_bytes(bytes(damaged))
    with pytest.raises(StorageError, match=r"checksum|cannot be read"):
        store.verify(store.runs[1])
    shutil.rmtree(copy / f"{RUN}.zarr")
    with pytest.raises(StorageError, match="lacks"):
        open_bold(copy)


def test_a_place_that_cannot_be_written_is_refused_before_work(derivatives, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="a file, not a folder"):
        ingest(derivatives, tmp_path / "file" / "b")
