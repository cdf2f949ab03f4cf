"""``--codec auto``: what it measures, what it chooses, and that a data set keeps its codec."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest

from vidbrain import cluster
from vidbrain.errors import ConfigError, ResumeError, ShardError, StorageError
from vidbrain.records import Recording
from vidbrain.sharding.choice import CHOICE, LOWEST_PSNR_DB, Measured, choose, measure, sample, settle_codec
from vidbrain.sharding.codecs import CODECS, JpegSheet, Zstd
from vidbrain.sharding.plan import Listed, ShardConfig
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import write_video


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
        settle_codec(listing([0]), ShardConfig(), "nowhere", nothing)


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
    assert not (tmp_path / "one" / "jpeg" / CHOICE).exists()


def test_a_data_set_keeps_the_codec_that_it_began_with(textured, videos, config, tmp_path):
    """After a kill, before it is whole; and where the codec was named at first."""
    whole = write_shards(textured, tmp_path / "d", TEXTURED)
    (tmp_path / "d" / "dataset.json").unlink()
    # Were it chosen again, zstd would be: nothing is measured twice.
    choice = json.loads((tmp_path / "d" / CHOICE).read_text())
    settled, kept = settle_codec([], TEXTURED, tmp_path / "d", nothing)
    assert settled.codec == "h264"
    assert kept == choice == whole["codec_choice"]
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


def test_a_damaged_record_of_the_choice_is_refused(textured, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / CHOICE).write_text('{"codec": "av1"}')
    with pytest.raises(StorageError, match="choice of a codec is damaged"):
        write_shards(textured, tmp_path / "d", TEXTURED)


def test_a_size_that_the_codec_cannot_hold_is_refused_before_anything_is_written(videos, config, tmp_path):
    with pytest.raises(ConfigError, match="do not fit on one JPEG sheet"):
        write_shards(videos, tmp_path / "d", replace(config, codec="jpeg", frame_size=4096))
    assert not (tmp_path / "d").exists()


def test_auto_leaves_out_what_cannot_be_written(monkeypatch, footage):
    monkeypatch.setattr("vidbrain.sharding.sheets._MOST_PIXELS", 16 * 63 * 64)
    source = listing([77])
    config, choice = settle_codec(source, ShardConfig(frame_size=64), "nowhere", lambda _: blocks(footage["texture"]))
    assert config.codec == "h264"
    assert [row["codec"] for row in choice["measured"]] == ["zstd", "h264"]
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    config, choice = settle_codec(source, ShardConfig(frame_size=64), "nowhere", lambda _: blocks(footage["texture"]))
    assert config.codec == "zstd"
    assert [row["codec"] for row in choice["measured"]] == ["zstd"]


def test_a_video_that_ends_early_is_an_error(footage):
    with pytest.raises(ShardError, match="rec-000 gave 77 frames"):
        settle_codec(listing([100]), ShardConfig(frame_size=64), "nowhere", lambda _: blocks(footage["toy"]))


def test_a_codec_that_is_none_is_refused(videos, config, tmp_path):
    with pytest.raises(ShardError, match="unknown codec 'h265'"):
        write_shards(videos, tmp_path / "d", replace(config, codec="h265"))
    assert not (tmp_path / "d").exists()
