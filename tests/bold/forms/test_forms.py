"""Every form of source goes through ingest and comes back with the values that its own library reads."""

import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import xarray as xr
import zarr
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ParcelsAxis, SeriesAxis

from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.export import export_runs
from vidbrain.bold.forms.gifti import surface_series
from vidbrain.bold.forms.sources import find_series, open_series
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.store import open_bold
from vidbrain.errors import BoldError, ConfigError

NIBABEL = Path(nibabel.__file__).parent
AS_IT_IS = CleanConfig(confounds="none", high_pass="none", detrend=False, standardize="none")


def unchanged(tr_s=None, space=None, **options) -> IngestConfig:
    return IngestConfig(tr_s=tr_s, space=space, clean=CleanConfig(**(AS_IT_IS.__dict__ | options)))


def explains_itself(root: Path) -> None:
    """Every run of a store says in its own words, to xarray alone, what each of its variables is."""
    for path in root.glob("sub-*.zarr"):
        data = xr.open_zarr(path, chunks=None)
        assert not [name for name in data.variables if not data[name].attrs.get("long_name")]
        assert data["bold"].attrs["units"]
        assert data["time_s"].attrs["units"] == "s"
        for name in (
            "run",
            "subject",
            "task",
            "space",
            "layout",
            "tr_s",
            "clean",
            "source",
            "source_form",
            "simulated",
        ):
            assert name in data.attrs, name


def bids(root: Path, name: str, content: bytes = b"") -> Path:
    path = root / "sub-01" / "func" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content:
        path.write_bytes(content)
    return path


def big_endian() -> bytes:
    image = nibabel.load(NIBABEL / "tests/data/functional.nii")
    stored = np.asarray(image.dataobj.get_unscaled())
    header = nibabel.Nifti1Header(endianness=">")
    header.set_xyzt_units("mm", "sec")
    turned = nibabel.Nifti1Image(stored.astype(">i2"), image.affine, header)
    turned.header["pixdim"][4] = 2.0
    turned.header.set_data_dtype(">i2")
    turned.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    return turned.to_bytes()


@pytest.mark.parametrize("name", ["functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "big-endian"])
def test_real_volumes_come_back_as_nibabel_reads_them(tmp_path, name):
    end = ".nii.gz" if name.endswith(".gz") else ".nii"
    content = big_endian() if name == "big-endian" else (NIBABEL / "tests/data" / name).read_bytes()
    path = bids(tmp_path / "raw", f"sub-01_task-x_run-01_bold{end}", content)
    image = nibabel.load(path)
    rng = np.random.default_rng(0)
    mask = rng.random(image.shape[:3]) < 0.7
    nibabel.Nifti1Image(mask.astype(np.uint8), image.affine).to_filename(tmp_path / "mask.nii")
    ingest(tmp_path / "raw", tmp_path / "b", unchanged(), mask=tmp_path / "mask.nii")
    store = open_bold(tmp_path / "b")
    assert (store.n_voxels, store.tr_s, store.info["form"]) == (mask.sum(), 2.0, "NIfTI")
    (out,) = export_runs(store, tmp_path / "out")
    assert out.name == "sub-01_task-x_run-1_desc-clean_bold.nii.gz"
    back, expected = nibabel.load(out), image.get_fdata()
    expected[~mask] = 0
    assert np.array_equal(back.get_fdata(), expected.astype(np.float32))
    assert np.allclose(back.affine, image.affine, atol=1e-5)
    assert back.header.get_zooms()[3] == 2.0
    explains_itself(tmp_path / "b")


def surfaces(root: Path) -> list[Path]:
    """The series that nibabel ships, as a left hemisphere, and turned around as a right one."""
    left = nibabel.load(NIBABEL / "gifti/tests/data/task.func.gii")
    arrays = [nibabel.gifti.GiftiDataArray(a.data[::-1].copy(), intent=a.intent) for a in left.darrays]
    paths = [bids(root, f"sub-01_task-x_run-2_hemi-{h}_space-fsaverage4_bold.func.gii") for h in "LR"]
    left.to_filename(paths[0])
    nibabel.gifti.GiftiImage(darrays=arrays).to_filename(paths[1])
    return paths


def test_a_real_surface_comes_back_as_nibabel_reads_it(tmp_path):
    left, right = surfaces(tmp_path / "d")
    ingest(tmp_path / "d", tmp_path / "b", unchanged(tr_s=2.0))
    store = open_bold(tmp_path / "b")
    expected = [np.stack([array.data for array in nibabel.load(path).darrays]) for path in (left, right)]
    assert expected[0].shape == (10, 642)
    assert np.array_equal(store.read(store.runs[0]), np.concatenate(expected, axis=1))
    data = xr.open_zarr(tmp_path / "b" / f"{store.runs[0]}.zarr", chunks=None)
    meanings = data["structure"].attrs["flag_meanings"].split()
    assert meanings == ["CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"]
    assert data["structure"].values.tolist() == [0] * 642 + [1] * 642
    assert data["vertex"].values.tolist() == [*range(642)] * 2
    assert (data["i"] == -1).all()
    for out, series in zip(export_runs(store, tmp_path / "out"), expected, strict=True):
        assert np.array_equal(nibabel.load(out).agg_data().T, series)
        assert surface_series([out]).tr_s == 2.0
    with pytest.raises(BoldError, match="no volume"):
        store.to_volume(np.zeros(store.n_voxels))
    explains_itself(tmp_path / "b")


def test_surfaces_that_do_not_fit_are_refused(tmp_path):
    left, right = surfaces(tmp_path / "d")
    with pytest.raises(BoldError, match="no header and no sidecar holds a repetition time"):
        ingest(tmp_path / "d", tmp_path / "b", unchanged())
    with pytest.raises(ConfigError, match="only volumes can be smoothed"):
        ingest(tmp_path / "d", tmp_path / "b", unchanged(tr_s=2.0, fwhm_mm=5.0))
    with pytest.raises(ConfigError, match="only volumes can be masked"):
        ingest(tmp_path / "d", tmp_path / "b", unchanged(tr_s=2.0), mask=left)
    image = nibabel.load(right)
    nibabel.gifti.GiftiImage(darrays=image.darrays[:-1]).to_filename(right)
    with pytest.raises(BoldError, match="hemispheres have 10 and 9 volumes"):
        ingest(tmp_path / "d", tmp_path / "b", unchanged(tr_s=2.0))
    right.unlink()
    with pytest.raises(BoldError, match="lack the other hemisphere"):
        find_series(tmp_path / "d")
    left.write_bytes(left.read_bytes()[:5000])
    with pytest.raises(BoldError, match="not a readable GIFTI file"):
        surface_series([left])


def dense(rng: np.random.Generator, n_trs: int = 12) -> Cifti2Image:
    """Both cortices with holes, as the medial wall is, and a structure of voxels."""
    left = BrainModelAxis.from_surface(np.flatnonzero(rng.random(60) < 0.8), 60, "CortexLeft")
    right = BrainModelAxis.from_surface(np.flatnonzero(rng.random(50) < 0.8), 50, "CortexRight")
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    thalamus = BrainModelAxis.from_mask(rng.random((6, 7, 8)) < 0.2, affine=affine, name="ThalamusLeft")
    axis = left + right + thalamus
    return Cifti2Image(
        rng.standard_normal((n_trs, len(axis))).astype(np.float32), (SeriesAxis(0, 1.49, n_trs, "SECOND"), axis)
    )


def test_grayordinates_come_back_as_nibabel_reads_them(tmp_path):
    image = dense(np.random.default_rng(1))
    path = bids(tmp_path / "d", "sub-01_ses-2_task-x_space-fsLR_den-91k_bold.dtseries.nii")
    image.to_filename(path)
    ingest(tmp_path / "d", tmp_path / "b", unchanged())
    store = open_bold(tmp_path / "b")
    assert (store.tr_s, store.info["space"], store.layout.kind) == (1.49, "fsLR:den-91k", "grayordinates")
    axis = image.header.get_axis(1)
    data = store.open(store.runs[0])
    assert np.array_equal(np.stack([data[a] for a in "ijk"], 1), axis.voxel)
    assert np.array_equal(data["vertex"], axis.vertex)
    names = np.array(data["structure"].attrs["flag_meanings"].split())[data["structure"].values]
    assert np.array_equal(names, axis.name)
    (out,) = export_runs(store, tmp_path / "out")
    back = nibabel.load(out)
    assert out.name == "sub-01_ses-2_task-x_space-fsLR_den-91k_desc-clean_bold.dtseries.nii"
    assert np.array_equal(back.get_fdata(), image.get_fdata())
    assert back.header.get_axis(1) == axis
    assert back.header.get_axis(0) == image.header.get_axis(0)
    explains_itself(tmp_path / "b")


def test_parcels_come_back_with_what_they_hold(tmp_path):
    rng = np.random.default_rng(2)
    whole = dense(rng).header.get_axis(1)
    groups = [(f"area {n}", whole[n::4]) for n in range(4)]
    axis = ParcelsAxis.from_brain_models(groups)
    image = Cifti2Image(rng.standard_normal((9, 4)).astype(np.float32), (SeriesAxis(0, 2.0, 9, "SECOND"), axis))
    path = bids(tmp_path / "d", "sub-01_task-x_space-fsLR_seg-Four_stat-mean_timeseries.ptseries.nii")
    image.to_filename(path)
    ingest(tmp_path / "d", tmp_path / "b", unchanged())
    store = open_bold(tmp_path / "b")
    assert store.open(store.runs[0])["parcel"].attrs["names"] == [f"area {n}" for n in range(4)]
    (out,) = export_runs(store, tmp_path / "out")
    back = nibabel.load(out)
    assert np.array_equal(back.get_fdata(), image.get_fdata())
    assert back.header.get_axis(1) == axis


def test_a_real_connectome_is_no_series(tmp_path):
    content = (NIBABEL / "tests/data/row_major.dconn.nii").read_bytes()
    bids(tmp_path / "d", "sub-01_task-x_space-fsLR_bold.dtseries.nii", content)
    with pytest.raises(BoldError, match="expected time by grayordinates"):
        ingest(tmp_path / "d", tmp_path / "b", unchanged())


def test_scaled_grayordinates_are_exact(tmp_path):
    image = dense(np.random.default_rng(3))
    scaled = Cifti2Image(np.round(image.get_fdata() * 100), image.header)
    scaled.nifti_header.set_data_dtype(np.int16)
    path = bids(tmp_path / "d", "sub-01_task-x_space-fsLR_bold.dtseries.nii")
    scaled.to_filename(path)
    series = open_series(find_series(tmp_path / "d")[0])
    assert series.dtype == "<f8"
    found = np.concatenate([rectangle.stored for rectangle in series.rectangles()], axis=1)
    assert np.array_equal(found, nibabel.load(path).get_fdata())


def extracted(root: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """HDF5 as CNeuroMod extracts it: one file a subject, one data set a run, no attributes."""
    series = {f"ses-00{n}_task-x_run-{n}": rng.standard_normal((20 + n, 6)).astype(np.float32) for n in (1, 2)}
    name = "sub-99_task-x_space-MNI152NLin2009cAsym_atlas-Schaefer18_desc-1000Parcels7Networks"
    path = root / "schaefer1000" / "sub-99" / f"{name}_timeseries.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        for run, values in series.items():
            file.create_dataset(f"{run.split('_')[0]}/{run}_timeseries", data=values, compression="gzip")
    labels = np.zeros((4, 4, 4), np.int16)
    labels.flat[5:17:2] = [3, 8, 9, 20, 21, 40]
    nibabel.Nifti1Image(labels, np.eye(4)).to_filename(path.parent / f"{name}_dseg.nii.gz")
    return series


def test_extracted_time_series_are_read_by_run(tmp_path):
    series = extracted(tmp_path / "timeseries", np.random.default_rng(4))
    with pytest.raises(BoldError, match="repetition time"):
        ingest(tmp_path / "timeseries", tmp_path / "b", unchanged())
    ingest(tmp_path / "timeseries", tmp_path / "b", unchanged(tr_s=1.49))
    store = open_bold(tmp_path / "b")
    assert store.runs == ("sub-99_ses-001_task-x_run-1", "sub-99_ses-002_task-x_run-2")
    assert store.info["space"] == "MNI152NLin2009cAsym:atlas-Schaefer18:desc-1000Parcels7Networks"
    for label, values in zip(store.runs, series.values(), strict=True):
        assert np.array_equal(store.read(label), values)
    names = store.open(store.runs[0])["parcel"].attrs["names"]
    assert names == [f"label {n}" for n in (3, 8, 9, 20, 21, 40)]
    (first, _) = export_runs(store, tmp_path / "out")
    assert np.array_equal(np.load(first), series["ses-001_task-x_run-1"])
    explains_itself(tmp_path / "b")


def test_extracted_voxels_find_their_places_in_the_mask(tmp_path):
    rng = np.random.default_rng(5)
    mask = rng.random((5, 6, 7)) < 0.4
    volumes = rng.standard_normal((8, 5, 6, 7)).astype(np.float32)
    path = tmp_path / "voxel_mni" / "sub-99_task-x_space-MNI152NLin2009cAsym_timeseries.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["ses-1/ses-1_task-x_run-1_timeseries"] = volumes[:, mask]  # as nilearn masks: C order
    nibabel.Nifti1Image(mask.astype(np.uint8), np.eye(4)).to_filename(
        path.parent / "sub-99_task-x_space-MNI152NLin2009cAsym_mask.nii.gz"
    )
    ingest(path, tmp_path / "b", unchanged(tr_s=1.49))
    store = open_bold(tmp_path / "b")
    assert store.layout.kind == "volume"
    assert np.array_equal(store.read(store.runs[0]), volumes[(slice(None), *store.ijk.T)])


@pytest.mark.parametrize("form", ["npy", "fortran", "npz", "npz-two", "zarr", "zarr-group"])
def test_plain_arrays_are_read(tmp_path, form, monkeypatch):
    monkeypatch.setattr("vidbrain.bold.forms.series.BLOCK_BYTES", 3000)
    values = np.random.default_rng(6).standard_normal((30, 70))
    folder = tmp_path / "arrays"
    folder.mkdir()
    stem = folder / "sub-01_task-x_run-1"
    if form in ("npy", "fortran"):
        np.save(f"{stem}.npy", np.asfortranarray(values) if form == "fortran" else values)
    elif form == "npz":
        np.savez_compressed(f"{stem}.npz", anything=values)
    elif form == "npz-two":
        np.savez(f"{stem}.npz", bold=values, other=np.zeros(3))
    elif form == "zarr":
        zarr.create_array(f"{stem}.zarr", data=values, chunks=(7, 11))
    else:
        zarr.create_group(f"{stem}.zarr").create_array("bold", data=values, chunks=(7, 11))
    ingest(folder, tmp_path / "b", unchanged(tr_s=2.0))
    store = open_bold(tmp_path / "b")
    assert np.array_equal(store.read("sub-01_task-x_run-1"), values.astype(np.float32))
    assert store.layout.kind == "columns"
    explains_itself(tmp_path / "b")


def test_a_store_inside_the_folder_of_its_arrays_is_no_source(tmp_path):
    np.save(tmp_path / "sub-01_task-x_run-1.npy", np.random.default_rng(6).standard_normal((30, 7)))
    for settings in (unchanged(tr_s=2.0), unchanged(tr_s=2.0)):  # the same call again finds its own store
        ingest(tmp_path, tmp_path / "b", settings)
    assert list(open_bold(tmp_path / "b").runs) == ["sub-01_task-x_run-1"]
    shutil.rmtree(tmp_path / "b" / "sub-01_task-x_run-1.zarr")
    ingest(tmp_path, tmp_path / "b", unchanged(tr_s=2.0))
    assert open_bold(tmp_path / "b").read("sub-01_task-x_run-1").shape == (30, 7)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: np.save(p, np.zeros((3, 4, 5))), "expected volumes by columns"),
        (lambda p: np.save(p, np.array([["a"]])), "expected volumes by columns"),
        (lambda p: np.save(p, np.array([[{}]]), allow_pickle=True), "expected volumes by columns"),
        (lambda p: p.write_bytes(b"nothing" * 90), "cannot be read"),
        (lambda p: (np.save(p, np.ones((9, 9))), p.write_bytes(p.read_bytes()[:-100])), "cannot be read"),
    ],
)
def test_arrays_that_are_none_are_refused(tmp_path, spoil, message):
    path = tmp_path / "sub-01_task-x.npy"
    spoil(path)
    with pytest.raises(BoldError, match=message):
        ingest(path, tmp_path / "b", unchanged(tr_s=2.0))
    assert not (tmp_path / "b" / "info.json").exists()


def test_a_zarr_that_lacks_a_chunk_is_refused(tmp_path):
    path = tmp_path / "sub-01_task-x.zarr"
    zarr.create_array(path, data=np.random.default_rng(6).standard_normal((30, 70)), chunks=(7, 11))
    ingest(path, tmp_path / "a", unchanged(tr_s=2.0))
    shutil.rmtree(path / "c" / "2")
    with pytest.raises(BoldError, match="7 of 35 chunks are missing"):
        ingest(path, tmp_path / "b", unchanged(tr_s=2.0))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("value", "message"), [("1e40", "float32"), ("1e4000", "float64")])
def test_long_doubles_that_do_not_fit_are_refused(tmp_path, value, message):
    values = np.random.default_rng(8).standard_normal((9, 5)).astype(np.longdouble)
    values[3, 2] = np.longdouble(value)
    np.save(tmp_path / "sub-01_task-x.npy", values)
    with pytest.raises(BoldError, match=f"do not fit into {message}"):
        ingest(tmp_path, tmp_path / "b", unchanged(tr_s=2.0))
    assert not (tmp_path / "b" / "info.json").exists()


def test_runs_of_other_columns_are_refused(tmp_path):
    for run, n in ((1, 5), (2, 6)):
        np.save(tmp_path / f"sub-01_task-x_run-{run}.npy", np.random.default_rng(7).random((9, n)))
    with pytest.raises(BoldError, match="do not lie on one grid: 6 columns"):
        ingest(tmp_path, tmp_path / "b", unchanged(tr_s=2.0))


def test_a_file_of_series_that_names_no_subject_is_refused(tmp_path):
    with h5py.File(tmp_path / "series.h5", "w") as file:
        file["run-1_timeseries"] = np.zeros((10, 3), np.float32)
    with pytest.raises(BoldError, match="says no subject"):
        ingest(tmp_path / "series.h5", tmp_path / "b", IngestConfig(tr_s=1.5))
