"""The servers and the proxy do what other tests rely on; asked by the standard library's own client."""

import contextlib
import http.client
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from vidbrain.errors import MissingExtraError
from vidbrain.testing import servers
from vidbrain.testing.servers import ChaosProxy, Fault, moto_server, rclone_server

BODY = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def server():
    with moto_server("bucket") as running:
        ask(running.endpoint, "PUT", "/bucket?acl", headers={"x-amz-acl": "public-read"})
        ask(running.endpoint, "PUT", "/bucket/x", BODY, {"x-amz-acl": "public-read"})
        yield running


@pytest.fixture
def proxy(server):
    with ChaosProxy(server.endpoint) as running:
        yield running


def ask(endpoint, method, path, body=None, headers=None, timeout=10):
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_the_proxy_changes_nothing_that_it_is_not_told_to(server, proxy):
    status, headers, body = ask(proxy.endpoint, "GET", "/bucket/x")
    direct = ask(server.endpoint, "GET", "/bucket/x")
    assert (status, body, headers["ETag"]) == (200, BODY, direct[1]["ETag"])
    assert ask(proxy.endpoint, "GET", "/bucket/x", headers={"Range": "bytes=5-9"})[2] == BODY[5:10]
    assert ask(proxy.endpoint, "HEAD", "/bucket/x")[1]["Content-Length"] == str(len(BODY))
    assert [(s.method, s.range, s.n_bytes) for s in proxy.seen] == [
        ("GET", None, len(BODY)),
        ("GET", "bytes=5-9", 5),
        ("HEAD", None, 0),
    ]


def test_faults_hit_whom_they_name_as_often_as_they_say(proxy):
    proxy.inject(Fault("status", method="GET", path="/x", times=2, retry_after_s=7))
    assert ask(proxy.endpoint, "HEAD", "/bucket/x")[0] == 200
    for _ in range(2):
        status, headers, body = ask(proxy.endpoint, "GET", "/bucket/x")
        assert (status, headers["Retry-After"]) == (503, "7")
        assert b"<Code>SlowDown</Code>" in body
    assert ask(proxy.endpoint, "GET", "/bucket/x")[0] == 200
    proxy.inject(Fault("status", times=None))
    proxy.clear()
    assert ask(proxy.endpoint, "GET", "/bucket/x")[0] == 200


def test_faults_hit_the_share_that_they_say_and_the_same_requests_for_the_same_seed(server):
    found = []
    for seed in (3, 3, 4):
        with ChaosProxy(server.endpoint, seed=seed) as proxy:
            proxy.inject(
                Fault("status", times=None, share=0.2), Fault("status", status=500, code="x", times=None, share=0.3)
            )
            found.append([ask(proxy.endpoint, "GET", "/bucket/x")[0] for _ in range(150)])
            assert [seen.fault for seen in proxy.seen] == [None if status == 200 else "status" for status in found[-1]]
    assert found[0] == found[1] != found[2]
    for statuses in found:
        # Four deviations of a binomial draw, and half of one for chance.
        assert statuses.count(503) == pytest.approx(30, abs=20)
        assert statuses.count(500) == pytest.approx(45, abs=23)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("drop", (http.client.RemoteDisconnected, ConnectionResetError)),
        ("truncate", http.client.IncompleteRead),
        ("reset", ConnectionResetError),
        ("stall", TimeoutError),
    ],
)
def test_broken_answers_break_as_they_are_called(proxy, kind, error):
    proxy.inject(Fault(kind, after_bytes=100))
    with pytest.raises(error):
        ask(proxy.endpoint, "GET", "/bucket/x", timeout=0.3 if kind == "stall" else 10)


def test_subtle_faults(server, proxy):
    proxy.inject(Fault("flip", method="GET"), Fault("stale-etag"))
    body = ask(proxy.endpoint, "GET", "/bucket/x")[2]
    assert sum((a ^ b).bit_count() for a, b in zip(body, BODY, strict=True)) == 1
    assert ask(proxy.endpoint, "GET", "/bucket/x")[1]["ETag"] != ask(proxy.endpoint, "GET", "/bucket/x")[1]["ETag"]
    proxy.inject(Fault("flip", method="PUT"))
    ask(proxy.endpoint, "PUT", "/bucket/y", BODY, {"x-amz-acl": "public-read"})
    assert ask(server.endpoint, "GET", "/bucket/y")[2] != BODY


@pytest.mark.parametrize("start", ["moto_server()", "rclone_server(sys.argv[1])"])
def test_a_server_ends_with_the_process_that_started_it(tmp_path, start):
    code = (
        "import sys, time; from vidbrain.testing.servers import moto_server, rclone_server\n"
        f"with {start} as server: print(server.endpoint, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        endpoint = process.stdout.readline().strip()
        answered = ask(endpoint, "GET", "/")[0]
        process.kill()
    assert answered in (200, 400, 403)  # unsigned: what it says is of no interest here
    for _ in range(100):
        try:
            ask(endpoint, "GET", "/")
        except (OSError, http.client.HTTPException):
            return
        time.sleep(0.1)
    pytest.fail("the server is still there")


def test_a_missing_server_names_its_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="moto") as caught, moto_server():
        pass
    assert "vidbrain[test]" in caught.value.hint
    monkeypatch.setattr(servers.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="rclone"), rclone_server(tmp_path):
        pass
