"""``--codec auto``: what it measures, what it chooses, and that a data set keeps its codec."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import av
import numpy as np
import pytest

from vidbrain import cluster
from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ResumeError, ShardError, StorageError, VideoError
from vidbrain.records import Recording
from vidbrain.sharding.choice import LOWEST_PSNR_DB, Measured, choose, measure, sample, settle_codec
from vidbrain.sharding.claims import read_claim
from vidbrain.sharding.codecs import CODECS, JpegSheet, Zstd
from vidbrain.sharding.describe import describe
from vidbrain.sharding.job import job_of
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import Listed, ShardConfig
from vidbrain.sharding.repair import repair
from vidbrain.sharding.subset import write_subset
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.reader import SegmentReader
from vidbrain.testing.videos import write_video
from vidbrain.video.emulator import Emulator
from vidbrain.video.play import PlayConfig, play
from vidbrain.video.screens import recording_frames


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def listing(lengths):
    return [Listed(Recording(key=f"rec-{i:03d}", video=f"rec-{i:03d}.mp4"), n) for i, n in enumerate(lengths)]


def blocks(*frames):
    yield from frames


def nothing(_):
    raise AssertionError("no recording may be decoded")


def test_bytes_and_psnr_are_counted_over_all_runs(footage):
    frames = footage["game"]
    runs = [frames[:40], frames[40:]]
    found = measure(JpegSheet(), runs)
    parts = [JpegSheet().encode(run) for run in runs]
    assert found.bytes_per_frame == round(sum(len(p) for run in parts for p in run) / len(frames), 1)
    error = 0.0
    for run, encoded in zip(runs, parts, strict=True):
        back = np.concatenate([JpegSheet().decode_part(part, *frames.shape[1:3]) for part in encoded])
        error += ((back.astype(np.float64) - run) ** 2).sum()
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 / (error / frames.size)), abs=0.005)
    assert measure(Zstd(), runs).psnr_db is None


def test_flat_graphics_stay_lossless_and_texture_becomes_video(footage):
    for what, expected in (("game", "zstd"), ("toy", "zstd"), ("texture", "h264")):
        assert choose([measure(codec, [footage[what]]) for codec in CODECS.values()]) == expected


def test_the_rule():
    lossless = Measured("zstd", 1000, None, 100)
    assert choose([lossless, Measured("h264", 10, LOWEST_PSNR_DB, 49)]) == "h264"
    assert choose([lossless, Measured("h264", 10, LOWEST_PSNR_DB, 50)]) == "zstd"
    assert choose([lossless, Measured("h264", 10, LOWEST_PSNR_DB - 0.1, 10)]) == "zstd"
    assert choose([lossless, Measured("h264", 10, 40, 30), Measured("jpeg", 10, 40, 20)]) == "jpeg"


def test_the_sample_is_small_inside_the_source_and_the_same_for_every_size():
    source = listing([90_000, 700, 40, 5000, 0, 129])
    runs = sample(source, ShardConfig(frame_size=64))
    assert len(runs) == 4
    assert sum(n for *_, n in runs) <= 512
    lengths = {item.recording.key: item.n_frames for item in source}
    assert all(first >= 0 and first + n <= min(lengths[key], 1024) for key, first, n in runs)
    assert sample(list(reversed(source)), ShardConfig(frame_size=64, size="10k")) == runs
    assert sample(source, ShardConfig(frame_size=64, seed=1)) != runs
    assert sample(listing([7]), ShardConfig()) == [("rec-000", 0, 7)]
    for size in (8, 512, 4096):
        large = sum(n for *_, n in sample(source, ShardConfig(frame_size=size)))
        assert large >= 16
        assert large * size**2 <= max(2**26, 16 * size**2)
    with pytest.raises(ShardError, match="no frames"):
        settle_codec(listing([0]), ShardConfig(), None, nothing)


@pytest.fixture(scope="module")
def textured(tmp_path_factory, footage):
    root = tmp_path_factory.mktemp("textured")
    for i in range(2):
        write_video(root / f"film-{i}.mp4", footage["texture"][:, ::-1] if i else footage["texture"])
    return root


TEXTURED = ShardConfig(frame_size=64, segment_frames=32, shard_frames=64, clip_frames=4, clip_step=2, codec="auto")


def test_the_choice_and_its_measurements_stand_in_the_root_record(textured, tmp_path):
    record = write_shards(textured, tmp_path / "d", TEXTURED)
    assert record["codec"] == record["config"]["codec"] == record["codec_choice"]["codec"] == "h264"
    measured = {row["codec"]: row for row in record["codec_choice"]["measured"]}
    assert set(measured) == set(CODECS)
    assert measured["zstd"]["psnr_db"] is None
    assert measured["h264"]["cost_us"] * 2 < measured["zstd"]["cost_us"]
    assert measured["h264"]["psnr_db"] >= LOWEST_PSNR_DB
    assert "35 dB" in record["codec_choice"]["rule"]
    assert verify(tmp_path / "d") == []


def test_two_workers_choose_and_write_the_same_bytes(textured, tmp_path):
    named = replace(TEXTURED, codec="jpeg")
    for config in (TEXTURED, named):
        write_shards(textured, tmp_path / "one" / config.codec, config)
    with cluster.client("local", 2) as client:
        for config in (TEXTURED, named):
            write_shards(textured, tmp_path / "two" / config.codec, config, client=client)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    record = json.loads((tmp_path / "one" / "jpeg" / "dataset.json").read_text())
    assert record["codec"] == "jpeg"
    assert "codec_choice" not in record
    assert read_claim(tmp_path / "one" / "jpeg").codec_choice is None


def test_a_data_set_keeps_the_codec_that_it_began_with(textured, videos, config, tmp_path):
    """After a kill, before it is whole; and where the codec was named at first."""
    whole = write_shards(textured, tmp_path / "d", TEXTURED)
    (tmp_path / "d" / "dataset.json").unlink()
    assert settle_codec([], TEXTURED, read_claim(tmp_path / "d"), nothing) == ("h264", whole["codec_choice"])
    assert write_shards(textured, tmp_path / "d", TEXTURED) == whole
    assert write_shards(textured, tmp_path / "d", replace(TEXTURED, codec="h264")) == whole
    with pytest.raises(ResumeError, match="codec was 'h264', is 'zstd'"):
        write_shards(textured, tmp_path / "d", replace(TEXTURED, codec="zstd"))
    named = write_shards(videos, tmp_path / "named", replace(config, codec="jpeg"))
    assert write_shards(videos, tmp_path / "named", replace(config, codec="auto")) == named


def test_auto_and_a_named_codec_make_the_same_data_set(videos, config, tmp_path):
    auto = write_shards(videos, tmp_path / "auto", replace(config, codec="auto"))
    named = write_shards(videos, tmp_path / "named", config)
    assert auto["fingerprint"] == named["fingerprint"]
    tars = [{n: b for n, b in files_of(tmp_path / name).items() if n.endswith(".tar")} for name in ("auto", "named")]
    assert tars[0] == tars[1]


@pytest.mark.parametrize("wrong", [{"codec": "h264"}, {"codec": "zstd", "measured": []}, {}, ["h264"], "h264"])
def test_a_damaged_record_of_the_choice_is_refused(textured, tmp_path, wrong):
    write_shards(textured, tmp_path / "d", TEXTURED)
    record = json.loads((tmp_path / "d" / "plan.json").read_text())
    (tmp_path / "d" / "plan.json").write_text(json.dumps({**record, "codec_choice": wrong}))
    with pytest.raises(StorageError, match="record of the plan is damaged"):
        write_shards(textured, tmp_path / "d", TEXTURED)


def test_a_codec_of_a_newer_version_is_refused(textured, tmp_path):
    write_shards(textured, tmp_path / "d", replace(TEXTURED, codec="h264"))
    record = json.loads((tmp_path / "d" / "plan.json").read_text())
    record["config"]["codec"] = "av1"
    (tmp_path / "d" / "plan.json").write_text(json.dumps(record))
    with pytest.raises(ShardError, match="unknown codec 'av1'"):
        write_shards(textured, tmp_path / "d", TEXTURED)


def test_a_size_that_the_codec_cannot_hold_is_refused_before_anything_is_written(videos, config, tmp_path):
    with pytest.raises(ConfigError, match="do not fit on one JPEG sheet"):
        write_shards(videos, tmp_path / "d", replace(config, codec="jpeg", frame_size=4096))
    assert not (tmp_path / "d").exists()


def test_auto_leaves_out_what_cannot_be_written(monkeypatch, footage):
    monkeypatch.setattr("vidbrain.sharding.sheets._MOST_PIXELS", 16 * 63 * 64)
    source = listing([77])
    codec, choice = settle_codec(source, ShardConfig(frame_size=64), None, lambda _: blocks(footage["texture"]))
    assert codec == "h264"
    assert [row["codec"] for row in choice["measured"]] == ["zstd", "h264"]
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    codec, choice = settle_codec(source, ShardConfig(frame_size=64), None, lambda _: blocks(footage["texture"]))
    assert codec == "zstd"
    assert [row["codec"] for row in choice["measured"]] == ["zstd"]


def test_a_video_that_ends_early_is_an_error(footage):
    with pytest.raises(ShardError, match="the recording gave 77 frames, 100 were counted before") as caught:
        settle_codec(listing([100]), ShardConfig(frame_size=64), None, lambda _: blocks(footage["toy"]))
    assert caught.value.where == "rec-000.mp4"


def test_where_errors_are_skipped_other_recordings_take_the_place_of_those_that_end_early(footage):
    """Half of them do; the choice is that of a source without them."""
    short, skip = {"rec-000", "rec-002", "rec-004"}, ShardConfig(frame_size=64, on_error="skip")
    whole = listing([77] * 6)

    def frames_of(recording):
        yield footage["texture"][: 20 if recording.key in short else 77]

    rest = [item for item in whole if item.recording.key not in short]
    assert settle_codec(whole, skip, None, frames_of) == settle_codec(rest, skip, None, frames_of)
    with pytest.raises(ShardError, match="no frames"):
        settle_codec([item for item in whole if item.recording.key in short], skip, None, frames_of)


def test_a_codec_that_is_none_is_refused(videos, config, tmp_path):
    with pytest.raises(ShardError, match="unknown codec 'h265'"):
        write_shards(videos, tmp_path / "d", replace(config, codec="h265"))
    assert not (tmp_path / "d").exists()


@pytest.fixture(scope="module")
def damaged(textured, tmp_path_factory):
    """A third film whose packets can be counted, and whose pictures from a quarter on cannot be decoded."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(textured, root, dirs_exist_ok=True)
    data = bytearray((root / "film-0.mp4").read_bytes())
    at = data.index(b"mdat") + 4
    n_bytes = int.from_bytes(data[at - 8 : at - 4], "big") - 8
    data[at + n_bytes // 4 : at + n_bytes] = bytes(n_bytes - n_bytes // 4)
    (root / "film-2.mp4").write_bytes(data)
    return root


def test_a_recording_that_cannot_be_read_is_refused_by_the_choice_or_skipped_as_by_sharding(
    damaged, textured, tmp_path
):
    with pytest.raises(VideoError):
        job_of(damaged, tmp_path / "d", TEXTURED)
    assert not (tmp_path / "d").exists()
    skip = replace(TEXTURED, on_error="skip")
    record = write_shards(damaged, tmp_path / "d", skip)
    assert list(record["skipped"]) == ["film-2"]
    assert record["codec"] == "h264"
    chosen = job_of(textured, tmp_path / "nowhere", skip).codec_choice
    assert record["codec_choice"] == chosen
    assert verify(tmp_path / "d") == []


KILLED = """
import os, signal, sys
from vidbrain.sharding import choice, writer
from vidbrain.sharding.plan import ShardConfig

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where, source, root = sys.argv[1:]
setattr({"measure": choice, "execute": writer}[where], where, die)
writer.write_shards(source, root, CONFIG)
"""


@pytest.mark.parametrize("where", ["measure", "execute"])
def test_a_kill_while_the_codec_is_chosen_leaves_nothing_and_after_it_nothing_is_measured_again(
    textured, tmp_path, monkeypatch, where
):
    script = KILLED.replace("CONFIG", repr(TEXTURED))
    killed = subprocess.run([sys.executable, "-c", script, where, str(textured), str(tmp_path / "d")], check=False)
    assert killed.returncode == -signal.SIGKILL
    write_shards(textured, tmp_path / "alone", TEXTURED)
    if where == "measure":
        assert not (tmp_path / "d").exists()
    else:
        monkeypatch.setattr("vidbrain.sharding.choice.measure", nothing)
    write_shards(textured, tmp_path / "d", TEXTURED)
    assert files_of(tmp_path / "d") == files_of(tmp_path / "alone")


def test_a_data_set_grows_with_the_codec_that_was_chosen_at_first(textured, tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (64,))
    write_shards(textured, tmp_path / "at-once", TEXTURED)
    small = write_shards(textured, tmp_path / "d", replace(TEXTURED, size="64"))
    monkeypatch.setattr("vidbrain.sharding.choice.measure", nothing)
    grown = write_shards(textured, tmp_path / "d", TEXTURED)
    assert grown["codec_choice"] == small["codec_choice"]
    assert files_of(tmp_path / "d") == files_of(tmp_path / "at-once")


def test_looking_first_writes_nothing(textured, tmp_path):
    job = job_of(textured, tmp_path / "d", TEXTURED)
    assert job.config.codec == job.content["codec"] == "h264"
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("codec", ["auto", *CODECS])
def test_repair_gives_back_the_bytes_and_the_choice(textured, tmp_path, codec):
    root = tmp_path / "d"
    write_shards(textured, root, replace(TEXTURED, codec=codec))
    before = files_of(root)
    tar = root / "shards" / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[open_manifest(root).segments.query("shard == 1")["offset"].iloc[0] + 40] ^= 1
    tar.write_bytes(data)
    (root / "dataset.json").unlink()
    assert repair(root, textured) == [1]
    assert files_of(root) == before


@pytest.mark.parametrize("codec", list(CODECS))
def test_a_subset_is_read_by_every_codec(textured, tmp_path, codec):
    write_shards(textured, tmp_path / "d", replace(TEXTURED, codec=codec))
    whole = open_manifest(tmp_path / "d")
    write_subset(tmp_path / "s", whole, size="40")
    part = open_manifest(tmp_path / "s.json")
    start = int(part.segments["start_frame"][1])
    kept = SegmentReader(part).frames(1, start, start + 8)
    assert np.array_equal(kept, SegmentReader(whole).frames(1, start, start + 8))
    assert describe(tmp_path / "s.json")["codec"] == describe(tmp_path / "d")["codec"] == codec


def test_recorded_input_is_replayed_for_the_choice_as_for_sharding_and_no_further(tmp_path, monkeypatch):
    play(tmp_path / "game", PlayConfig(n_sessions=1, n_runs=1, run_s=25.0, repetition_s=(25.0, 25.0)))
    steps, step = [], Emulator.step
    monkeypatch.setattr(Emulator, "step", lambda self, mask: steps.append(1) or step(self, mask))
    config = ShardConfig(frame_size=32, segment_frames=256, size="300")
    job = job_of(tmp_path / "game", tmp_path / "d", config)
    whole = {item.recording.key: item.recording for item in job.source.listing}
    assert {recording.video for recording in whole.values()} == {None}
    assert max(item.n_frames for item in job.source.listing) > 1280
    sampled = {run["recording"] for run in job.codec_choice["sample"]}
    assert 0 < len(steps) <= len(sampled) * 1024  # each once
    frames = {key: np.concatenate(list(recording_frames(whole[key], size=(32, 32)))) for key in sampled}
    runs = [frames[r["recording"]][r["start_frame"] :][: r["n_frames"]] for r in job.codec_choice["sample"]]
    expected = {codec.name: measure(codec, runs) for codec in CODECS.values()}
    assert job.codec_choice["measured"] == [to_mapping(expected[name]) for name in CODECS]
    record = write_shards(tmp_path / "game", tmp_path / "d", config)
    assert record["codec"] == job.config.codec
    assert verify(tmp_path / "d") == []
