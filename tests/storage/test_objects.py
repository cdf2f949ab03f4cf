import http.server
import itertools
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback

import boto3
import numpy as np
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from vidbrain.errors import StorageError
from vidbrain.storage.files import NoRangesError, ObjectChangedError, ObjectExistsError, ObjectMissingError
from vidbrain.storage.objects import coalesce, open_root
from vidbrain.storage.roots import find_json, read_bytes
from vidbrain.testing.servers import Fault

BUCKET = "bucket"
DATA = np.random.default_rng(0).bytes(300_000)
SPANS = [(250_000, 260_000), (0, 100), (200, 300), (299_990, 300_000), (5, 5)]


def vanilla(server):
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )


def test_objects_are_those_that_another_client_sees(remote):
    client, prefix = vanilla(remote.server), remote.url.removeprefix(f"s3://{BUCKET}/")
    remote.root.put("a/ours b.bin", DATA)
    assert client.get_object(Bucket=BUCKET, Key=f"{prefix}/a/ours b.bin")["Body"].read() == DATA
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/theirs", Body=DATA[:10])
    assert remote.root.get("theirs") == DATA[:10]
    assert [(found.key, found.n_bytes) for found in remote.root.list()] == [("a/ours b.bin", 300_000), ("theirs", 10)]
    assert [found.key for found in remote.root.list("a")] == ["a/ours b.bin"]
    assert remote.root.missing(["theirs", "a", "a/ours b.bin"]) == ["a"]
    remote.root.delete("theirs")
    remote.root.delete("theirs")
    assert not remote.root.exists("theirs")
    with pytest.raises(ObjectMissingError, match="no such object"):
        remote.root.get("theirs")


def test_a_few_of_many_and_the_place_above(remote, tmp_path):
    for root in (remote.root, open_root(tmp_path)):
        for name in ("a/1", "a/2", "a/3", "b"):
            root.put(name, b"x")
        assert len(root.list(limit=2)) == 2
        assert len(root.list("a", limit=10)) == 3
        assert (root / "a" / "1").parent == root / "a"
        assert find_json(root, "none") is None
        with pytest.raises(StorageError, match="not valid JSON"):
            find_json(root, "b")
        assert read_bytes(root / "a" / "1") == b"x"
    with pytest.raises(StorageError, match="nothing above a bucket"):
        assert open_root("s3://bucket").parent


def test_folders_have_the_same_manners(tmp_path):
    root = open_root(tmp_path)
    root.put("a/b", DATA)
    assert root.get_ranges("a/b", SPANS) == [DATA[a:b] for a, b in SPANS]
    assert root.get_suffix("a/b", 7) == DATA[-7:]
    (tmp_path / "half.part-0").write_bytes(b"unfinished")
    assert [(found.key, found.n_bytes) for found in root.list()] == [("a/b", 300_000)]
    etag = root.head("a/b").etag
    root.put("a/b", b"new")
    with pytest.raises(ObjectChangedError):
        root.get("a/b", etag=etag)
    root.put("a/b", b"new", if_absent=True)
    with pytest.raises(ObjectExistsError):
        root.put("a/b", b"other", if_absent=True)
    assert root.get("a/b") == b"new"
    with pytest.raises(ObjectMissingError):
        root.head("a")
    with pytest.raises(StorageError, match="cannot be the name"):
        root.get("../a")


def test_ranges_are_exact_and_neighbours_come_in_one_request(honest):
    honest.root.put("x", DATA)
    honest.proxy.clear()
    found = honest.root.get_ranges("x", [(0, 100), (200, 300), (290_000, 300_000)])
    assert found == [DATA[:100], DATA[200:300], DATA[290_000:]]
    assert sorted(seen.range for seen in honest.data_requests()) == ["bytes=0-299", "bytes=290000-299999"]
    assert honest.root.get_suffix("x", 10) == DATA[-10:]


def test_ranges_are_exact_where_the_server_gives_none(hostile):
    hostile.root.put("x", DATA)
    assert hostile.root.get_ranges("x", SPANS) == [DATA[a:b] for a, b in SPANS]
    assert hostile.root.get_suffix("x", 10) == DATA[-10:]


def test_a_range_beyond_the_end_is_an_error_not_fewer_bytes(remote):
    remote.root.put("x", DATA[:50])
    with pytest.raises(StorageError, match="ends before byte 60"):
        remote.root.get_range("x", 40, 60)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200))), st.integers(0, 20))
def test_joined_ranges_hold_all_and_lie_apart(spans, gap):
    joined = coalesce(spans, gap)
    wanted = {i for start, stop in spans for i in range(start, stop)}
    held = [i for start, stop in joined for i in range(start, stop)]
    assert wanted <= set(held)
    assert len(held) == len(set(held))
    assert all(b[0] - a[1] > gap for a, b in itertools.pairwise(joined))
    # Every end is one that was asked for: nothing is read beyond.
    assert {i for span in joined for i in span} <= {i for span in spans for i in span}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503, code="SlowDown", times=3),
        Fault("status", status=500, code="InternalError", times=2),
        Fault("status", status=429, code="TooManyRequests"),
        Fault("drop", times=2),
        Fault("reset", after_bytes=100_000, times=2),
        Fault("truncate", after_bytes=100_000, times=2),
        Fault("stall", after_bytes=100_000),
        Fault("latency", delay_s=0.3),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_what_passes_is_waited_for(remote, fault):
    remote.root.put("x", DATA)
    root = remote.patient_for(20.0, stall_s=0.5)
    remote.proxy.inject(Fault(**{**vars(fault), "method": "GET"}))
    assert root.get("x") == DATA
    remote.proxy.inject(Fault(**{**vars(fault), "method": "GET"}))
    assert root.get_range("x", 1000, 200_000) == DATA[1000:200_000]


@pytest.mark.parametrize("kind", ["drop", "status", "latency"])
def test_writing_is_repeated_too(remote, kind):
    remote.proxy.inject(Fault(kind, method="PUT", times=2, delay_s=1.0))
    remote.patient_for(20.0, stall_s=0.3).put("x", DATA)
    assert remote.root.get("x") == DATA


def test_first_come_stays(remote):
    remote.root.put("x", b"first", if_absent=True)
    remote.root.put("x", b"first", if_absent=True)
    with pytest.raises(ObjectExistsError):
        remote.root.put("x", b"second", if_absent=True)
    assert remote.root.get("x") == b"first"
    # The server took it, and its answer was lost: asked again, it says that there is one.
    remote.proxy.inject(Fault("drop", method="PUT"))
    remote.root.put("y", b"mine", if_absent=True)
    assert remote.root.get("y") == b"mine"


def test_a_second_writer_is_refused_by_the_server_itself(honest):
    honest.root.put("x", b"first")
    # Hidden from the question before, as if it had come in between.
    honest.proxy.inject(Fault("status", method="GET", status=404, code="NoSuchKey"))
    with pytest.raises(ObjectExistsError):
        honest.root.put("x", b"second", if_absent=True)
    assert honest.root.get("x") == b"first"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", times=None), "too busy, .* times"),
        (Fault("status", status=500, code="InternalError", times=None), "has a fault"),
        (Fault("stall", after_bytes=10, times=None), "does not answer"),
        (Fault("truncate", after_bytes=10, times=None), "connection breaks"),
        (Fault("status", status=403, code="AccessDenied", times=None), "no permission"),
        (Fault("status", status=403, code="ExpiredToken", times=None), "credentials are refused"),
        (Fault("status", status=301, code="PermanentRedirect", times=None), "another region"),
        (Fault("status", status=507, code="InsufficientStorage", times=None), "full"),
        (Fault("status", status=400, code="QuotaExceeded", times=None), "full"),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else "",
)
def test_what_does_not_pass_is_one_clear_error(honest, fault, message):
    honest.root.put("x", DATA)
    honest.proxy.inject(Fault(**vars(fault)))
    with pytest.raises(StorageError, match=message) as caught:
        honest.patient_for(1.0, stall_s=0.3).get("x")
    assert caught.value.where == f"{honest.url}/x"
    # Under --debug too: nothing of the library below, whose texts hold what the server said.
    assert "obstore" not in "".join(traceback.format_exception(caught.value)).replace("vidbrain", "")
    assert caught.value.__cause__ is None
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)


def test_wrong_credentials_are_named_and_not_shown(hostile, monkeypatch):
    hostile.root.put("x", DATA)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    for call in (hostile.root.get, hostile.root.head, hostile.root.delete):
        with pytest.raises(StorageError, match=r"credentials are refused|no permission") as caught:
            call("x")
        shown = "".join(traceback.format_exception(caught.value))
        assert "wrong-secret-value" not in shown
        assert hostile.server.access_key not in str(caught.value)
    with pytest.raises(StorageError, match="credentials are refused"):
        hostile.root.list()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StorageError, match=r"credentials are refused \(403 InvalidAccessKeyId\)"):
        hostile.root.put("x", b"")


def test_a_missing_bucket_is_not_a_missing_object(remote):
    root = remote.patient_for(20.0, url="s3://no-such-bucket/a")
    for call in (lambda: root.get("x"), lambda: root.put("x", b""), root.list):
        with pytest.raises(StorageError, match="no such bucket") as caught:
            call()
        assert not isinstance(caught.value, ObjectMissingError)


def test_a_server_that_is_not_there(monkeypatch, moto):
    for name, value in moto.environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="cannot be reached, 4 times"):
        open_root(f"s3://{BUCKET}").get("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.1")  # reserved for documentation: nobody is there
    with pytest.raises(StorageError, match="unencrypted http"):
        open_root(f"s3://{BUCKET}").get("x")


def test_no_credentials_at_all(monkeypatch, moto):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    # Where a cloud would be asked for the machine's own.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="no credentials were found") as caught:
        open_root(f"s3://{BUCKET}").get("x")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_an_azure_account_that_is_not_named(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StorageError, match="do not fit together"):
        open_root("az://container/a").get("x")


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A plain web server, which knows no ranges and lists nothing."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_web_server_is_read_only(web, tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x").write_bytes(DATA)
    root = open_root(f"{web}/a b")
    assert root.get("x") == DATA
    assert root.get_ranges("x", SPANS) == [DATA[a:b] for a, b in SPANS]
    assert root.get_suffix("x", 5) == DATA[-5:]
    monkeypatch.setattr("vidbrain.storage.objects.WHOLE_BYTES", 1000)
    with pytest.raises(NoRangesError, match="whole objects only"):
        root.get_range("x", 0, 10)
    with pytest.raises(ObjectMissingError):
        root.get("y")
    with pytest.raises(StorageError, match="read only"):
        root.put("x", b"")
    with pytest.raises(StorageError, match="cannot list"):
        root.list()


def test_a_handle_travels_to_a_new_process(honest):
    honest.root.put("x", DATA)
    assert pickle.loads(pickle.dumps(honest.root)) == honest.root
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(honest.root.get, ("x",)) == DATA


def test_a_forked_process_says_so_and_does_not_hang(honest):
    honest.root.put("x", DATA)
    script = textwrap.dedent(f"""
        import os
        from vidbrain.errors import StorageError
        from vidbrain.storage.objects import open_root
        root = open_root({honest.url!r})
        if os.fork() == 0:  # before the first use: a process of its own
            print(len(root.get("x")), flush=True)
            os._exit(0)
        os.wait()
        root.get("x")
        if os.fork() == 0:
            try:
                root.get("x")
            except StorageError as error:
                print(error.message, "|", error.hint, flush=True)
            os._exit(0)
        os.wait()
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    first, second = done.stdout.splitlines()
    assert first == str(len(DATA))
    assert "before this process was forked" in second
    assert "spawn" in second


def test_importing_loads_no_client():
    code = "import sys, vidbrain.storage.objects, vidbrain.storage.trees; print('obstore' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"
