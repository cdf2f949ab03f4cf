import http.server
import pickle
import threading

import numpy as np
import obstore.store
import pytest
import xarray as xr
import zarr
import zarr.storage

from vidbrain import cluster
from vidbrain.bold.parts import array_sha256
from vidbrain.bold.store import KIND as BOLD
from vidbrain.bold.store import open_bold
from vidbrain.errors import StorageError
from vidbrain.features.store import KIND as FEATURES
from vidbrain.features.store import open_features, write_run
from vidbrain.storage.info import write_info
from vidbrain.storage.objects import open_root
from vidbrain.storage.remote_zarr import read_columns as read_remote_columns
from vidbrain.storage.trees import upload_tree
from vidbrain.storage.zarrs import open_dataset, read_columns, write_dataset
from vidbrain.testing.servers import Fault

RUNS = ("sub-01_task-toy_run-1", "sub-01_task-toy_run-2")
N_TRS, N_VOXELS, CHUNK, SHARD = 30, 700, 32, 256


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A BOLD store in the layout of the real one, only smaller, and features."""
    root = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    records = []
    for run in RUNS:
        bold = rng.standard_normal((N_TRS, N_VOXELS)).astype(np.float32)
        bold[:, 300:400] = 0  # as dead voxels are
        data = xr.Dataset(
            {"bold": (("tr", "voxel"), bold), "dead": ("voxel", np.zeros(N_VOXELS, bool))},
            coords={"time_s": ("tr", np.arange(N_TRS) * 1.5), **dict.fromkeys("ijk", ("voxel", np.arange(N_VOXELS)))},
        )
        layout = {"bold": (N_TRS, CHUNK)}, {"bold": (N_TRS, SHARD)}
        write_dataset(root / "bold" / f"{run}.zarr", data, chunks=layout[0], shards=layout[1])
        records.append({"label": run, "n_trs": N_TRS, "sha256": array_sha256(bold)})
        features = rng.standard_normal((N_TRS, 5)).astype(np.float32)
        attributes = {"tr_s": 1.5, "fingerprint": "f"}
        valid = np.arange(N_TRS) > 2
        write_run(root / "features", "toy", run, features=features, valid=valid, attributes=attributes)
    facts = {"runs": records, "n_voxels": N_VOXELS, "tr_s": 1.5, "shape": [700, 1, 1]}
    write_info(root / "bold", BOLD, config={}, made_from={}, facts={**facts, "affine": np.eye(4).tolist()})
    config = {"tr_s": 1.5, "layers": [{"name": "toy"}]}
    write_info(root / "features", FEATURES, config=config, made_from={}, facts={"runs": list(RUNS)})
    return root


@pytest.fixture
def bucket(remote, stores):
    upload_tree(stores / "bold", remote.root / "bold")
    upload_tree(stores / "features", remote.root / "features")
    remote.proxy.clear()
    return remote


SLICES = [slice(0, 64), slice(40, 90), slice(200, 300), slice(0, 256), slice(290, 420), slice(500, 700), slice(None)]


def test_a_bold_store_at_a_url_is_the_one_in_the_folder(bucket, stores):
    here, there = open_bold(stores / "bold"), open_bold(f"{bucket.url}/bold")
    assert there.runs == here.runs
    for voxels in SLICES:
        np.testing.assert_array_equal(there.read(RUNS[1], voxels), here.read(RUNS[1], voxels))
    xr.testing.assert_identical(there.open(RUNS[0]).load(), here.open(RUNS[0]).load())
    np.testing.assert_array_equal(there.ijk, here.ijk)
    there.verify(RUNS[0])


def test_features_at_a_url_are_those_in_the_folder(bucket, stores):
    here, there = open_features(stores / "features"), open_features(f"{bucket.url}/features")
    assert (there.layers, there.runs, there.fingerprint) == (here.layers, here.runs, here.fingerprint)
    xr.testing.assert_identical(there.read("toy", RUNS[0]), here.read("toy", RUNS[0]))


def test_features_without_their_chunk_are_an_error(honest, stores):
    upload_tree(stores / "features", honest.root)
    honest.root.delete(f"toy/{RUNS[0]}.zarr/features/c/0/0")
    with pytest.raises(StorageError, match="features are damaged: without its chunk"):
        open_features(honest.url).read("toy", RUNS[0])
    assert open_features(honest.url).read("toy", RUNS[1]).sizes["tr"] == N_TRS


@pytest.fixture
def counted(honest, stores):
    upload_tree(stores / "bold", honest.root / "bold")
    store = open_bold(f"{honest.url}/bold")
    honest.proxy.clear()
    return honest, store


@pytest.mark.parametrize(
    ("voxels", "n_index", "n_data"),
    [
        (slice(0, 128), 1, 1),  # four chunks of one Zarr shard
        (slice(10, 120), 1, 1),
        (slice(192, 320), 2, 2),  # over the border of two
        (slice(0, 256), 0, 1),  # a whole one
        (slice(0, 700), 0, 3),
        (slice(320, 320), 0, 0),
    ],
)
def test_a_block_of_voxels_is_few_requests(counted, voxels, n_index, n_data):
    remote, store = counted
    store.read(RUNS[0], voxels)
    asked = remote.data_requests("/bold/c/")
    index = [seen for seen in asked if (seen.range or "").startswith("bytes=-")]
    assert (len(index), len(asked) - len(index)) == (n_index, n_data)
    # How the array lies, and, as it is compressed, the consolidated metadata.
    assert len(remote.proxy.seen) == len(asked) + 2


def test_zarr_by_itself_asks_for_each_chunk(counted):
    """The reason for `read_columns`; when this fails, zarr has learnt to join ranges, and it may go."""
    remote, store = counted
    upstream = obstore.store.S3Store(
        "bucket",
        prefix=remote.url.removeprefix("s3://bucket/") + f"/bold/{RUNS[0]}.zarr",
        client_options={"allow_http": True},
    )
    group = zarr.open_group(zarr.storage.ObjectStore(upstream, read_only=True), mode="r")
    remote.proxy.clear()
    found = group["bold"][:, :128]
    assert len(remote.data_requests("/bold/c/")) == 1 + 4
    np.testing.assert_array_equal(found, store.read(RUNS[0], slice(0, 128)))


def read_block(row):
    store, run, first = row
    return store.read(run, slice(first, first + 100))


def test_handles_travel_to_dask_workers(counted, stores):
    _, store = counted
    assert len(pickle.dumps(store)) < 5000
    rows = [(store, run, first) for run in RUNS for first in (0, 250)]
    here = open_bold(stores / "bold")
    with cluster.client("local", 2) as client:
        for position, block in client.run(read_block, rows):
            np.testing.assert_array_equal(block, read_block((here, *rows[position][1:])))


def test_a_spoilt_connection_changes_nothing(counted, stores):
    remote, store = counted
    for kind in ("status", "reset", "truncate", "drop"):
        remote.proxy.inject(Fault(kind, method="GET", after_bytes=100))
    expected = open_bold(stores / "bold").read(RUNS[0], slice(0, 128))
    np.testing.assert_array_equal(store.read(RUNS[0], slice(0, 128)), expected)


def test_a_failing_store_is_our_error_through_zarr_and_xarray(counted):
    remote, store = counted
    opened = store.open(RUNS[0])
    remote.proxy.inject(Fault("status", status=403, code="AccessDenied", times=None))
    for call in (lambda: opened["bold"].values, lambda: store.read(RUNS[0]), lambda: store.open(RUNS[0])):
        with pytest.raises(StorageError, match="no permission"):
            call()


def test_damaged_and_missing_parts_are_clear_errors(counted):
    remote, store = counted
    root = remote.root / "bold" / f"{RUNS[0]}.zarr"
    shard = root.get("bold/c/0/0")
    root.put("bold/c/0/0", shard[:-20] + bytes([shard[-20] ^ 1]) + shard[-19:])
    with pytest.raises(StorageError, match="index of a Zarr shard is damaged"):
        store.read(RUNS[0], slice(0, 64))
    root.put("bold/c/0/0", shard[:50] + bytes([shard[50] ^ 1]) + shard[51:])
    with pytest.raises(StorageError):
        store.verify(RUNS[0])
    root.put("bold/c/0/0", b"short")
    with pytest.raises(StorageError, match="shorter than its index"):
        store.read(RUNS[0], slice(0, 64))
    root.delete("bold/c/0/0")
    for voxels in (slice(0, 64), slice(0, 256)):
        with pytest.raises(StorageError, match="part of the array is missing"):
            store.read(RUNS[0], voxels)
    root.delete("zarr.json")
    with pytest.raises(StorageError, match=f"lacks {RUNS[0]}"):
        open_bold(remote.root / "bold")
    with pytest.raises(StorageError, match="no Zarr store"):
        open_dataset(root)
    with pytest.raises(StorageError, match="no finished bold artefact") as caught:
        open_bold(remote.root / "nowhere")
    assert "vidbrain push" in caught.value.hint
    with pytest.raises(StorageError, match="expected a features artefact, found 'bold'"):
        open_features(remote.root / "bold")


def test_other_layouts_are_read_as_zarr_reads_them(honest, tmp_path):
    values = np.arange(600, dtype=np.float32).reshape(20, 30)
    write_dataset(tmp_path / "x", xr.Dataset({"bold": (("tr", "voxel"), values)}), chunks={"bold": (7, 8)})
    write_info(tmp_path, BOLD, config={}, made_from={})
    upload_tree(tmp_path, honest.root)
    np.testing.assert_array_equal(read_columns(honest.root / "x", "bold", slice(5, 20)), values[:, 5:20])
    with pytest.raises(StorageError, match="cannot be read"):
        read_columns(honest.root / "x", "absent", slice(5))


def test_a_web_server_is_enough_to_read(stores, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(stores))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        here, there = open_bold(stores / "bold"), open_bold(f"{url}/bold")
        np.testing.assert_array_equal(there.read(RUNS[1], slice(40, 90)), here.read(RUNS[1], slice(40, 90)))
        features = open_features(f"{url}/features").read("toy", RUNS[0])
        xr.testing.assert_identical(features, open_features(stores / "features").read("toy", RUNS[0]))
        server.shutdown()


@pytest.mark.parametrize("seed", range(12))
def test_any_block_of_any_layout_is_what_was_written(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows, columns = (int(n) for n in rng.integers(1, 60, 2))
    chunks = tuple(int(n) for n in rng.integers(1, 12, 2))
    shards = tuple(int(n * k) for n, k in zip(chunks, rng.integers(1, 6, 2), strict=True))
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    # A chunk of nothing but NaN is empty in its shard; a shard of nothing else would be absent.
    empty = (slice(0, chunks[0]), slice(0, chunks[1]))
    if shards != chunks and rows > chunks[0] and columns > chunks[1]:
        values[empty] = np.nan
    dataset = xr.Dataset({"bold": (("tr", "voxel"), values)})
    write_dataset(tmp_path / "x", dataset, chunks={"bold": chunks}, shards={"bold": shards})
    root = open_root(tmp_path / "x")
    for start, stop in [*rng.integers(0, columns + 1, (8, 2)), (0, columns)]:
        found = read_remote_columns(root, "bold", slice(int(start), int(stop)))
        np.testing.assert_array_equal(found, values[:, start:stop])
    np.testing.assert_array_equal(read_remote_columns(root, "bold", slice(-5, None)), values[:, -5:])
