import json

import numpy as np
import pytest
import xarray as xr
import zarr

from vidbrain.errors import StorageError
from vidbrain.storage.objects import open_root
from vidbrain.storage.plain import PlainColumns
from vidbrain.storage.zarrs import Columns, read_columns, write_by_columns, write_dataset


def written(path, values, chunk, part):
    columns = Columns(name="bold", dims=("tr", "voxel"), shape=values.shape, chunk=chunk, part=part)
    parts = (values[:, first : first + part] for first in range(0, values.shape[1], part))
    write_by_columns(path, columns, parts, xr.Dataset)
    return path


def metadata_of(path):
    return json.loads((path / "bold" / "zarr.json").read_text())


def put(path, root):
    for file in path.rglob("*"):
        if file.is_file():
            root.put(str(file.relative_to(path.parent)), file.read_bytes())


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_any_block_is_what_was_written_and_what_zarr_reads(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows, columns, chunk, times = (int(n) for n in rng.integers(1, (40, 90, 12, 6)))
    values = noise(rows, columns, seed)
    values[:, rng.random(columns) < 0.3] = 0
    path = written(tmp_path / "x", values, chunk, chunk * times)
    plain = PlainColumns.of(metadata_of(path))
    assert plain == PlainColumns(shape=values.shape, chunk=chunk, part=chunk * times)
    array = zarr.open_group(path, mode="r")["bold"]
    for start, stop in [*rng.integers(0, columns + 1, (8, 2)), (0, columns), (-5, None)]:
        here = slice(int(start), None if stop is None else int(stop))
        found = read_columns(path, "bold", here)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values[:, here])
        np.testing.assert_array_equal(found, array[:, here])


def test_any_flipped_bit_of_a_chunk_or_its_checksum_is_an_error(tmp_path):
    values = noise(6, 40)
    path = written(tmp_path / "x", values, 8, 16)
    shard = path / "bold" / "c" / "0" / "1"
    content = shard.read_bytes()
    n_bytes = 4 * 6 * 8 + 4
    assert len(content) == 2 * n_bytes + 2 * 16 + 4
    for at in range(2 * n_bytes):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        shard.write_bytes(damaged)
        column = 16 + 8 * (at >= n_bytes)
        with pytest.raises(StorageError, match=f"columns from {column} are not what was written"):
            read_columns(path, "bold", slice(column, column + 8))
    shard.write_bytes(content[: n_bytes + 5])
    np.testing.assert_array_equal(read_columns(path, "bold", slice(16, 24)), values[:, 16:24])
    with pytest.raises(StorageError):
        read_columns(path, "bold", slice(20, 30))
    shard.unlink()
    with pytest.raises(StorageError, match="a part of bold is missing"):
        read_columns(path, "bold", slice(0, 40))


def test_chunks_in_another_order_are_refused_when_they_are_written(tmp_path):
    path = written(tmp_path / "x", noise(6, 40), 8, 16)
    plain = PlainColumns.of(metadata_of(path))
    plain.check_index(open_root(path / "bold"), 0)
    shard, n_bytes = path / "bold" / "c" / "0" / "0", plain.chunk_bytes
    content = bytearray(shard.read_bytes())
    content[2 * n_bytes :] = content[2 * n_bytes + 16 : -4] + content[2 * n_bytes : 2 * n_bytes + 16] + content[-4:]
    shard.write_bytes(content)
    with pytest.raises(StorageError, match="not that of chunks in order"):
        plain.check_index(open_root(path / "bold"), 0)


def test_arrays_that_lie_in_another_way_are_not_taken_for_plain_ones(tmp_path):
    values = noise(6, 40)
    write_dataset(
        tmp_path / "packed",
        xr.Dataset({"bold": (("tr", "voxel"), values)}),
        chunks={"bold": (6, 8)},
        shards={"bold": (6, 16)},
    )
    assert PlainColumns.of(metadata_of(tmp_path / "packed")) is None
    np.testing.assert_array_equal(read_columns(tmp_path / "packed", "bold", slice(3, 30)), values[:, 3:30])
    good = metadata_of(written(tmp_path / "x", values, 8, 16))
    assert PlainColumns.of(good) is not None
    for change in (
        {"attributes": {}},
        {"data_type": "float64"},
        {"shape": [7, 40]},
        {"shape": [6, 40, 1]},
        {"codecs": []},
        {"codecs": [{"name": "bytes"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [6, 0]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [6, 20]}}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
        {"storage_transformers": [{"name": "x"}]},
    ):
        assert PlainColumns.of(good | change) is None, change
    for nonsense in (None, [], "text", {}, {"codecs": 3}):
        assert PlainColumns.of(nonsense) is None


def test_at_a_url_a_block_is_one_range_of_each_shard(honest, tmp_path):
    values = noise(30, 700)
    put(written(tmp_path / "x", values, 32, 256), honest.root)
    for voxels, n_data in ((slice(0, 128), 1), (slice(192, 320), 2), (slice(0, 700), 3), (slice(9, 9), 0)):
        honest.proxy.clear()
        np.testing.assert_array_equal(read_columns(honest.root / "x", "bold", voxels), values[:, voxels])
        assert len(honest.data_requests("/bold/c/")) == n_data
        assert len(honest.proxy.seen) == n_data + 1
    honest.root.delete("x/bold/c/0/1")
    with pytest.raises(StorageError, match="a part of bold is missing"):
        read_columns(honest.root / "x", "bold", slice(250, 270))


def test_a_faulty_connection_changes_nothing(remote, tmp_path):
    values = noise(30, 700)
    put(written(tmp_path / "x", values, 32, 256), remote.root)
    np.testing.assert_array_equal(read_columns(remote.root / "x", "bold", slice(100, 650)), values[:, 100:650])
