"""Outputs that cannot be: each is one clear error, before anything is decoded where that can be known."""

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from vidbrain.cli.app import run
from vidbrain.errors import ConfigError, ResumeError, ShardError, StorageError
from vidbrain.sharding.orphans import collect
from vidbrain.sharding.target import target_of
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.objects import open_root
from vidbrain.storage.trees import upload_tree
from vidbrain.testing.servers import Fault
from vidbrain.testing.videos import toy_frames, write_video


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def never(monkeypatch):
    """Decoding would be too late."""

    def decoded(*_):
        raise AssertionError("a recording was decoded")

    monkeypatch.setattr("vidbrain.sharding.writer.spool_recordings", decoded)


def refused(source, url, capsys):
    assert run(["shard", str(source), "--out", url, "--size", "100", "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err


def test_a_bucket_that_does_not_exist(remote, videos, capsys, never, cache):
    assert "there is no such bucket" in refused(videos, "s3://no-such-bucket/data", capsys)
    assert not (cache / "vidbrain" / "work").exists()


def test_credentials_that_are_wrong(hostile, videos, capsys, never, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-is-wrong")
    said = refused(videos, hostile.url, capsys)
    assert "the credentials are refused" in said
    assert "hunter2" not in said


def test_an_output_that_may_be_read_and_not_written(honest, videos, capsys, never):
    honest.proxy.inject(Fault("status", method="PUT", status=403, code="AccessDenied", times=None))
    assert "no permission" in refused(videos, honest.url, capsys)
    assert not honest.root.list()


def test_a_server_that_is_not_there_and_one_that_is_read_only(videos, capsys, never, monkeypatch):
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in refused(videos, "s3://bucket/data", capsys)
    assert "a web server is read only" in refused(videos, "http://127.0.0.1:9/data", capsys)


def test_a_place_that_holds_something_else(remote, videos, config, never):
    remote.root.put("thesis.docx", b"mine")
    with pytest.raises(StorageError, match=r"there is thesis\.docx, but no plan\.json"):
        write_shards(videos, remote.url, config)
    assert [found.key for found in remote.root.list()] == ["thesis.docx"]


def test_a_plan_that_is_damaged(honest, videos, config, never):
    honest.root.put("plan.json", json.dumps({"config": {}, "made_from": {}, "recordings": {}}).encode())
    with pytest.raises(StorageError, match="the record of the plan is damaged"):
        write_shards(videos, honest.url, config)


def test_a_push_to_the_place_that_is_unfinished(honest, videos, config, tmp_path):
    write_shards(videos, tmp_path / "data", config)
    honest.proxy.inject(Fault("status", method="PUT", path="dataset.json", status=403, code="AccessDenied"))
    with pytest.raises(StorageError, match="no permission"):
        upload_tree(tmp_path / "data", honest.root)
    with pytest.raises(StorageError, match="a push or pull to this place is unfinished"):
        write_shards(videos, honest.url, config)
    upload_tree(tmp_path / "data", honest.root)
    n_requests = len(honest.proxy.seen)
    write_shards(videos, honest.url, config)
    assert not [seen for seen in honest.proxy.seen[n_requests:] if seen.method == "PUT"]


@pytest.mark.parametrize("name", ["with.dots.v1", "a b  c", "données/日本", "..hidden..", "-dash", "100%", "a+b&c=d"])
def test_names_of_places_are_kept(remote, videos, config, name):
    url = f"{remote.url}/{name}"
    record = write_shards(videos, url, config)
    found = {item.key.removeprefix(f"{name}/") for item in remote.root.list()}
    assert {"dataset.json", "index.parquet", "plan.json", "shards/000000.tar"} <= found
    assert len(found) == 3 + 2 * record["n_shards"]
    assert collect(url) == []


@pytest.mark.parametrize(
    "url", ["s3://bucket/a/../b", "s3://bucket/..", "s3://bucket/a//b", "s3://KEY:hunter2@bucket/a"]
)
def test_names_that_lead_elsewhere_or_hold_a_secret_are_refused(videos, capsys, never, url):
    assert "hunter2" not in refused(videos, url, capsys)


def test_what_cannot_be_is_said_before_the_store_is_touched(honest, videos, config, capsys):
    with pytest.raises(ShardError, match=r"asks for 10,000 frames, the source holds 451"):
        write_shards(videos, honest.url, replace(config, size="10k"))
    shard = ["shard", str(videos), "--out", honest.url]
    assert run([*shard, "--codec", "av1"]) == 2
    assert "zstd" in capsys.readouterr().err
    assert run([*shard, "--frame-size", "4"]) == 1
    assert "between 8 and 4096" in capsys.readouterr().err
    assert not [seen for seen in honest.proxy.seen if seen.method == "PUT"]
    with pytest.raises(ConfigError, match="--work is for an output at a URL"):
        target_of("data", "elsewhere")


def test_a_source_that_changed_since_the_plan(honest, videos, config, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(videos, source)
    honest.proxy.inject(Fault("status", method="PUT", path=".tar", status=403, code="AccessDenied", times=None))
    with pytest.raises(StorageError, match="no permission"):
        write_shards(source, honest.url, config)
    honest.proxy.clear()
    write_video(source / "play-1.mp4", toy_frames(71, seed=1))
    with pytest.raises(ResumeError, match="play-1 had 70 frames"):
        write_shards(source, honest.url, config)


# A disk of 1 MiB that somebody else fills while recordings are decoded; then there is room again.
FULL = """
import hashlib, os, shutil, subprocess, sys
from pathlib import Path
source, disk, out = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
from vidbrain.errors import StorageError
from vidbrain.sharding import writer
from vidbrain.sharding.plan import ShardConfig
from vidbrain.storage.objects import open_root
from vidbrain.storage.trees import upload_tree
settings = dict(frame_size=32, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2, codec="zstd")
check, filler = writer.check_writable, Path(disk) / "filler"

def checked(folder, n_bytes):
    check(folder, n_bytes)
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - 24_000))

writer.check_writable = checked
work = {"work": disk} if "://" in out else {}
try:
    writer.write_shards(source, out, ShardConfig(**settings), **work)
except StorageError as error:
    print(error.message)
root = open_root(out)
print(root.exists("dataset.json"), root.exists("shards/000000.json"))
writer.check_writable = check
filler.unlink()
writer.write_shards(source, out, ShardConfig(**settings), **work)
for found in root.list():
    print(found.key, hashlib.sha256(root.get(found.key)).hexdigest())
"""


def has_namespaces():
    trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(trial, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not has_namespaces(), reason="this system lets nobody mount a small disk of his own")
@pytest.mark.parametrize("remote_output", [False, True])
def test_a_disk_that_is_full_in_the_middle(honest, videos, config, tmp_path, remote_output):
    (tmp_path / "disk").mkdir()
    out = honest.url if remote_output else str(tmp_path / "disk" / "data")
    script = [sys.executable, "-c", FULL, str(videos), str(tmp_path / "disk"), out]
    done = subprocess.run(["unshare", "-rm", *script], capture_output=True, text=True, check=True)
    error, whole, *files = done.stdout.splitlines()
    assert (error, whole) == ("the disk is full", "False False")
    write_shards(videos, tmp_path / "alone", config)
    alone = open_root(tmp_path / "alone")
    assert files == [f"{item.key} {hashlib.sha256(alone.get(item.key)).hexdigest()}" for item in alone.list()]


def test_files_that_may_not_grow(videos, config, tmp_path):
    """A limit of the system on the length of a file: what it stops has no final name."""
    script = textwrap.dedent(f"""
        import resource, sys
        from vidbrain.errors import StorageError
        from vidbrain.sharding.plan import ShardConfig
        from vidbrain.sharding.writer import write_shards
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            write_shards({str(videos)!r}, sys.argv[1], {config!r})
        except StorageError as error:
            print(error.message)
    """)
    root = tmp_path / "d"
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)
    assert "may not be so large" in done.stdout
    assert not (root / "dataset.json").exists()
    assert not list((root / "shards").iterdir())
    write_shards(videos, root, config)
    write_shards(videos, tmp_path / "alone", config)
    assert {p.name: p.read_bytes() for p in (root / "shards").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "alone" / "shards").iterdir()
    }
