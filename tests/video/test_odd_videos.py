"""Videos as cameras, phones and editors leave them: every shown frame comes once, upright, in order."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from vidbrain.testing.videos import toy_frames
from vidbrain.video.decode import read_frames
from vidbrain.video.probe import probe

ONE = 1 << 16


def write(path, frames, times_ms, *, codec="libx264", pix_fmt="yuv444p", options=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {"crf": "4", "preset": "ultrafast", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for image, time_ms in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), int(time_ms)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path, **settings):
    return np.concatenate(list(read_frames(path, **settings)))


def worst(one, other):
    return np.abs(one.astype(int) - other).mean(axis=(1, 2, 3)).max()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_a_variable_rate_gives_every_frame_and_the_mean_rate(tmp_path, suffix):
    frames = toy_frames(90)
    times_ms = np.cumsum(np.random.default_rng(0).integers(5, 80, 90))
    settings = {"codec": "libvpx-vp9", "pix_fmt": "yuv420p", "options": {"crf": "10"}} if suffix == "webm" else {}
    path = write(tmp_path / f"v.{suffix}", frames, times_ms, **settings)
    facts = probe(path)
    assert facts.n_frames == 90
    assert facts.fps == pytest.approx(89_000 / (times_ms[-1] - times_ms[0]), rel=1e-9)
    assert worst(read(path), frames) < 8


@pytest.mark.parametrize("bframes", [0, 3])
def test_what_an_edit_list_cuts_away_is_not_there(tmp_path, bframes):
    """Cut with the bytes of the list itself: seconds 1.0 to 2.6 of 3.6, where no group of pictures begins."""
    frames = toy_frames(90)
    options = {"crf": "4", "g": "12", "bf": str(bframes)}
    path = write(tmp_path / "whole.mp4", frames, np.arange(90) * 40, options=options)
    data = bytearray(path.read_bytes())
    ticks = {box: struct.unpack(">I", data[(at := data.index(box)) + 16 : at + 20])[0] for box in (b"mvhd", b"mdhd")}
    at = data.index(b"elst") + 12
    # The list's own start lies behind the first frame where pictures are reordered.
    _, begin = struct.unpack(">Ii", data[at : at + 8])
    data[at : at + 8] = struct.pack(">Ii", round(1.6 * ticks[b"mvhd"]), begin + ticks[b"mdhd"])
    (tmp_path / "cut.mp4").write_bytes(data)
    assert probe(tmp_path / "cut.mp4").n_frames == 40
    found = read(tmp_path / "cut.mp4")
    assert found.shape == (40, 48, 64, 3)
    np.testing.assert_array_equal(found, read(path)[25:65])


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, ONE, 0, -ONE, 0, 0, 48 * ONE, 0, 1 << 30), lambda f: f.transpose(0, 2, 1, 3)[:, :, ::-1]),  # clockwise
        ((0, -ONE, 0, ONE, 0, 0, 0, 64 * ONE, 1 << 30), lambda f: f.transpose(0, 2, 1, 3)[:, ::-1]),
        ((-ONE, 0, 0, 0, -ONE, 0, 64 * ONE, 48 * ONE, 1 << 30), lambda f: f[:, ::-1, ::-1]),
    ],
)
def test_a_phones_video_comes_upright(tmp_path, matrix, turned):
    """The matrix maps a stored pixel (x, y) to the shown one, as the format's standard says (ISO/IEC 14496-12)."""
    frames = toy_frames(30)
    path = write(tmp_path / "stored.mp4", frames, np.arange(30) * 40)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[at : at + 36]) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "phone.mp4").write_bytes(data)
    expected = turned(read(path))
    facts = probe(tmp_path / "phone.mp4")
    assert (facts.n_frames, facts.height, facts.width) == (30, *expected.shape[1:3])
    for decoder in ("pyav", "decord"):
        np.testing.assert_array_equal(read(tmp_path / "phone.mp4", decoder=decoder), expected)
    small = read(tmp_path / "phone.mp4", size=(32, 16))
    assert small.shape == (30, 32, 16, 3)
    assert worst(small, turned(read(path, size=(32, 16) if matrix[0] else (16, 32)))) < 0.5


@pytest.mark.parametrize(("height", "width"), [(47, 63), (12, 16), (9, 200), (131, 16)])
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_odd_sizes(tmp_path, height, width, fit):
    frames = toy_frames(12, height=height, width=width)
    path = write(tmp_path / "odd.mkv", frames, np.arange(12) * 40)
    assert worst(read(path), frames) < 8
    assert read(path, size=(32, 32), fit=fit).shape == (12, 32, 32, 3)
