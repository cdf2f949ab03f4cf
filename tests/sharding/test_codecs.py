"""Codecs on real frames: what enters, what leaves, who else can read it, and what damage does."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zlib

import av
import decord
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vidbrain.config import from_mapping
from vidbrain.errors import ConfigError, MissingExtraError, ShardError
from vidbrain.sharding import h264
from vidbrain.sharding.codecs import CODECS, H264, PART_FRAMES, JpegSheet, Zstd, decode_segment, get_codec
from vidbrain.sharding.parts import cut
from vidbrain.sharding.plan import ShardConfig
from vidbrain.testing.videos import toy_frames

NAMES = ["zstd", "h264", "jpeg"]
# H.264 is weakest on the texture, which moves by two pixels a frame, JPEG on the edges of the toy.
LOWEST_PSNR_DB = {"h264": 35, "jpeg": 38}


def psnr(one, other):
    error = np.mean((one.astype(float) - other) ** 2)
    return 10 * np.log10(255**2 / error) if error else np.inf


def decoded(codec, parts, height, width):
    return decode_segment(codec, b"".join(parts), [len(part) for part in parts], height, width)


@pytest.fixture(scope="session")
def encoded(footage):
    return {(name, what): CODECS[name].encode(frames) for name in NAMES for what, frames in footage.items()}


def test_the_registry_knows_its_codecs_by_name():
    assert sorted(CODECS) == sorted(NAMES)
    with pytest.raises(ShardError, match="unknown codec 'av1'"):
        get_codec("av1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["game", "toy", "texture", "odd"])
def test_what_enters_leaves(footage, encoded, name, what):
    frames, codec, parts = footage[what], CODECS[name], encoded[name, what]
    assert len(parts) == -(-len(frames) // PART_FRAMES)
    whole = decoded(codec, parts, *frames.shape[1:3])
    assert whole.shape == frames.shape
    if codec.lossless:
        np.testing.assert_array_equal(whole, frames)
    else:
        assert psnr(whole, frames) >= LOWEST_PSNR_DB[name]
        # In order: each frame is nearest to its own.
        distance = [np.abs(frames.astype(int) - frame).mean(axis=(1, 2, 3)).argmin() for frame in whole[::9]]
        assert distance == list(range(0, len(frames), 9))


@pytest.mark.parametrize("name", NAMES)
def test_a_part_needs_no_other_and_gives_only_what_is_wanted(footage, encoded, name):
    codec, parts, frames = CODECS[name], encoded[name, "game"], footage["game"]
    whole = decoded(codec, parts, *frames.shape[1:3])
    for keep in (range(16), range(3, 16, 4), range(15, 16), range(1)):
        out = np.full((len(keep) + 2, *frames.shape[1:]), 77, np.uint8)
        codec.decode_into(memoryview(parts[2]), out[1:-1], keep)
        np.testing.assert_array_equal(out[1:-1], whole[32:48][keep.start : keep.stop : keep.step])
        assert (out[[0, -1]] == 77).all()
    assert codec.count_frames(parts[-1], *frames.shape[1:3]) == len(frames) % PART_FRAMES
    with pytest.raises(ShardError):
        codec.decode_into(parts[-1], np.empty((1, *frames.shape[1:]), np.uint8), range(15, 16))


@pytest.mark.parametrize("name", NAMES)
def test_parts_side_by_side_are_what_they_are_one_by_one(footage, encoded, name):
    codec, parts, (_, height, width, _) = CODECS[name], encoded[name, "toy"], footage["toy"].shape
    counts = [codec.count_frames(part, height, width) for part in parts]
    chosen = [2, 0, 1, len(parts) - 1, 0]
    n_frames = [counts[i] for i in chosen]
    out = np.full((sum(n_frames), height, width, 3), 7, np.uint8)
    codec.decode_run([memoryview(parts[i]) for i in chosen], n_frames, out)
    np.testing.assert_array_equal(out, np.concatenate([codec.decode_part(parts[i], height, width) for i in chosen]))
    for wrong in ([16, 16, 15, *n_frames[3:]], [*n_frames[:-1], 15]):
        with pytest.raises(ShardError):
            codec.decode_run([parts[i] for i in chosen], wrong, out[: sum(wrong)])
    with pytest.raises(ShardError):
        codec.decode_run([parts[0], parts[1][: len(parts[1]) // 2], parts[2]], [16] * 3, out[:48])


def test_a_zstd_part_that_unpacks_to_more_than_it_says_does_not_push_others_out(footage, encoded):
    parts, (_, height, width, _) = encoded["zstd", "toy"], footage["toy"].shape
    out = np.empty((48, height, width, 3), np.uint8)
    with pytest.raises(ShardError, match="parts are damaged"):
        CODECS["zstd"].decode_run([parts[0] + parts[1], parts[1], parts[2]], [16] * 3, out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (8, 8), (9, 17), (31, 64), (72, 24)])
@pytest.mark.parametrize("n_frames", [1, 15, 16, 17])
def test_any_size_and_number_of_frames(name, size, n_frames):
    frames = np.broadcast_to(np.linspace(40, 200, n_frames).astype(np.uint8)[:, None, None, None], (n_frames, *size, 3))
    codec = CODECS[name]
    whole = decoded(codec, codec.encode(frames), *size)
    assert whole.shape == frames.shape
    assert np.abs(whole.astype(int) - frames).max() <= (0 if codec.lossless else 6)


@pytest.mark.parametrize("name", ["h264", "jpeg"])
def test_colours_are_those_that_entered(name):
    """Each colour of a cube fills the screen: a wrong matrix or range would shift them by ten levels and more."""
    levels = np.array([0, 64, 128, 192, 255], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 1, 1, 3)
    frames = np.broadcast_to(cube, (len(cube), 32, 32, 3))
    whole = decoded(CODECS[name], CODECS[name].encode(frames), 32, 32)
    assert np.abs(whole.astype(int) - frames).max() <= 6


def test_the_colour_space_is_written_where_players_look(encoded):
    with av.open(io.BytesIO(b"".join(encoded["h264", "game"]))) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.color_range, context.colorspace) == ("yuv444p", 1, 6)
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [i for i, key in enumerate(keys) if key] == list(range(0, 77, PART_FRAMES))


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 45))
def test_frames_are_cut_by_parts(first, n, step):
    frames = range(first, first + (n - 1) * step + 1, step)
    found = [(part, list(inside)) for part, inside in cut(frames)]
    expected = {}
    for frame in frames:
        expected.setdefault(frame // PART_FRAMES, []).append(frame % PART_FRAMES)
    assert found == list(expected.items())


def test_every_codec_can_be_named_in_the_settings():
    for name in (*CODECS, "auto"):
        assert from_mapping(ShardConfig, {"codec": name}).codec == name
    with pytest.raises(ConfigError, match="codec cannot be 'h265'; did you mean 'h264'"):
        from_mapping(ShardConfig, {"codec": "h265"})


# -- other people's readers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["toy", "odd"])
def test_decord_and_pyav_read_the_same_frames_from_the_mp4(footage, encoded, what):
    """Sizes that decord 0.6 accepts; it converts colour by itself."""
    data, shape = b"".join(encoded["h264", what]), footage[what].shape
    ours = decoded(CODECS["h264"], encoded["h264", what], *shape[1:3])
    reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
    np.testing.assert_allclose(reader.get_batch(range(len(reader))).asnumpy().astype(int), ours, atol=1)
    # In the middle, out of order: a player seeks by the fragments.
    some = [40 % shape[0], 3]
    np.testing.assert_allclose(reader.get_batch(some).asnumpy().astype(int), ours[some], atol=1)
    with av.open(io.BytesIO(data)) as container:
        theirs = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_allclose(theirs.astype(int), ours, atol=1)


def test_ffmpeg_reads_the_sheets_as_motion_jpeg(footage, encoded):
    sheets, frames = encoded["jpeg", "toy"], footage["toy"]
    with av.open(io.BytesIO(b"".join(sheets)), format="mjpeg") as container:
        theirs = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(theirs) == len(sheets)
    np.testing.assert_allclose(theirs[0][64:128, 128:192].astype(int), frames[6], atol=60)
    assert psnr(theirs[0][64:128, 128:192], frames[6]) > 35
    assert theirs[-1].shape == (64, 13 * 64, 3)


def test_bytes_depend_on_the_frames_alone(footage, tmp_path):
    """In processes with other addresses and other garbage in fresh memory."""
    script = textwrap.dedent("""
        import hashlib, sys
        import numpy as np
        from vidbrain.sharding.codecs import CODECS
        frames = np.load(sys.argv[1])
        for name in sorted(CODECS):
            data = [b"".join(CODECS[name].encode(frames)) for _ in range(2)]
            assert data[0] == data[1]
            print(name, hashlib.sha256(data[0]).hexdigest())
    """)
    frames, found = footage["toy"][:, :32, :32], set()
    np.save(tmp_path / "frames.npy", frames)
    for garbage in ("0", "85", "170"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "frames.npy")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_PERTURB_": garbage},
        )
        found.add(done.stdout)
    assert len(found) == 1
    here = {name: hashlib.sha256(b"".join(CODECS[name].encode(frames))).hexdigest() for name in NAMES}
    assert dict(line.split() for line in found.pop().splitlines()) == here


def test_h264_bytes_do_not_depend_on_the_processor(footage, monkeypatch):
    """The encoder without any extension of the processor writes the same."""
    plain = H264().encode(footage["toy"])
    monkeypatch.setattr(h264, "_X264", h264._X264 + ":asm=0")
    assert H264().encode(footage["toy"]) == plain


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 1, 7, 40, 0.5, 0.98])
def test_a_truncated_part_is_an_error(encoded, footage, name, cut):
    part = encoded[name, "toy"][1]
    n_bytes = cut if isinstance(cut, int) else int(len(part) * cut)
    with pytest.raises(ShardError):
        CODECS[name].decode_part(part[:n_bytes], 64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bytes_never_crash_nor_change_the_shape(encoded, name):
    """Without a checksum a flip may pass; the reader has one for each part."""
    part, rng = encoded[name, "toy"][1], np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(part), 60):
        damaged = bytearray(part)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            assert CODECS[name].decode_part(bytes(damaged), 64, 64).shape[1:] == (64, 64, 3)
        except ShardError:
            refused += 1
    assert refused


@pytest.mark.parametrize("name", NAMES)
def test_garbage_is_an_error(name):
    for data in (b"", b"\0" * 500, b"not a video", np.random.default_rng(0).bytes(3000)):
        with pytest.raises(ShardError):
            CODECS[name].decode_part(data, 32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_frames_of_another_size_are_refused(encoded, name):
    larger = [] if name == "zstd" else [(128, 128)]  # raw bytes do not tell four frames from one
    for size in ((64, 32), (32, 64), (65, 64), (2, 2), (80, 80), *larger):
        with pytest.raises(ShardError):
            CODECS[name].decode_part(encoded[name, "toy"][0], *size)


def test_a_part_that_claims_gigabytes_is_refused_before_it_is_allocated():
    bomb = zstandard.ZstdCompressor().compress(bytes(10**8))
    header = zstandard.ZstdCompressor().compress(bytes(64 * 64 * 3 * 16))
    huge_sheet = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(huge_sheet, "JPEG", quality=1)
    large = H264().encode(toy_frames(2, height=1024, width=1024))[0]
    tracemalloc.start()
    for name, data in (("zstd", bomb), ("jpeg", huge_sheet.getvalue())):
        with pytest.raises(ShardError):
            CODECS[name].decode_part(data, 64, 64)
    with pytest.raises(ShardError, match="Invalid data"):  # by the decoder's own bound, so before there is a frame
        H264().decode_part(large, 64, 64)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert Zstd().count_frames(header, 64, 64) == 16


def test_a_zstd_part_that_hides_its_length_is_refused():
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(32 * 32 * 3))
    with pytest.raises(ShardError):
        Zstd().decode_part(hidden, 32, 32)


def test_boxes_and_units_that_lie_about_their_length_are_refused(encoded):
    part = encoded["h264", "toy"][1]
    at = part.index(b"mdat") - 4
    for length in (0, 7, len(part) + 1, 2**32 - 1):
        with pytest.raises(ShardError, match="damaged"):
            H264().decode_part(part[:at] + struct.pack(">I", length) + part[at + 4 :], 64, 64)
        unit = part[: at + 8] + struct.pack(">I", length) + part[at + 12 :]
        if length != 7:
            with pytest.raises(ShardError, match="damaged"):
                H264().decode_part(unit, 64, 64)
    # Seventeen pictures in one part.
    body = part[at + 8 :]
    double = struct.pack(">I", 8 + 2 * len(body)) + b"mdat" + 2 * body
    with pytest.raises(ShardError, match="claims 32 frames"):
        H264().decode_part(double, 64, 64)


def test_sizes_that_cannot_be_are_refused_before_anything_is_encoded():
    with pytest.raises(ConfigError, match="do not fit on one JPEG sheet"):
        JpegSheet().check(4096, 4096)
    with pytest.raises(ConfigError, match=r"too large for H\.264"):
        H264().check(8192, 8192)
    for codec in CODECS.values():
        codec.check(8, 8)


def test_an_installation_without_the_encoder_is_refused_and_still_reads(encoded, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with pytest.raises(MissingExtraError, match="built without libx264"):
        H264().check(64, 64)
    assert len(H264().decode_part(encoded["h264", "toy"][1], 64, 64)) == PART_FRAMES


def test_parts_of_format_1_are_still_read():
    """A part as earlier versions wrote it."""
    frames = toy_frames(16, height=8, width=8)
    part = zstandard.ZstdCompressor(level=3).compress(frames.tobytes())
    np.testing.assert_array_equal(Zstd().decode_part(part, 8, 8), frames)
    assert zlib.crc32(part) == zlib.crc32(Zstd().encode(frames)[0])
