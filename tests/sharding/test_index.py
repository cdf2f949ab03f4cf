"""What is read of an index: equal to pyarrow's own conversion, and refused where it cannot be."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidbrain.errors import ShardError, StorageError
from vidbrain.sharding.index import COLUMNS, PLACES, SMALL_BYTES, index_rows, read_index


def table_of(n: int) -> pa.Table:
    n_parts = 1 + np.arange(n) % 3
    places = [
        {
            "offset": 512 + 10_000 * i,
            "n_bytes": int(100 * k),
            "parts": [100] * k,
            "crc32": i,
            "part_crc32": None if i % 4 == 1 else list(range(k)),
        }
        for i, k in enumerate(n_parts.tolist())
    ]
    text = {name: [f"{name}-é{i}" for i in range(n)] for name, dtype in COLUMNS.items() if dtype == pa.string()}
    numbers = {name: np.full(n, 3) for name in COLUMNS if name not in PLACES and pa.types.is_integer(COLUMNS[name])}
    times = {"onset_s": np.arange(n) + 0.5, "duration_s": np.ones(n), "fps": np.full(n, 60.0)}
    return index_rows({**text, **numbers, **times, "recording_frames": np.full(n, 100)}, places)


def read(table: pa.Table, n: int | None = None, **options) -> pd.DataFrame:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    data = sink.getvalue().to_pybytes()
    return read_index(data, n or len(table), sha256=hashlib.sha256(data).hexdigest(), where="index")


@pytest.mark.parametrize("n", [1, 2, 700])
@pytest.mark.parametrize("rows", [1, 64, 10_000])
def test_it_is_what_was_written(n, rows):
    table = table_of(700)
    expected = table.slice(0, n).combine_chunks().to_pandas()
    pd.testing.assert_frame_equal(read(table, n, row_group_size=rows), expected)


def test_a_large_one_is_read_alike():
    table = table_of(60_000)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    assert sink.tell() > SMALL_BYTES
    pd.testing.assert_frame_equal(read(table, compression="none"), table.to_pandas())


def test_long_text_of_other_writers_is_read():
    table = table_of(5)
    long = pa.schema([(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema])
    assert read(table.cast(long), 4)["key"].tolist() == table["key"].to_pylist()[:4]


@pytest.mark.parametrize("column", ["key", "level"])
def test_text_that_is_none_is_refused(column):
    table = table_of(3)
    values = pa.array([b"\xff\xfe", b"b", b"c"]).view(pa.string())
    with pytest.raises(StorageError, match="cannot be read"):
        read(table.set_column(table.column_names.index(column), column, values))


@pytest.mark.parametrize("name", [None, "", "a.b", "a/b", "a\\b", "\x00", "b\x1f"])
@pytest.mark.parametrize("column", ["key", "recording"])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_name_that_is_none_is_named(column, at, name):
    table = table_of(5)
    values = table[column].to_pylist()
    values[at] = name
    damaged = table.set_column(table.column_names.index(column), column, pa.array(values, pa.string()))
    with pytest.raises(ShardError) as found:
        read(damaged, 5)
    assert f"{column} {name!r} cannot be a name" in str(found.value)
    # Rows that the record does not name are those of a data set that grows.
    if at == 4:
        assert len(read(damaged, 4)) == 4


@pytest.mark.parametrize(
    ("column", "at", "value", "message"),
    [
        ("key", 1, "key-é0", "stands twice"),
        ("parts", 1, [100, 101], "do not add up"),
        ("parts", 1, [100, None], "do not add up"),
        ("parts", 1, [], "do not add up"),
        ("parts", 2, [2**62, 2**62], "do not add up"),
        ("part_crc32", 2, [0], "another number of parts"),
        ("part_crc32", 2, [], "another number of parts"),
        ("run", 0, None, "missing values: run"),
        ("parts", 0, None, "missing values: parts"),
        ("shard", 3, -1, "negative"),
    ],
)
def test_what_cannot_be_is_refused(column, at, value, message):
    table = table_of(5)
    values = table[column].to_pylist()
    values[at] = value
    with pytest.raises(ShardError, match=message):
        read(table.set_column(table.column_names.index(column), column, pa.array(values, COLUMNS[column])))
