from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from vidbrain.errors import VideoError
from vidbrain.records import Recording
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.video.decode import DECODERS, read_frames, read_table
from vidbrain.video.probe import probe


def decoded(path, **options):
    return np.concatenate(list(read_frames(path, **options)))


def encode(path, frames, *, codec="libx264", options=None, pts=None, pix_fmt="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 300)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = 10 * number if pts is None else pts[number]
            frame.time_base = Fraction(1, 300)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    frames = toy_frames(150, height=96, width=128)
    path = tmp_path_factory.mktemp("toy") / "toy.mp4"
    write_video(path, frames)
    return path, frames


def test_probe_counts_what_is_there(toy):
    facts = probe(toy[0])
    assert (facts.n_frames, facts.fps, facts.height, facts.width) == (150, 60.0, 96, 128)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_frame_comes_once_in_order(toy, decoder):
    path, frames = toy
    whole = decoded(path, decoder=decoder)
    assert whole.shape == frames.shape
    assert whole.dtype == np.uint8
    assert np.abs(whole.astype(int) - frames).mean() < 2
    nearest = [int(np.abs(frames.astype(int) - frame).mean(axis=(1, 2, 3)).argmin()) for frame in whole[::29]]
    assert nearest == list(range(0, 150, 29))
    blocks = list(read_frames(path, decoder=decoder, block=64))
    assert [len(block) for block in blocks] == [64, 64, 22]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("size", [None, (24, 32), (33, 47), (96, 64)])
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_the_decoders_agree(toy, size, fit):
    one, other = (decoded(toy[0], size=size, fit=fit, decoder=name).astype(int) for name in ("pyav", "decord"))
    assert one.shape == other.shape == (150, *(size or (96, 128)), 3)
    assert np.abs(one - other).mean() < 1
    assert np.abs(one - other).max() <= 40  # at edges, where one averages before and one after the colours are clipped


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_smaller_frame_is_the_area_average(toy, decoder):
    path, frames = toy
    small = decoded(path, size=(24, 32), decoder=decoder)
    mean = frames.reshape(150, 24, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(small - mean).mean() < 2
    assert np.sqrt(((small - mean) ** 2).mean()) < 4
    sampled = frames[:, ::4, ::4]  # what a scaler that drops pixels would give
    assert np.sqrt(((small - mean) ** 2).mean()) < 0.3 * np.sqrt(((sampled - mean) ** 2).mean())


def test_crop_keeps_the_middle_and_pad_adds_black(toy):
    path, _ = toy
    squash = decoded(path, size=(24, 32)).astype(int)
    crop, pad = decoded(path, size=(24, 24), fit="crop"), decoded(path, size=(40, 32), fit="pad")
    np.testing.assert_array_equal(crop, squash[:, :, 4:28])
    np.testing.assert_array_equal(pad[:, 8:32], squash)
    assert pad[:, :8].max() == pad[:, 32:].max() == 0


def test_decoding_is_deterministic(toy):
    for options in ({}, {"size": (31, 41)}):
        np.testing.assert_array_equal(decoded(toy[0], **options), decoded(toy[0], **options))


VARIANTS = {
    "b-frames": {"options": {"bf": "3", "g": "30"}},
    "open gop": {"options": {"bf": "2", "g": "12", "x264-params": "open-gop=1"}},
    "variable rate": {"options": {"bf": "0"}, "pts": [10 * n + (n % 3) * 3 for n in range(90)]},
    "starts late": {"options": {"bf": "0"}, "pts": [900 + 10 * n for n in range(90)]},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_other_peoples_videos_give_every_frame(tmp_path, name, suffix):
    frames = toy_frames(90)
    path = encode(tmp_path / f"v{suffix}", frames, **VARIANTS[name])
    assert probe(path).n_frames == 90
    seen = {decoder: decoded(path, decoder=decoder) for decoder in DECODERS}
    for whole in seen.values():
        assert len(whole) == 90
        assert np.abs(whole.astype(int) - frames).mean() < 8
    assert np.abs(seen["pyav"].astype(int) - seen["decord"]).mean() < 1


def test_webm_is_read(tmp_path):
    frames = toy_frames(30)
    path = encode(tmp_path / "v.webm", frames, codec="libvpx", options={"crf": "4", "b": "2M"})
    assert decoded(path).shape == frames.shape


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_video_is_an_error(tmp_path, keep, suffix):
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    path = tmp_path / f"v{suffix}"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in toy_frames(400):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(VideoError, match=r"holds \d+ of about 400 frames|cannot be read"):
        probe(path)
    with pytest.raises(VideoError):
        decoded(path)


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"this is no video", b"\0\0\0\x18ftypmp42\0\0\0\0"])
def test_what_is_no_video_is_an_error(tmp_path, data):
    path = tmp_path / "v.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError) as caught:
        decoded(path)
    assert str(path) in str(caught.value)


def test_a_video_without_frames_and_a_sound_are_errors(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video"):
        probe(tmp_path / "sound.mkv")
    with pytest.raises(VideoError, match="no such video"):
        probe(tmp_path / "nowhere.mp4")


def test_a_video_without_recorded_input_has_no_table(toy):
    with pytest.raises(VideoError, match="no table"):
        read_table(Recording(key="toy", video=str(toy[0])))
