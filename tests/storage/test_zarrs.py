import numpy as np
import pytest
import xarray as xr
import zarr

from vidbrain.errors import StorageError
from vidbrain.storage.files import Files
from vidbrain.storage.plain import IN_ORDER
from vidbrain.storage.zarrs import EVERY_CHUNK, Columns, open_dataset, read_columns, write_by_columns, write_dataset


def toy():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {"bold": (("tr", "voxel"), rng.standard_normal((20, 100)).astype(np.float32))},
        coords={"time_s": ("tr", np.arange(20.0)), "i": ("voxel", np.arange(100))},
        attrs={"tr_s": 1.49},
    )


def test_vanilla_readers_get_the_same_values_without_a_warning(tmp_path):
    write_dataset(tmp_path / "x.zarr", toy(), chunks={"bold": (20, 10)}, shards={"bold": (20, 50)})
    xr.testing.assert_identical(
        xr.open_zarr(tmp_path / "x.zarr", chunks=None).load(), toy().assign_attrs({EVERY_CHUNK: 1})
    )
    xr.testing.assert_identical(open_dataset(tmp_path / "x.zarr").load(), toy())
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


def test_empty_chunks_are_written_and_a_lost_one_is_an_error_never_nan(tmp_path):
    data = toy().assign(dead=("voxel", np.zeros(100, bool)), sums=("voxel", np.full(100, np.nan)))
    data["bold"][:, 50:] = np.nan
    write_dataset(tmp_path / "x.zarr", data, chunks={"bold": (20, 10)}, shards={"bold": (20, 50)})
    xr.testing.assert_identical(open_dataset(tmp_path / "x.zarr").load(), data)
    for name in ("bold/c/0/0", "bold/c/0/1", "dead/c/0", "sums/c/0", "time_s/c/0"):
        chunk = tmp_path / "x.zarr" / name
        content = chunk.read_bytes()
        chunk.unlink()
        with pytest.raises(StorageError, match=f"a part of {name.split('/')[0]} is missing") as caught:
            read_columns(tmp_path / "x.zarr", "bold", slice(0, 5))
        assert caught.value.where == str(chunk)
        chunk.write_bytes(content)
    assert np.isfinite(read_columns(tmp_path / "x.zarr", "bold", slice(0, 5))).all()


def test_a_flipped_bit_is_an_error(tmp_path):
    write_dataset(tmp_path / "x.zarr", toy(), chunks={"bold": (20, 10)}, shards={"bold": (20, 50)})
    chunk = tmp_path / "x.zarr" / "bold" / "c" / "0" / "1"
    content = bytearray(chunk.read_bytes())
    content[300] ^= 4
    chunk.write_bytes(bytes(content))
    with pytest.raises(StorageError, match="checksum"):
        read_columns(tmp_path / "x.zarr", "bold", slice(50, 60))


def by_columns(path, values, parts):
    columns = Columns(
        name="bold",
        dims=("tr", "voxel"),
        shape=values.shape,
        chunk=16,
        part=48,
        attributes={"units": "1"},
    )
    write_by_columns(path, columns, parts, lambda: toy().drop_vars("bold"))


def test_a_data_set_written_part_by_part_is_the_whole_one(tmp_path):
    whole = toy()
    values = whole["bold"].values
    by_columns(tmp_path / "x.zarr", values, (values[:, first : first + 48] for first in range(0, 100, 48)))
    found = xr.open_zarr(tmp_path / "x.zarr", chunks=None)
    assert found["bold"].attrs == {"units": "1", IN_ORDER: True}
    xr.testing.assert_equal(found.load(), whole)
    assert {path.name for path in (tmp_path / "x.zarr" / "bold" / "c" / "0").iterdir()} == {"0", "1", "2"}


def test_parts_that_do_not_fill_the_array_leave_nothing(tmp_path):
    values = toy()["bold"].values
    with pytest.raises(ValueError, match="48 of 100 columns"):
        by_columns(tmp_path / "x.zarr", values, iter([values[:, :48]]))
    with pytest.raises(ValueError, match="a part of shape"):
        by_columns(tmp_path / "x.zarr", values, iter([values[:, :40]]))
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_does_not_read_back_as_it_was_written_is_an_error(tmp_path, monkeypatch):
    """A disk that turns one bit of the second part."""
    whole, calls = zarr.Array.__setitem__, []

    def spoilt(array, place, values):
        calls.append(place)
        values = values.copy()
        if len(calls) == 2:
            values[3, 4] = np.nextafter(values[3, 4], np.float32(9))
        whole(array, place, values)

    monkeypatch.setattr(zarr.Array, "__setitem__", spoilt)
    bold = toy()["bold"].values
    columns = Columns(name="bold", dims=("tr", "voxel"), shape=bold.shape, chunk=10, part=50)
    with pytest.raises(StorageError, match="columns 50 to 100 of bold do not read back"):
        write_by_columns(tmp_path / "x.zarr", columns, (bold[:, :50], bold[:, 50:]), lambda: toy().drop_vars("bold"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "n_packed", "n_plain"),
    [
        (slice(0, 40), 2, 1),  # four chunks of one Zarr shard: its index where it is compressed, and one stretch
        (slice(25, 75), 4, 2),  # over the border of two
        (slice(0, 50), 1, 1),  # a whole one
        (slice(0, 100), 2, 2),
    ],
)
def test_neighbouring_columns_are_one_stretch_of_a_file(tmp_path, monkeypatch, columns, n_packed, n_plain):
    bold = toy()["bold"].values
    layout = Columns(name="bold", dims=("tr", "voxel"), shape=bold.shape, chunk=10, part=50)
    write_by_columns(tmp_path / "plain.zarr", layout, (bold[:, :50], bold[:, 50:]), lambda: toy().drop_vars("bold"))
    write_dataset(tmp_path / "packed.zarr", toy(), chunks={"bold": (20, 10)}, shards={"bold": (20, 50)})
    whole, read = Files.get, []

    def watched(files, key, span=None, etag=None):
        read.append(f"/{key}")
        return whole(files, key, span, etag)

    monkeypatch.setattr(Files, "get", watched)
    for name, n_spans in (("packed", n_packed), ("plain", n_plain)):
        read.clear()
        assert np.array_equal(read_columns(tmp_path / f"{name}.zarr", "bold", columns), bold[:, columns])
        assert len([key for key in read if "/c/" in key]) == n_spans
