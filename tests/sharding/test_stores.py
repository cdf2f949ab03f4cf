"""Data sets written to a URL: the bytes of a folder, whatever the store does, and never whole before they are."""

import json
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.request
from dataclasses import replace

import pytest

from vidbrain import cluster
from vidbrain.cli.app import run
from vidbrain.errors import ResumeError, StorageError
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.orphans import collect, find_orphans
from vidbrain.sharding.repair import repair
from vidbrain.sharding.target import target_of
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.files import ObjectExistsError
from vidbrain.storage.objects import open_root
from vidbrain.testing.servers import Fault


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def expected(tmp_path_factory, videos):
    """What a folder would hold."""
    from vidbrain.sharding.plan import ShardConfig

    settings = {"frame_size": 32, "segment_frames": 32, "shard_frames": 128, "clip_frames": 8, "clip_step": 2}
    root = tmp_path_factory.mktemp("local") / "data"
    write_shards(videos, root, ShardConfig(codec="zstd", **settings))
    return tree(root)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def objects(root):
    root = open_root(root)
    return {found.key: root.get(found.key) for found in root.list()}


def test_the_bytes_are_those_of_a_folder_and_nothing_is_left_here(remote, videos, config, expected, cache):
    record = write_shards(videos, remote.url, config)
    assert objects(remote.url) == expected
    assert record == json.loads(expected["dataset.json"])
    assert not list((cache / "vidbrain" / "work").iterdir())
    n_requests = len(remote.proxy.seen)
    assert write_shards(videos, remote.url, config) == record
    assert all(seen.method in ("GET", "HEAD") for seen in remote.proxy.seen[n_requests:])
    assert verify(remote.url) == []
    assert find_orphans(remote.url) == []


def test_the_order_of_what_is_sent(honest, videos, config):
    """Plan, then each tar before its marker, then the index, then the root record; each looked at when it is there."""
    write_shards(videos, honest.url, config)
    written = [seen.path.partition("/deep/")[2] for seen in honest.proxy.seen if seen.method == "PUT"]
    assert written[0] == "plan.json"
    assert written[-2:] == ["index.parquet", "dataset.json"]
    numbers = [f"shards/{shard:06d}" for shard in range((len(written) - 3) // 2)]
    assert written[1:-2] == [f"{name}.{suffix}" for name in numbers for suffix in ("tar", "json")]
    for name in written[1:]:
        methods = [seen.method for seen in honest.proxy.seen if seen.path.endswith(f"/{name}") and seen.status < 300]
        assert "HEAD" in methods[methods.index("PUT") + 1 :]


def test_two_workers_write_the_same_bytes(honest, videos, config, expected):
    with cluster.client("local", 2) as client:
        write_shards(videos, honest.url, config, client=client)
        assert objects(honest.url) == expected
        assert verify(honest.url, client=client) == []


def test_growing_adds_shards_and_rewrites_none(honest, videos, config, tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (96, 200, 400))
    stamps = {}
    for size in ("96", "200", "all"):
        write_shards(videos, honest.url, replace(config, size=size))
        found = {item.key: item.etag for item in honest.root.list("shards")}
        assert stamps.items() <= found.items()
        n_put = {seen.path for seen in honest.proxy.seen if seen.method == "PUT"}
        assert not {path for path in n_put for name in stamps if path.endswith(name)}
        honest.proxy.clear()
        stamps = found
    write_shards(videos, tmp_path / "at-once", config)
    assert objects(honest.url) == tree(tmp_path / "at-once")
    with pytest.raises(ResumeError, match="more than size 96 asks for"):
        write_shards(videos, honest.url, replace(config, size="96"))


def test_large_tars_go_in_parts_and_an_equal_one_is_not_sent_again(remote, videos, config, expected, monkeypatch):
    monkeypatch.setattr("vidbrain.storage.transfers.PART_BYTES", 5000)
    for suffix in ("000001.tar", "000001.json"):  # first the parts of the tar, then its marker
        remote.proxy.inject(Fault("status", path=suffix, method="PUT", status=403, code="AccessDenied", times=2))
        with pytest.raises(StorageError, match="no permission"):
            write_shards(videos, remote.url, config)
        remote.proxy.clear()
    write_shards(videos, remote.url, config)
    sent = [seen.path for seen in remote.proxy.seen if seen.method in ("PUT", "POST") and "uploads" in seen.path]
    assert sent
    assert not [path for path in sent if "000000.tar" in path or "000001.tar" in path]
    assert objects(remote.url) == expected


STORM = [
    *(Fault("status", method=method, times=2) for method in ("PUT", "GET", "HEAD")),
    *(Fault(kind, method=method, after_bytes=700) for kind in ("reset", "truncate") for method in ("GET", "PUT")),
    *(Fault("drop", method=method, times=2) for method in ("PUT", "HEAD")),
    Fault("latency", delay_s=0.05, times=8),
    Fault("status", method="PUT", path=".tar", times=2, status=500, code="InternalError"),
    Fault("drop", method="PUT", path="dataset.json"),
]


def test_a_storm_changes_no_byte(remote, videos, config, expected):
    faults = [Fault(**vars(fault)) for fault in STORM]
    remote.proxy.inject(*faults)
    write_shards(videos, remote.url, config)
    remote.proxy.clear()
    assert not any(fault.times for fault in faults)  # it met them all
    assert objects(remote.url) == expected


@pytest.mark.parametrize(
    ("kind", "spoilt"),
    [
        *(("status", name) for name in ("000001.tar", "000001.json", "index.parquet", "dataset.json")),
        *(("drop", name) for name in ("000001.tar", "dataset.json")),
    ],
)
def test_what_cannot_be_sent_is_an_error_and_the_same_command_goes_on(
    remote, videos, config, expected, spoilt, kind, monkeypatch
):
    """The answer is lost every time, or there is none: never a data set that is marked whole and is not."""
    monkeypatch.setattr("vidbrain.sharding.target.open_root", lambda url: replace(open_root(url), deadline_s=1.0))
    remote.proxy.inject(Fault(kind, method="PUT", path=spoilt, times=None))
    with pytest.raises(StorageError, match=r"busy|breaks"):
        write_shards(videos, remote.url, config)
    remote.proxy.clear()
    held = objects(remote.url)
    # An answer that was lost may have been of a request that was done.
    assert ("dataset.json" in held) <= (held == expected)
    if "dataset.json" not in held:
        with pytest.raises(StorageError, match="no finished shards artefact"):
            open_manifest(remote.url)
    assert write_shards(videos, remote.url, config)
    assert objects(remote.url) == expected
    assert not target_of(remote.url).work.exists()


@pytest.mark.parametrize("spoilt", ["000001.tar", "000001.json", "index.parquet", "dataset.json"])
def test_what_arrives_damaged_does_not_stay(remote, videos, config, expected, spoilt):
    remote.proxy.inject(Fault("flip", method="PUT", path=spoilt))
    # rclone's client signs the body, so the server itself refuses what was changed.
    with pytest.raises(StorageError, match=r"does not hold what was sent|refuse"):
        write_shards(videos, remote.url, config)
    assert "dataset.json" not in objects(remote.url)
    write_shards(videos, remote.url, config)
    assert objects(remote.url) == expected


def test_another_machine_goes_on_and_trusts_what_is_there(honest, videos, config, expected, tmp_path):
    honest.proxy.inject(Fault("status", method="PUT", path="000002.tar", status=403, code="AccessDenied", times=None))
    with pytest.raises(StorageError, match="no permission"):
        write_shards(videos, honest.url, config, work=tmp_path / "first")
    honest.proxy.clear()
    write_shards(videos, honest.url, config, work=tmp_path / "second")
    assert objects(honest.url) == expected
    sent = {seen.path.rpartition("/")[2] for seen in honest.proxy.seen if seen.method == "PUT"}
    assert "000002.tar" in sent
    assert not sent & {"plan.json", "000000.tar", "000000.json", "000001.tar", "000001.json"}
    (left,) = (tmp_path / "first").iterdir()
    assert (left / "spool").is_dir()
    assert not list((tmp_path / "second").iterdir())


def test_two_machines_at_once_write_one_data_set(remote, videos, config, expected, tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from vidbrain.sharding.plan import ShardConfig
        from vidbrain.sharding.writer import write_shards
        write_shards({str(videos)!r}, sys.argv[1], {config!r}, work=sys.argv[2])
    """)
    remote.proxy.inject(Fault("latency", method="PUT", delay_s=0.05, times=None))
    both = [subprocess.Popen([sys.executable, "-c", script, remote.url, str(tmp_path / name)]) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert objects(remote.url) == expected


def test_work_folders_come_and_go_under_their_lock(tmp_path):
    """Two processes make and remove the same one as fast as they can: either is alone, or is told that it is not."""
    script = textwrap.dedent("""
        import sys
        from vidbrain.errors import StorageError
        from vidbrain.sharding.target import target_of
        target, n_alone = target_of("s3://bucket/data", sys.argv[1]), 0
        while n_alone < 100:
            try:
                with target.alone():
                    (target.work / "spool").mkdir()  # there is none that another one made
                    (target.work / "spool").rmdir()
                    n_alone += 1
            except StorageError as error:
                assert "another process" in error.message, error
    """)
    command = [sys.executable, "-c", script, str(tmp_path)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert not list(tmp_path.iterdir())


def test_two_commands_of_one_machine_are_refused(remote, videos, config):
    holder = "import sys, time; from vidbrain.storage.locks import locked\n"
    holder += "with locked(sys.argv[1]): print(1, flush=True); time.sleep(60)"
    work = target_of(remote.url).work
    with subprocess.Popen([sys.executable, "-c", holder, str(work)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        with pytest.raises(StorageError, match="another process writes here"):
            write_shards(videos, remote.url, config)
        process.kill()
    assert not remote.root.list()


def test_another_plan_is_refused_while_work_goes_on_and_after(honest, videos, config, monkeypatch):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (96, 200))
    small = replace(config, size="96")
    honest.proxy.inject(Fault("status", method="PUT", path="dataset.json", status=403, code="AccessDenied"))
    with pytest.raises(StorageError, match="no permission"):
        write_shards(videos, honest.url, small)
    before = objects(honest.url)
    with pytest.raises(ResumeError, match="seed was 0, is 7"):
        write_shards(videos, honest.url, replace(small, seed=7))
    # Which would be taken over in a folder, where a lock says that nobody works on it any more.
    with pytest.raises(ResumeError, match=r"unfinished data set of size 96 is there[\s\S]*--size 96"):
        write_shards(videos, honest.url, replace(config, size="200"))
    assert objects(honest.url) == before
    write_shards(videos, honest.url, small)
    with pytest.raises(ResumeError, match="frame_size was 32, is 16"):
        write_shards(videos, honest.url, replace(config, frame_size=16))
    assert not target_of(honest.url).work.exists()


def test_a_plan_that_was_changed_under_a_running_command_ends_it(honest, videos, config, monkeypatch):
    from vidbrain.sharding import writer

    whole = writer.write_index

    def disturbed(work, tables):
        record = json.loads(honest.root.get("plan.json"))
        record["config"]["seed"] = 7
        honest.root.put("plan.json", json.dumps(record).encode())
        return whole(work, tables)

    monkeypatch.setattr("vidbrain.sharding.writer.write_index", disturbed)
    with pytest.raises(ResumeError, match="another plan was begun there meanwhile"):
        write_shards(videos, honest.url, config)
    assert not honest.root.exists("dataset.json")


def test_a_shard_that_goes_while_others_are_made_is_missed(honest, videos, config, monkeypatch):
    from vidbrain.sharding import writer

    whole = writer.write_index

    def disturbed(work, tables):
        digest = whole(work, tables)
        honest.root.delete("shards/000001.tar")
        return digest

    monkeypatch.setattr("vidbrain.sharding.writer.write_index", disturbed)
    with pytest.raises(StorageError, match="shard 000001 is no longer there"):
        write_shards(videos, honest.url, config)
    assert not honest.root.exists("dataset.json")


def test_another_tar_under_the_name_is_never_replaced(remote, videos, config):
    remote.proxy.inject(Fault("status", method="PUT", path="000001.tar", status=403, code="AccessDenied", times=None))
    with pytest.raises(StorageError, match="no permission"):
        write_shards(videos, remote.url, config)
    remote.proxy.clear()
    remote.root.put("shards/000001.tar", b"made by another version")
    with pytest.raises(ObjectExistsError, match="another object already"):
        write_shards(videos, remote.url, config)
    assert remote.root.get("shards/000001.tar") == b"made by another version"
    assert not remote.root.exists("dataset.json")


@pytest.mark.parametrize("record", [None, b"not json"])
def test_what_was_spooled_for_another_plan_is_not_used(honest, videos, config, expected, record):
    """The data set was removed by hand, and begun anew with other settings."""
    honest.proxy.inject(Fault("status", method="PUT", path=".tar", status=403, code="AccessDenied", times=None))
    with pytest.raises(StorageError, match="no permission"):
        write_shards(videos, honest.url, replace(config, frame_size=16))
    assert (target_of(honest.url).work / "spool").is_dir()
    if record:
        (target_of(honest.url).work / "plan.json").write_bytes(record)
    honest.proxy.clear()
    honest.root.delete("plan.json")
    write_shards(videos, honest.url, config)
    assert objects(honest.url) == expected


def flip(root):
    row = open_manifest(root.url).segments.iloc[3]
    key = f"shards/{row['shard']:06d}.tar"
    data = bytearray(root.get(key))
    data[row["offset"] + 5] ^= 1
    root.put(key, bytes(data))
    return row["shard"]


def cut(root):
    root.put("shards/000001.tar", root.get("shards/000001.tar")[:1024])
    return 1


def lose(root):
    root.delete("shards/000002.tar")
    return 2


def unmark(root):
    root.delete("shards/000000.json")
    return 0


def scribble(root):
    root.put("shards/000000.json", b"[]")
    return 0


@pytest.mark.parametrize("damage", [flip, cut, lose, unmark, scribble])
def test_verify_names_the_damage_and_repair_restores_the_bytes(honest, videos, config, expected, damage):
    write_shards(videos, honest.url, config)
    shard = damage(honest.root)
    assert {found.shard for found in verify(honest.url)} == {shard}
    honest.proxy.clear()
    assert repair(honest.url, videos) == [shard]
    assert objects(honest.url) == expected
    touched = {seen.path.rpartition("/")[2] for seen in honest.proxy.seen if seen.method in ("PUT", "DELETE", "POST")}
    assert {name for name in touched if name.endswith(".tar")} == {f"{shard:06d}.tar"}
    assert "index.parquet" not in touched


def test_a_store_that_does_not_answer_is_no_damage(honest, videos, config, monkeypatch):
    """Else a repair would remove what is whole."""
    write_shards(videos, honest.url, config)
    before = objects(honest.url)
    for suffix in (".tar", ".json"):
        honest.proxy.inject(Fault("status", path=f"000001{suffix}", status=403, code="AccessDenied", times=None))
        with pytest.raises(StorageError, match="no permission"):
            verify(honest.url)
        with pytest.raises(StorageError, match="no permission"):
            repair(honest.url, videos)
        honest.proxy.clear()
        assert objects(honest.url) == before
    # Nor is a marker that cannot be read one that is not there.
    honest.root.delete("dataset.json")
    honest.proxy.inject(Fault("status", method="GET", path="000001.json", status=403, code="AccessDenied"))
    with pytest.raises(StorageError, match="no permission"):
        write_shards(videos, honest.url, config)
    honest.proxy.clear()
    write_shards(videos, honest.url, config)
    assert not [seen for seen in honest.proxy.seen if seen.method == "PUT" and "/shards/" in seen.path]
    assert objects(honest.url) == before


def test_gc_removes_what_no_shard_of_the_record_is(remote, videos, config, expected, cache):
    write_shards(videos, remote.url, config)
    for name in ("shards/000099.tar", "shards/000099.json", "skipped.json", "notes.txt"):
        remote.root.put(name, b"{}")
    work = target_of(remote.url).work
    (work / "spool").mkdir(parents=True)
    (work / "spool" / "x.bin").write_bytes(b"left behind")
    found = {str(place).removeprefix(f"{remote.url}/") for place in collect(remote.url)}
    assert found == {"shards/000099.tar", "shards/000099.json", "skipped.json", str(work)}
    assert objects(remote.url) == {**expected, "notes.txt": b"{}"}
    assert collect(remote.url) == []
    remote.root.delete("dataset.json")
    assert find_orphans(remote.url) == []
    with pytest.raises(StorageError, match="no data set of shards"):
        collect(f"{remote.url}/nowhere")


def test_recordings_that_fail_are_skipped_on_every_machine(honest, config, videos, tmp_path):
    """Found only while decoding: the list lies at the URL, so that another machine draws the same segments."""
    source = tmp_path / "source"
    shutil.copytree(videos, source)
    whole = (source / "play-2.mp4").read_bytes()
    (source / "play-2.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    skipping = replace(config, on_error="skip", size="150")
    write_shards(source, tmp_path / "folder", skipping)
    honest.proxy.inject(Fault("status", method="PUT", path="000000.tar", status=403, code="AccessDenied", times=None))
    with pytest.raises(StorageError, match="no permission"):
        write_shards(source, honest.url, skipping, work=tmp_path / "first")
    honest.proxy.clear()
    write_shards(source, honest.url, skipping, work=tmp_path / "second")
    assert objects(honest.url) == tree(tmp_path / "folder")
    assert json.loads(honest.root.get("dataset.json"))["skipped"].keys() == {"play-2"}


@pytest.mark.parametrize("moment", ["tar", "tar?partNumber", "json", "index.parquet", "dataset.json"])
def test_a_kill_between_tar_and_marker_and_before_the_root_record(
    honest, videos, config, expected, moment, monkeypatch
):
    """The process is killed while its request for that object waits in the proxy, which lets nothing through."""
    in_parts = "partNumber" in moment
    path = f"000001.{moment}" if moment.startswith("tar") or moment == "json" else moment
    honest.proxy.inject(Fault("latency", method="PUT", path=path, delay_s=30, times=1))
    script = textwrap.dedent(f"""
        import sys
        from vidbrain.sharding.plan import ShardConfig
        from vidbrain.sharding.writer import write_shards
        from vidbrain.storage import transfers
        if {in_parts}:
            transfers.PART_BYTES = 5000
        write_shards({str(videos)!r}, sys.argv[1], {config!r})
    """)
    if in_parts:
        monkeypatch.setattr("vidbrain.storage.transfers.PART_BYTES", 5000)
    process = subprocess.Popen([sys.executable, "-c", script, honest.url])
    until = time.monotonic() + 60
    while not any(fault.times == 0 for fault in honest.proxy._faults) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    held = objects(honest.url)
    assert "dataset.json" not in held
    assert ("shards/000001.tar" in held) != moment.startswith("tar")
    assert unfinished_uploads(honest) == in_parts
    with pytest.raises(StorageError, match="no finished shards artefact"):
        open_manifest(honest.url)
    honest.proxy.clear()
    write_shards(videos, honest.url, config)
    assert objects(honest.url) == expected
    assert collect(honest.url) == []
    assert unfinished_uploads(honest) == in_parts  # a rule of the bucket removes it: see the page on object storage


def unfinished_uploads(remote):
    bucket, _, place = remote.url.removeprefix("s3://").partition("/")
    with urllib.request.urlopen(f"{remote.server.endpoint}/{bucket}?uploads", timeout=60) as answer:
        return answer.read().count(f"<Key>{place}/".encode())


def test_from_the_command_line(honest, videos, expected, tmp_path, capsys, monkeypatch):
    options = ["--frame-size", "32", "--segment-frames", "32", "--shard-frames", "128", "--clip-frames", "8"]
    options += ["--clip-step", "2", "--codec", "zstd", "--workers", "1", "--json"]
    assert run(["shard", str(videos), "--out", honest.url, "--work", str(tmp_path / "w"), *options]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["root"] == honest.url
    assert str(tmp_path / "w") in said.err
    assert objects(honest.url) == expected
    assert run(["verify", honest.url, "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == 0
    assert run(["subset", honest.url, "--size", "100", "--out", f"{honest.url}/../small".replace("/deep/..", "")]) == 0
    above = honest.url.removesuffix("/deep")
    capsys.readouterr()
    assert run(["shards", "ls", above, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["root"], row["n_frames"]) for row in rows] == [(honest.url, 451), (f"{above}/small.json", 100)]
    assert run(["shards", "ls", honest.url]) == 0
    honest.root.put("shards/000099.tar", b"")
    capsys.readouterr()
    assert run(["shards", "gc", honest.url, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["removed"] == ["shards/000099.tar"]
    assert "cannot be listed" in said.err
    flip(honest.root)
    assert run(["verify", honest.url, "--workers", "1"]) == 1
    assert f"vidbrain verify {honest.url} --repair" in capsys.readouterr().err
    assert run(["verify", honest.url, "--repair", "--source", str(videos), "--workers", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rebuilt_shards"]) == 1
    assert objects(honest.url) == expected
