"""A spool may stay for weeks: nothing of it is used that is not what was written, of the source as it is now."""

import hashlib
import importlib.util
import json
import math
from dataclasses import replace

import pytest

from vidbrain.cli.app import run
from vidbrain.errors import ShardError, StorageError, VideoError
from vidbrain.sharding.job import job_of
from vidbrain.sharding.orphans import collect
from vidbrain.sharding.repair import repair
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.objects import open_root
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.video.emulator import rom_digest
from vidbrain.video.screens import recording_frames


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def landmarks(monkeypatch):
    """Named sizes that a source of 451 frames can reach."""
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (96, 200, 400))


@pytest.fixture
def decoded(monkeypatch):
    """Keys of the recordings that are decoded, as they are."""
    found = []

    def spy(recording, **options):
        found.append(recording.key)
        return recording_frames(recording, **options)

    monkeypatch.setattr("vidbrain.sharding.spool.recording_frames", spy)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, videos):
    from vidbrain.sharding.plan import ShardConfig

    settings = {"frame_size": 32, "segment_frames": 32, "shard_frames": 128, "clip_frames": 8, "clip_step": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidbrain.sharding.plan.LANDMARKS", (96, 200, 400))
        write_shards(videos, tmp_path_factory.mktemp("whole") / "d", ShardConfig(codec="zstd", **settings))
    return files_of(next(tmp_path_factory.getbasetemp().glob("whole*/d")))


@pytest.fixture
def grown(videos, config, tmp_path, decoded):
    """A data set of 200 frames with the spool of all three recordings."""
    write_shards(videos, tmp_path / "d", replace(config, size="200"), keep_spool=True)
    assert len(list((tmp_path / "d" / "spool").iterdir())) == 6
    return tmp_path / "d"


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def first_of(record):
    return next(iter(record["segments"].values()))


SEEN = {
    "cut off": lambda data, _: data.write_bytes(data.read_bytes()[:-9]),
    "empty": lambda data, _: data.write_bytes(b""),
    "gone": lambda data, _: data.unlink(),
    "no JSON": lambda _, record: record.write_text("{"),
    "nested too deeply": lambda _, record: record.write_text("[" * 100_000),
    "a list": lambda _, record: record.write_text("[1, 2]"),
    "a folder": lambda _, record: record.unlink() or record.mkdir(),
    "of the older form": lambda _, record: record.write_text('{"play-0_frame-0000000": {"offset": 0, "parts": [9]}}'),
    "of a newer form": lambda _, record: rewrite(record, lambda found: found.update(format_version=2)),
    "another codec": lambda _, record: rewrite(record, lambda found: found["origin"].update(codec="jpeg")),
    "another size": lambda _, record: rewrite(record, lambda found: found["origin"].update(frame_size=16)),
    "a length as text": lambda _, record: rewrite(record, lambda found: first_of(found).update(crc32="7")),
    "beyond the end": lambda _, record: rewrite(record, lambda found: first_of(found).update(offset=2**40)),
    "other frames": lambda _, record: rewrite(record, lambda found: first_of(found).update(n_stored=7)),
    "a segment less": lambda _, record: rewrite(record, lambda found: found["segments"].popitem()),
}


@pytest.mark.parametrize("damage", SEEN.values(), ids=SEEN)
def test_what_cannot_be_the_spool_of_a_recording_is_spooled_again(videos, config, grown, whole, decoded, damage):
    record = sorted((grown / "spool").glob("*.json"))[0]
    damage(record.with_suffix(".bin"), record)
    write_shards(videos, grown, config, keep_spool=True)
    assert len(decoded) == 4  # three recordings, then the damaged one
    assert files_of(grown) == whole


def flip(data, _):
    changed = bytearray(data.read_bytes())
    for at in range(0, len(changed), 50):
        changed[at] ^= 1
    data.write_bytes(changed)


def shift(_, record):
    rewrite(record, lambda found: [place.update(offset=0) for place in found["segments"].values()])


@pytest.mark.parametrize("damage", [flip, shift])
def test_other_bytes_than_were_spooled_are_an_error_and_decoded_by_the_next_call(
    videos, config, grown, whole, decoded, damage
):
    record = sorted((grown / "spool").glob("*.json"))[0]
    damage(record.with_suffix(".bin"), record)
    with pytest.raises(ShardError, match=r"what was spooled of play-\d is damaged[\s\S]*give the command again"):
        write_shards(videos, grown, config, keep_spool=True)
    assert not record.exists()
    write_shards(videos, grown, config, keep_spool=True)
    assert len(decoded) == 4  # three recordings, then the damaged one
    assert files_of(grown) == whole


def padded(path, n_bytes):
    """Make a video longer by a box that players pass over."""
    data = path.read_bytes()
    n_more = n_bytes - len(data)
    path.write_bytes(data + n_more.to_bytes(4, "big") + b"free" + bytes(n_more - 8))


def test_a_recording_that_changed_is_spooled_again(config, tmp_path, decoded):
    """Under the same name, with as many frames and bytes: no plan can tell."""
    source, root = tmp_path / "source", tmp_path / "d"
    for i in range(2):
        write_video(source / f"play-{i}.mp4", toy_frames(150, seed=i))
        padded(source / f"play-{i}.mp4", 100_000)
    write_shards(source, root, replace(config, size="96"), keep_spool=True)
    assert sorted(decoded) == ["play-0", "play-1"]
    write_video(source / "play-1.mp4", toy_frames(150, seed=7))
    padded(source / "play-1.mp4", 100_000)
    del decoded[:]
    write_shards(source, root, replace(config, size="200"), keep_spool=True)
    assert decoded == ["play-1"]


def test_a_spool_that_is_a_file_is_a_clear_error(videos, config, tmp_path):
    write_shards(videos, tmp_path / "d", replace(config, size="96"))
    (tmp_path / "d" / "spool").write_bytes(b"mine")
    with pytest.raises(StorageError, match="a file, or a link that leads nowhere, stands where a folder belongs"):
        write_shards(videos, tmp_path / "d", config)
    assert (tmp_path / "d" / "spool").read_bytes() == b"mine"


def test_all_of_a_recording_is_spooled_though_a_part_of_it_is_there(
    videos, config, whole, tmp_path, decoded, monkeypatch
):
    """A call without `keep_spool` was killed: what it spooled is not all that a larger size needs."""

    def stop(*_):
        raise KeyboardInterrupt

    small = replace(config, size="200")
    with monkeypatch.context() as patch:
        patch.setattr("vidbrain.sharding.writer._assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            write_shards(videos, tmp_path / "d", small)
    write_shards(videos, tmp_path / "d", small, keep_spool=True)
    del decoded[:]
    write_shards(videos, tmp_path / "d", config, keep_spool=True)
    assert not decoded
    assert files_of(tmp_path / "d") == whole


def test_a_repair_keeps_a_kept_spool_and_looks_at_what_it_gives(videos, config, grown, decoded):
    before = files_of(grown)
    tar = grown / "shards" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert repair(grown, videos) == [1]
    assert files_of(grown) == before
    assert len(decoded) == 3  # nothing is decoded for it
    for record in (grown / "spool").glob("*.json"):
        flip(record.with_suffix(".bin"), record)
    tar.write_bytes(tar.read_bytes()[:-512])
    damaged = files_of(grown / "shards")
    with pytest.raises(ShardError, match="what was spooled of"):
        repair(grown, videos)
    assert files_of(grown / "shards") == damaged
    for record in (grown / "spool").glob("*.json"):
        record.unlink()
    assert repair(grown, videos) == [1]
    assert files_of(grown / "shards") == {
        name.removeprefix("shards/"): data for name, data in before.items() if name.startswith("shards/")
    }


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_repair_refuses_a_source_that_gives_other_bytes_and_changes_nothing(config, tmp_path, kind, request):
    source, root = tmp_path / "source", tmp_path / "d"
    for i in range(2):
        write_video(source / f"play-{i}.mp4", toy_frames(150, seed=i))
        padded(source / f"play-{i}.mp4", 100_000)
    place = open_root(root) if kind == "folder" else request.getfixturevalue("honest").root
    write_shards(source, place, config)
    for i in range(2):
        write_video(source / f"play-{i}.mp4", toy_frames(150, seed=7 + i))
        padded(source / f"play-{i}.mp4", 100_000)
    place.put("shards/000000.tar", place.get("shards/000000.tar")[:-512])
    before = {found.key: place.get(found.key) for found in place.list()}
    with pytest.raises(ShardError, match="shard 0 made again has other bytes than the root record says"):
        repair(place, source)
    after = {found.key: place.get(found.key) for found in place.list()}
    assert {key: data for key, data in after.items() if not key.startswith((".", "spool/"))} == before


def test_what_a_data_set_at_a_url_left_is_not_used_for_the_next_one(videos, config, honest, tmp_path, decoded):
    """It was removed with its plan, and its work folder stayed."""
    small = replace(config, size="200")
    write_shards(videos, honest.root, small, work=tmp_path / "work", keep_spool=True)
    for found in honest.root.list():
        honest.root.delete(found.key)
    del decoded[:]
    write_shards(videos, honest.root, small, work=tmp_path / "work", keep_spool=True)
    assert len(decoded) == 3


def test_what_is_there_needs_no_room(videos, config, grown, monkeypatch):
    """The disk holds what is missing and no more."""
    asked = []
    monkeypatch.setattr("vidbrain.sharding.writer.check_writable", lambda _, n_bytes: asked.append(n_bytes))
    job = job_of(videos, grown, config)
    plan, per_frame = job.plan_of("all"), 32**2 * 3 / 10
    n_tarred = plan.segments.n_stored[plan.shards[len(list(grown.glob("shards/*.tar")))][0] :].sum()
    n_spooled = sum(path.stat().st_size for path in (grown / "spool").iterdir())
    write_shards(videos, grown, config, keep_spool=True)
    spool = max(0.0, plan.segments.n_stored.sum() * per_frame - n_spooled)
    assert asked == [math.ceil(spool + n_tarred * per_frame)]


def test_a_finished_data_set_says_that_nothing_is_spooled(videos, config, tmp_path, capsys):
    options = ["--frame-size", "32", "--segment-frames", "32", "--shard-frames", "128", "--codec", "zstd"]
    shard = ["shard", str(videos), "--out", str(tmp_path / "d"), "--size", "200", "--workers", "1", *options]
    assert run(shard) == 0
    assert "nothing is spooled" not in capsys.readouterr().err
    assert run([*shard, "--keep-spool"]) == 0
    assert "nothing is spooled: the data set is finished with this size" in capsys.readouterr().err
    assert not (tmp_path / "d" / "spool").exists()


@pytest.mark.parametrize("forget", [collect, None])
def test_a_spool_may_be_a_link_to_another_disk(videos, config, tmp_path, forget):
    small, disk = replace(config, size="200"), tmp_path / "disk"
    write_shards(videos, tmp_path / "d", small)
    before = files_of(tmp_path / "d")
    disk.mkdir()
    (disk / "thesis.docx").write_bytes(b"mine")
    (tmp_path / "d" / "spool").symlink_to(disk)
    (tmp_path / "d" / "dataset.json").unlink()
    (tmp_path / "d" / "shards" / "000000.json").unlink()
    write_shards(videos, tmp_path / "d", small, keep_spool=True)
    assert len(list(disk.iterdir())) > 1
    if forget:
        forget(tmp_path / "d")
        assert forget(tmp_path / "d") == []
    else:
        write_shards(videos, tmp_path / "d", small)
    assert [path.name for path in disk.iterdir()] == ["thesis.docx"]
    (tmp_path / "d" / "spool").unlink()
    assert files_of(tmp_path / "d") == before


@pytest.mark.skipif(importlib.util.find_spec("stable_retro") is None, reason="the emulator is an extra")
def test_another_rom_is_another_origin(tmp_path):
    game = "Airstriker-Genesis-v0"
    own = rom_digest(game)
    assert len(own) == 64
    (tmp_path / game).mkdir()
    (tmp_path / game / "rom.md").write_bytes(b"another")
    assert rom_digest(game, tmp_path) == hashlib.sha256(b"another").hexdigest() != own
    with pytest.raises(VideoError, match="there is no ROM of 'Other-Genesis'"):
        rom_digest("Other-Genesis", tmp_path)
