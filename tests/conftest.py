import contextlib
import subprocess
import sys
import uuid
from dataclasses import dataclass, replace

import pytest

from vidbrain.sharding.plan import ShardConfig
from vidbrain.storage.objects import Root, open_root
from vidbrain.testing.servers import ChaosProxy, Server, moto_server, rclone_server
from vidbrain.testing.videos import toy_frames, write_video

BUCKET = "bucket"


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder of three real videos whose frames are known, but for H.264's rounding."""
    root = tmp_path_factory.mktemp("videos")
    for i, n in enumerate((150, 70, 231)):
        write_video(root / f"play-{i}.mp4", toy_frames(n, seed=i))
    return root


HOLD = """
import sys
from importlib import import_module
module, name = import_module(sys.argv[1]), sys.argv[2]
whole = getattr(module, name)
def held(*arguments, **options):
    print("inside", flush=True)
    sys.stdin.readline()
    return whole(*arguments, **options)
setattr(module, name, held)
from vidbrain.cli.app import run
sys.exit(run(sys.argv[3:]))
"""


@contextlib.contextmanager
def _holding(where, *arguments):
    """Run a command in a second process up to its first call of ``module.function``; let it go on afterwards."""
    words = [sys.executable, "-c", HOLD, *where.rsplit(".", 1), *map(str, arguments)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "inside\n"
        yield process
        process.communicate("\n" * 99)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def holding():
    return _holding


@pytest.fixture
def config():
    return ShardConfig(frame_size=32, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2, codec="zstd")


@pytest.fixture(scope="session")
def moto():
    with moto_server(BUCKET) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory):
    with rclone_server(tmp_path_factory.mktemp("rclone"), BUCKET) as server:
        yield server


@dataclass(frozen=True)
class Remote:
    """A fresh place on a real server, reached through a proxy that can spoil it."""

    server: Server
    proxy: ChaosProxy
    url: str

    @property
    def root(self) -> Root:
        return self.patient_for(20.0)

    def patient_for(self, deadline_s: float, stall_s: float = 3.0, url: str = "") -> Root:
        return replace(open_root(url or self.url), deadline_s=deadline_s, stall_s=stall_s)

    def data_requests(self, part: str = "") -> list:
        return [seen for seen in self.proxy.seen if seen.method == "GET" and part in seen.path]


def _remote(server, monkeypatch):
    with ChaosProxy(server.endpoint) as proxy:
        for name, value in server.environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        # A busy server is given less rest here than elsewhere.
        monkeypatch.setattr("vidbrain.storage.objects.FIRST_BUSY_PAUSE_S", 0.05)
        yield Remote(server, proxy, f"s3://{BUCKET}/{uuid.uuid4().hex}/deep")


@pytest.fixture(params=["moto", "rclone"])
def remote(request, monkeypatch):
    """Each of the two servers."""
    yield from _remote(request.getfixturevalue(request.param), monkeypatch)


@pytest.fixture
def honest(moto, monkeypatch):
    """The server that answers ranges and conditions as the protocol says."""
    yield from _remote(moto, monkeypatch)


@pytest.fixture
def hostile(rclone, monkeypatch):
    """The server that checks signatures, knows no conditions, and calls a range a whole object."""
    yield from _remote(rclone, monkeypatch)
