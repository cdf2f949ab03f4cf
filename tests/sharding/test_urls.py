"""Data sets of shards that lie at a URL: opened, described, named in part."""

import contextlib
import functools
import hashlib
import itertools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidbrain.errors import ShardError, StorageError
from vidbrain.sharding.codes import write_codes
from vidbrain.sharding.describe import describe, find_datasets
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.index import COLUMNS, ROW_GROUP, write_index
from vidbrain.sharding.manifest import marker_path, open_manifest, shard_path
from vidbrain.sharding.orphans import collect, find_orphans
from vidbrain.sharding.subset import write_subset
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import read_bytes
from vidbrain.storage.trees import upload_tree


@pytest.fixture(scope="module")
def data(tmp_path_factory, videos):
    from vidbrain.sharding.plan import ShardConfig

    root = tmp_path_factory.mktemp("whole") / "data"
    settings = {"frame_size": 32, "segment_frames": 32, "shard_frames": 128, "clip_frames": 8, "clip_step": 2}
    write_shards(videos, root, ShardConfig(codec="zstd", **settings))
    return root


@contextlib.contextmanager
def web_server(folder):
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def same(one, other):
    assert one.fingerprint == other.fingerprint
    assert one.info == other.info
    assert one.segments.equals(other.segments)


def test_a_manifest_opens_by_url_in_two_requests(remote, data):
    upload_tree(data, remote.root)
    remote.proxy.clear()
    found = open_manifest(remote.url)
    assert len(remote.proxy.seen) == 2
    same(found, open_manifest(data))
    assert found.root == open_root(remote.url)
    for shard in range(found.info["n_shards"]):
        tar, facts = shard_path(data, shard).read_bytes(), found.shard_facts(shard)
        assert facts == (len(tar), hashlib.sha256(tar).hexdigest())
        assert isinstance(shard_path(found.root, shard), Root)
        assert read_bytes(shard_path(found.root, shard)) == tar


def test_over_http_and_a_subset_that_lies_beside_it(data, tmp_path):
    shutil.copytree(data, tmp_path / "site" / "sets" / "data")
    write_subset(tmp_path / "site" / "small", open_manifest(tmp_path / "site" / "sets" / "data"), size="100")
    with web_server(tmp_path / "site") as url:
        same(open_manifest(f"{url}/sets/data"), open_manifest(data))
        found = open_manifest(f"{url}/small.json")
        assert (str(found.root), found.info["n_frames"]) == (f"{url}/sets/data", 100)
        with pytest.raises(StorageError, match="no root record"):
            open_manifest(f"{url}/sets")
        with pytest.raises(StorageError, match="read only"):
            write_subset(f"{url}/other", open_manifest(f"{url}/sets/data"), size="50")
        assert verify(f"{url}/sets/data") == []
        with pytest.raises(ShardError, match="no bytes of its own"):
            verify(f"{url}/small.json")
        assert describe(f"{url}/sets/data") == {**describe(data), "root": f"{url}/sets/data"}
        assert find_datasets(f"{url}/sets/data") == [open_root(f"{url}/sets/data")]
        with pytest.raises(StorageError, match="cannot list"):
            find_datasets(f"{url}/sets")
        for call in (find_orphans, collect):
            with pytest.raises(StorageError, match="read only"):
                call(f"{url}/sets/data")
        tar = tmp_path / "site" / "sets" / "data" / "shards" / "000001.tar"
        tar.write_bytes(tar.read_bytes()[:-1024])
        assert {found.shard for found in verify(f"{url}/sets/data")} == {1}


def test_a_data_set_of_earlier_versions_asks_its_markers(honest, data):
    upload_tree(data, honest.root)
    record = json.loads((data / "dataset.json").read_text())
    old = {name: value for name, value in record.items() if name not in ("shards", "index_sha256")}
    honest.root.put("dataset.json", json.dumps(old).encode())
    for place in (honest.url, data):
        facts = open_manifest(place).shard_facts(1)
        assert facts == (record["shards"]["n_bytes"][1], record["shards"]["sha256"][1])
    honest.root.put("shards/000001.json", b"{}")
    with pytest.raises(StorageError, match="its marker is damaged"):
        open_manifest(honest.url).shard_facts(1)


def test_subsets_here_and_there(honest, data, tmp_path):
    upload_tree(data, honest.root / "data")
    whole = open_manifest(f"{honest.url}/data")
    expected = write_subset(tmp_path / "here", open_manifest(data), size="140", only=Filter())
    for path, reference in (
        (tmp_path / "away.json", f"{honest.url}/data"),
        (f"{honest.url}/beside", "data"),
        (f"{honest.url}/sets/deep/down.json", "../../data"),
        (f"s3://bucket/{'x' * 5}.json", f"{honest.url.removeprefix('s3://bucket/')}/data"),
    ):
        record = write_subset(path, whole, size="140")
        assert (record["fingerprint"], record["data"]) == (expected["fingerprint"], reference)
        name = path if str(path).endswith(".json") else f"{path}.json"
        same(open_manifest(name), open_manifest(tmp_path / "here.json"))
        assert str(open_manifest(name).root) == f"{honest.url}/data"
        with pytest.raises(StorageError, match="another subset"):
            write_subset(path, whole, size="141")
    with pytest.raises(StorageError, match="a subset names frames"):
        open_manifest(tmp_path / "away.json", kind="codes")
    with pytest.raises(StorageError, match=r"needs its data set at a URL[\s\S]*vidbrain push"):
        write_subset(f"{honest.url}/mixed", open_manifest(data), size="10")


def test_codes_open_by_url(honest, data, tmp_path):
    manifest = open_manifest(data)

    def encode(positions):
        for p in positions:
            yield p, np.full((p % 3 + 1, 1, 2, 2), p, np.uint16)

    made_from = {"shards": manifest.fingerprint}
    with pytest.raises(StorageError, match="codes are written to a folder"):
        write_codes(honest.url, manifest, encode, config={}, made_from=made_from, facts={})
    record = write_codes(tmp_path / "codes", manifest, encode, config={}, made_from=made_from, facts={})
    assert record["n_clips"] == sum(p % 3 + 1 for p in range(len(manifest.segments)))
    upload_tree(tmp_path / "codes", honest.root)
    found = open_manifest(honest.url, kind="codes")
    same(found, open_manifest(tmp_path / "codes", kind="codes"))
    assert found.segments["n_clips"].tolist() == [p % 3 + 1 for p in range(len(manifest.segments))]
    for row in found.segments.itertuples():
        assert row.parts.tolist() == [row.n_bytes]
    assert found.shard_facts(0).n_bytes == shard_path(tmp_path / "codes", 0).stat().st_size


@pytest.mark.parametrize("at_url", [False, True])
def test_an_index_that_is_not_the_root_records_is_refused(honest, data, tmp_path, at_url):
    """Harmless to look at: one label of one row has another letter."""
    root = tmp_path / "d"
    shutil.copytree(data, root)
    table = pq.read_table(root / "index.parquet")
    at = table.schema.get_field_index("split")
    values = ["trial", *table["split"].to_pylist()[1:]]
    pq.write_table(table.set_column(at, "split", pa.array(values)), root / "index.parquet")
    if at_url:
        upload_tree(root, honest.root)
    with pytest.raises(ShardError, match="the index is damaged: its checksum differs"):
        open_manifest(honest.url if at_url else root)


@pytest.mark.parametrize(
    "value",
    [
        {"shards": {"n_bytes": [1], "sha256": ["0" * 64]}},
        {"shards": [1, 2]},
        {"shards": {"n_bytes": ["1"] * 5, "sha256": ["../../etc"] * 5}},
        {"index_sha256": 7},
    ],
)
def test_facts_that_are_none_are_refused(data, tmp_path, value):
    shutil.copytree(data, tmp_path / "d")
    path = tmp_path / "d" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **value}))
    with pytest.raises(ShardError, match="root record is damaged"):
        open_manifest(tmp_path / "d")


def test_what_is_not_there_or_may_not_be_read(remote, data, monkeypatch):
    with pytest.raises(StorageError, match=r"no root record[\s\S]*dataset\.json"):
        open_manifest(remote.url)
    with pytest.raises(StorageError, match="no such bucket"):
        open_manifest("s3://no-such-bucket/data")
    upload_tree(data, remote.root)
    remote.root.delete("index.parquet")
    with pytest.raises(StorageError, match="no such object") as caught:
        open_manifest(remote.url)
    assert "index.parquet" in str(caught.value)


def test_bytes_of_an_index_do_not_depend_on_the_tables_it_comes_in(data, tmp_path):
    """Each group of rows is full, and pyarrow reads what was given."""
    some = pq.read_table(data / "index.parquet")
    n = 2 * ROW_GROUP + 77
    long = pa.concat_tables([some] * (n // len(some) + 1)).slice(0, n)
    cuts = [0, 1, 1, ROW_GROUP, ROW_GROUP + 5, n]
    digests = set()
    for tables in ([long], [long.slice(a, b - a) for a, b in itertools.pairwise(cuts)]):
        digests.add(write_index(tmp_path, tables))
        assert digests == {hashlib.sha256((tmp_path / "index.parquet").read_bytes()).hexdigest()}
    timeless = ["onset_s", "duration_s"]  # NaN here, which equals nothing
    assert pq.read_table(tmp_path / "index.parquet").drop_columns(timeless).equals(long.drop_columns(timeless))
    meta = pq.read_metadata(tmp_path / "index.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [ROW_GROUP, ROW_GROUP, 77]
    assert pq.read_schema(tmp_path / "index.parquet").names == list(COLUMNS)


def test_paths_of_shards_are_those_of_their_place(tmp_path):
    assert shard_path(tmp_path, 7) == tmp_path / "shards" / "000007.tar"
    assert str(marker_path(open_root("s3://b/p"), 1_234_567)) == "s3://b/p/shards/1234567.json"
    assert str(shard_path("http://h/p", 1)) == "http://h/p/shards/000001.tar"
