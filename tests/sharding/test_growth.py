"""Growing, refusing and locking: what happens when a folder is not empty."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from vidbrain import cluster
from vidbrain.cli.app import run
from vidbrain.errors import ResumeError, ShardError, StorageError
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.orphans import collect, find_orphans
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.video.screens import recording_frames


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def landmarks(monkeypatch):
    """Named sizes that a source of 451 frames can reach."""
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (96, 200, 400))


def test_growing_in_place_gives_what_sharding_at_once_gives_and_touches_no_shard(videos, config, landmarks, tmp_path):
    write_shards(videos, tmp_path / "whole", config)
    whole = files_of(tmp_path / "whole")
    tars_before = {}
    with cluster.client("local", 2) as two:
        for size, client in (("96", None), ("200", two), ("400", None), ("all", two)):
            sized = replace(config, size=size)
            write_shards(videos, tmp_path / "grown", sized, client=client)
            write_shards(videos, tmp_path / f"at-once-{size}", sized)
            assert files_of(tmp_path / "grown") == files_of(tmp_path / f"at-once-{size}")
            tars = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "grown" / "shards").iterdir()}
            assert all(tars[name] == was for name, was in tars_before.items())
            assert all(data == whole[f"shards/{name}"] for name, (_, data) in tars.items())
            assert len(tars) > len(tars_before)
            tars_before = tars
    assert files_of(tmp_path / "grown") == whole


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_with_the_spool_kept_no_recording_is_decoded_twice(
    kind, videos, config, landmarks, tmp_path, monkeypatch, request
):
    decoded = []

    def spy(recording, **options):
        decoded.append(recording.key)
        return recording_frames(recording, **options)

    monkeypatch.setattr("vidbrain.sharding.spool.recording_frames", spy)
    root, work = tmp_path / "d", None
    if kind == "url":
        root, work = request.getfixturevalue("honest").root, tmp_path / "work"
    for size, keep in (("96", True), ("96", True), ("200", True), ("400", True), ("all", True)):
        write_shards(videos, root, replace(config, size=size), work=work, keep_spool=keep)
        if size != "all":
            assert any(path.name == "spool" for path in tmp_path.rglob("*"))
    assert sorted(decoded) == sorted(set(decoded)) == sorted(path.stem for path in videos.iterdir())
    assert not any(path.name == "spool" for path in tmp_path.rglob("*"))
    write_shards(videos, tmp_path / "alone", config)
    held = files_of(root) if kind == "folder" else {found.key: root.get(found.key) for found in root.list()}
    assert held == files_of(tmp_path / "alone")


def test_a_kept_spool_goes_with_gc_or_with_the_same_command_without_it(videos, config, landmarks, tmp_path):
    small = replace(config, size="96")
    write_shards(videos, tmp_path / "alone", small)
    for forget in (collect, lambda root: write_shards(videos, root, small)):
        write_shards(videos, tmp_path / "d", small, keep_spool=True)
        assert (tmp_path / "d" / "spool").is_dir()
        forget(tmp_path / "d")
        assert files_of(tmp_path / "d") == files_of(tmp_path / "alone")
        shutil.rmtree(tmp_path / "d")


def test_ten_thousand_frames_by_two_workers_grow_to_what_one_worker_makes_at_once(tmp_path, capsys):
    """With the sizes as they are, from the command line."""
    for i in range(3):
        write_video(tmp_path / "source" / f"play-{i}.mp4", toy_frames(3600 + i, height=16, width=16, seed=i))
    shard = ["shard", str(tmp_path / "source"), "--frame-size", "8", "--codec", "zstd", "--json"]
    assert run([*shard, "--out", str(tmp_path / "grown"), "--size", "10k", "--workers", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["n_frames"] == 10_000
    small = files_of(tmp_path / "grown")
    assert run([*shard, "--out", str(tmp_path / "grown"), "--size", "all", "--workers", "1"]) == 0
    assert run([*shard, "--out", str(tmp_path / "whole"), "--size", "all", "--workers", "1"]) == 0
    whole = files_of(tmp_path / "whole")
    assert files_of(tmp_path / "grown") == whole
    assert json.loads(whole["dataset.json"])["n_frames"] == 10_803
    shards = {name: data for name, data in small.items() if name.startswith("shards/")}
    assert len(shards) == 2
    assert shards.items() <= whole.items()


def test_a_data_set_stays_readable_while_it_grows(videos, config, landmarks, tmp_path):
    root = tmp_path / "d"
    write_shards(videos, root, replace(config, size="96"))
    before = open_manifest(root)
    small_record = (root / "dataset.json").read_bytes()
    write_shards(videos, root, replace(config, size="200"))
    # As a kill between the index and the root record leaves it.
    (root / "dataset.json").write_bytes(small_record)
    found = open_manifest(root)
    assert found.fingerprint == before.fingerprint
    assert found.segments.equals(before.segments)
    assert find_orphans(root) == []  # the shards beyond are those of a growth that goes on
    write_shards(videos, root, replace(config, size="200"))
    assert open_manifest(root).segments["n_frames"].sum() == 200


@pytest.mark.parametrize(
    "kills",
    [["writer._assemble", "spool.Spooled.write"], ["writer._assemble"] * 2, ["writer.write_index"] * 2],
)
def test_sizes_that_change_between_kills_leave_no_trace(videos, config, landmarks, tmp_path, monkeypatch, kills):
    """Killed, also where bytes are new and their index is not, with a larger size in between."""
    small, large = replace(config, size="150"), replace(config, size="400")

    def stop(*_):
        raise KeyboardInterrupt

    for size, function in zip((small, large), kills, strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(f"vidbrain.sharding.{function}", stop)
            with pytest.raises(KeyboardInterrupt):
                write_shards(videos, tmp_path / "d", size)
    write_shards(videos, tmp_path / "d", small)
    write_shards(videos, tmp_path / "alone", small)
    collect(tmp_path / "d")
    assert files_of(tmp_path / "d") == files_of(tmp_path / "alone")


def test_a_size_that_would_rewrite_a_shard_or_shrink_is_refused(videos, config, landmarks, tmp_path):
    root = tmp_path / "d"
    write_shards(videos, root, replace(config, size="150"))
    before = files_of(root)
    with pytest.raises(ResumeError, match="ends at 150 frames inside a shard"):
        write_shards(videos, root, replace(config, size="400"))
    with pytest.raises(ResumeError, match=r"holds 150 frames already, more than size 96[\s\S]*vidbrain subset"):
        write_shards(videos, root, replace(config, size="96"))
    assert files_of(root) == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_plan_is_refused_and_what_differs_is_said(videos, config, tmp_path, finished):
    source, root = tmp_path / "source", tmp_path / "d"
    shutil.copytree(videos, source)
    write_shards(source, root, config)
    if not finished:
        (root / "dataset.json").unlink()
    before = files_of(root)
    for change, said in (
        (replace(config, seed=9), "seed was 0, is 9"),
        (replace(config, order="paper"), "order was 'balanced', is 'paper'"),
        (replace(config, frame_size=16), "frame_size was 32, is 16"),
        (replace(config, to_s=1.0), "to_s was None, is 1.0"),
    ):
        with pytest.raises(ResumeError, match=said):
            write_shards(source, root, change)
    write_video(source / "play-1.mp4", toy_frames(71, seed=1))
    (source / "play-0.mp4").unlink()
    write_video(source / "play-9.mp4", toy_frames(10, seed=9))
    with pytest.raises(ResumeError) as caught:
        write_shards(source, root, config)
    for words in ("are gone (play-0)", "are new (play-9)", "play-1 had 70 frames", "has 71 in"):
        assert words in caught.value.message
    assert files_of(root) == before


def test_a_filter_is_part_of_the_plan(tmp_path, config):
    rows = ["path\tsubject\ttask\tonset_s\tduration_s\tlevel"]
    for i in range(4):
        write_video(tmp_path / "films" / f"{i}.mp4", toy_frames(40, seed=i))
        rows.append(f"films/{i}.mp4\t0{i % 2}\tfilm\t{i}.0\t0.5\t{i // 2}")
    (tmp_path / "list.tsv").write_text("\n".join(rows) + "\n")
    source, root = tmp_path / "list.tsv", tmp_path / "d"
    write_shards(source, root, config, only=Filter(subject=("sub-01",)))
    rows = open_manifest(root).segments
    assert set(rows["recording"]) == {"films_1", "films_3"}
    assert set(rows["subject"]) == {"01"}
    assert set(rows["onset_s"]) == {1.0, 3.0}
    write_shards(source, root, config, only=Filter(subject=("01",)))  # another spelling of the same
    with pytest.raises(ResumeError, match=r"only.subject was \['01'\]"):
        write_shards(source, root, config)
    for only, said in (
        (Filter(subject=("07",)), "no recording has subject 07"),
        (Filter(run=(3,)), "no recording has run 3"),
        (Filter(subject=("00",), level=("5",)), "no recording has level 5"),
    ):
        with pytest.raises(ShardError, match=said):
            write_shards(source, tmp_path / "e", config, only=only)
    assert not (tmp_path / "e").exists()


HOLDER = """
import sys, time
from vidbrain.storage.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_writers_are_refused_and_a_killed_one_lets_go(videos, config, tmp_path):
    root = tmp_path / "d"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match="another process writes here"):
            write_shards(videos, root, config)
        assert {p.name for p in root.iterdir()} == {".lock"}
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (root / ".lock").exists()
    write_shards(videos, root, config)
    write_shards(videos, tmp_path / "alone", config)
    assert files_of(root) == files_of(tmp_path / "alone")


def test_two_commands_at_once_end_with_one_whole_data_set(videos, config, tmp_path):
    root = tmp_path / "d"
    script = textwrap.dedent(f"""
        import sys
        from vidbrain.errors import StorageError
        from vidbrain.sharding.plan import ShardConfig
        from vidbrain.sharding.writer import write_shards
        try:
            write_shards({str(videos)!r}, sys.argv[1], {config!r})
        except StorageError as error:
            assert "another process" in error.message, error
            print("refused")
    """)
    both = [subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said.count(b"") >= 1
    write_shards(videos, tmp_path / "alone", config)
    assert files_of(root) == files_of(tmp_path / "alone")


def test_an_output_without_permission_is_one_clear_error(config):
    """As a user who may read the source and may not write the output."""
    place = Path(tempfile.mkdtemp())
    write_video(place / "source" / "a.mp4", toy_frames(20))
    (place / "closed").mkdir(mode=0o555)
    for path in (place, place / "source"):
        path.chmod(0o755)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(StorageError, match="no permission"):
            write_shards(place / "source", place / "closed" / "d", config)
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(place)


def test_gc_removes_what_nothing_reads_and_nothing_else(videos, config, tmp_path):
    root = tmp_path / "d"
    write_shards(videos, root, config)
    before = files_of(root)
    for name in (
        "shards/000099.tar",
        "shards/000099.json",
        "shards/000000.tar.part-0a",
        "index.parquet.part-1",
        ".lock",
    ):
        (root / name).write_bytes(b"left behind")
    (root / "spool").mkdir()
    (root / "spool" / "x.bin").write_bytes(b"left behind")
    (root / "shards" / "notes.txt").write_bytes(b"the user's own")
    found = {str(p.relative_to(root)) for p in collect(root)}
    beyond = {"shards/000099.tar", "shards/000099.json"}
    assert found == beyond | {"shards/000000.tar.part-0a", "index.parquet.part-1", "spool", ".lock"}
    assert files_of(root) == {**before, "shards/notes.txt": b"the user's own"}
    assert collect(root) == []
    # What an unfinished data set goes on with is kept.
    (root / "dataset.json").unlink()
    (root / "spool").mkdir()
    assert find_orphans(root) == []
    (root / "dataset.json").write_text('{"vidbrain": "shards"}')
    with pytest.raises(StorageError, match="root record is damaged"):
        find_orphans(root)
    with pytest.raises(StorageError, match="no data set of shards"):
        collect(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_record_of_the_plan_is_one_clear_error(videos, config, tmp_path):
    root = tmp_path / "d"
    write_shards(videos, root, config)
    (root / "dataset.json").unlink()
    (root / "plan.json").unlink()
    with pytest.raises(StorageError, match=r"there is shards, but no plan\.json"):
        write_shards(videos, root, replace(config, codec="jpeg"))
    for text in ("{}", "[]", "not json", json.dumps({"config": {}, "made_from": {}, "recordings": {}})):
        (root / "plan.json").write_text(text)
        with pytest.raises(StorageError):
            write_shards(videos, root, config)
