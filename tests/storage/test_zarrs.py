import numpy as np
import pytest
import xarray as xr
import zarr

from vidbrain.errors import StorageError
from vidbrain.storage.zarrs import open_dataset, write_dataset


def toy():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {"bold": (("tr", "voxel"), rng.standard_normal((20, 100)).astype(np.float32))},
        coords={"time_s": ("tr", np.arange(20.0)), "i": ("voxel", np.arange(100))},
        attrs={"tr_s": 1.49},
    )


def test_vanilla_readers_get_the_same_values_without_a_warning(tmp_path):
    write_dataset(tmp_path / "x.zarr", toy(), chunks={"bold": (20, 10)}, shards={"bold": (20, 50)})
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "x.zarr", chunks=None).load(), toy())
    array = zarr.open_group(tmp_path / "x.zarr", mode="r")["bold"]
    assert (array.chunks, array.shards) == ((20, 10), (20, 50))


def test_equal_data_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, toy(), chunks={"bold": (20, 10)})
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_reading_is_lazy(tmp_path):
    write_dataset(tmp_path / "x.zarr", toy(), chunks={"bold": (20, 10)})
    opened = open_dataset(tmp_path / "x.zarr")
    for chunk in (tmp_path / "x.zarr" / "bold" / "c").rglob("*"):
        if chunk.is_file() and chunk.name != "0":
            chunk.unlink()
    np.testing.assert_array_equal(opened["bold"][:, :10].values, toy()["bold"][:, :10].values)


def test_text_and_missing_stores_are_refused(tmp_path):
    with pytest.raises(ValueError, match="integer codes"):
        write_dataset(tmp_path / "x.zarr", xr.Dataset({"label": ("n", np.array(["a", "b"]))}))
    with pytest.raises(StorageError, match="no Zarr store"):
        open_dataset(tmp_path / "x.zarr")
