"""The video codec: H.264 in 4:4:4, one fragmented mp4 a segment, one fragment a part.

A fragment is a closed group of pictures whose key frame carries the decoder's parameters (ISO/IEC 14496-12, section
8.8; 14496-15, sample entry with in-band parameter sets), so a part is decoded from its own bytes, without the head of
the file and without a demuxer. There are no B-frames: pictures are stored in the order in which they are shown.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator
from itertools import pairwise

import av
import av.error
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from vidbrain.errors import ConfigError, MissingExtraError, ShardError
from vidbrain.sharding.parts import PART_FRAMES, Codec, Frames, check_count
from vidbrain.video.encode import picture_of

ENCODER = "libx264"
CRF = 18
PRESET = "veryfast"
NOMINAL_FPS = 60
"""The clock of the mp4, for players. When a frame was shown is said by the index."""

# Without cpu-independent the same frames now and then give other bytes, even on the same machine.
_X264 = (
    f"keyint={PART_FRAMES}:min-keyint={PART_FRAMES}:scenecut=0:bframes=0:open-gop=0:slices=1:repeat-headers=1"
    ":cpu-independent=1"
)
_MOV = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"
_BT601 = 6  # SMPTE 170M: matrix, primaries and transfer; every reader takes it for small video, even one without tags
_mine = threading.local()  # a reformatter serves one thread, and keeps its scaler
_SLICE, _KEY_SLICE = 1, 5
_MACROBLOCK, _MOST_MACROBLOCKS = 16, 139_264  # of level 6.2
_ALIGNMENT = 64  # of the picture in the decoder's memory


class H264(Codec):
    """Each part is a fragment of an mp4: crf 18, preset veryfast, 4:4:4, BT.601 in limited range.

    Halved colour (4:2:0) would smear the edges of pixel art, and it wants even sizes.
    """

    name = "h264"
    extension = "mp4"
    lossless = False
    decode_us = 20
    decode_ns_per_pixel = 2.5

    def check(self, height: int, width: int) -> None:
        """Refuse frames that no level of H.264 has room for, and a PyAV without the encoder."""
        if ENCODER not in av.codecs_available:
            raise MissingExtraError(
                f"this PyAV cannot write H.264: it was built without {ENCODER}",
                hint="use --codec zstd, or install PyAV's own wheel: pip install --force-reinstall av",
            )
        blocks = -(-height // _MACROBLOCK) * -(-width // _MACROBLOCK)
        if blocks > _MOST_MACROBLOCKS:
            raise ConfigError(
                f"frames of {height} by {width} pixels are too large for H.264", hint="use smaller frames"
            )

    def encode(self, frames: Frames) -> list[bytes]:
        """Compress frames (T, H, W, 3); the first part begins with the head of the file."""
        data = _write_mp4(frames)
        starts = [at for kind, at, _ in _boxes(data) if kind == b"moof"]
        bounds = [0, *starts[1:], len(data)]
        return [data[first:past] for first, past in pairwise(bounds)]

    def count_frames(self, data: bytes | memoryview, height: int, width: int) -> int:
        """Count the pictures of the fragment; their size is seen when they are decoded."""
        return check_count(len(_pictures(memoryview(data))))

    def decode_into(self, data: bytes | memoryview, out: Frames, keep: range) -> int:
        """Decode up to the last frame that is wanted, and convert the colour of those that are."""
        height, width = out.shape[1:3]
        pictures = _pictures(memoryview(data))
        if keep[-1] >= check_count(len(pictures)):
            raise ShardError(f"a part holds {len(pictures)} frames, frame {keep[-1]} is wanted")
        n_decoded, reformatter = 0, _reformatter()
        try:
            for frame in _decode(pictures[: keep[-1] + 1], height, width):
                if (frame.height, frame.width) != (height, width):
                    raise ShardError(
                        f"a part is damaged: it holds frames of {frame.height} by {frame.width} pixels, "
                        f"not {height} by {width}"
                    )
                if n_decoded in keep:
                    _to_rgb(reformatter, frame, out[keep.index(n_decoded)])
                n_decoded += 1
        except (av.error.FFmpegError, ValueError) as error:
            raise ShardError(f"a part is damaged: {error}") from error
        if n_decoded != keep[-1] + 1:
            raise ShardError(f"a part is damaged: {n_decoded} of {keep[-1] + 1} frames could be decoded")
        return len(pictures)


def _write_mp4(frames: Frames) -> bytes:
    """Write a fragmented mp4; equal frames give equal bytes."""
    buffer, reformatter = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4", options={"movflags": _MOV, "fflags": "+bitexact"}) as container:
        stream = container.add_stream(ENCODER, rate=NOMINAL_FPS)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        stream.options = {"crf": str(CRF), "preset": PRESET, "x264-params": _X264}
        context = stream.codec_context
        context.thread_count = 1  # the bytes depend on the number of threads
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        # The encoder's account of its settings, 700 bytes in each segment; docs/formats/shards.md has them once.
        plain = BitStreamFilterContext("filter_units=remove_types=6", stream)
        for number, image in enumerate(frames):
            frame = reformatter.reformat(
                picture_of(image),
                format="yuv444p",
                dst_colorspace=Colorspace.ITU601,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            frame.pts = number
            for packet in stream.encode(frame):
                container.mux(plain.filter(packet))
        for packet in stream.encode(None):
            container.mux(plain.filter(packet))
        container.mux(plain.filter(None))
    return buffer.getvalue()


def _boxes(data: bytes | memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, past the end) of the boxes of an mp4."""
    at = 0
    while at < len(data):
        n_bytes, kind = struct.unpack_from(">I4s", data, at) if at + 8 <= len(data) else (0, b"")
        if not 8 <= n_bytes <= len(data) - at:
            raise ShardError(f"a part is damaged: a box of {n_bytes} bytes where {len(data) - at} are left")
        yield kind, at, at + n_bytes
        at += n_bytes


def _pictures(data: memoryview) -> list[bytes]:
    """Cut the fragment into pictures, each with the parameters before it, as a decoder takes them.

    In an mp4 a length stands before each unit (ISO/IEC 14496-15), in the plain stream a start code (ITU-T H.264,
    annex B); both take four bytes.
    """
    found, units = [], bytearray()
    for kind, first, past in _boxes(data):
        at = first + 8
        while kind == b"mdat" and at < past:
            n_bytes = int.from_bytes(data[at : at + 4], "big")
            if not 0 < n_bytes <= past - at - 4:
                raise ShardError(f"a part is damaged: a unit of {n_bytes} bytes where {past - at - 4} are left")
            units += b"\0\0\0\1" + data[at + 4 : at + 4 + n_bytes]
            if data[at + 4] & 31 in (_SLICE, _KEY_SLICE):
                found.append(bytes(units))
                units.clear()
            at += 4 + n_bytes
    return found


def _decode(pictures: list[bytes], height: int, width: int) -> Iterator[av.VideoFrame]:
    context = av.CodecContext.create("h264", "r")
    context.thread_count = 1  # the processes around this one use every core
    # Frames of another size are refused before they are allocated, broken pictures are not patched up.
    most = -(-height // _ALIGNMENT) * -(-width // _ALIGNMENT) * _ALIGNMENT**2
    context.options = {"max_pixels": str(most), "err_detect": "explode"}
    for picture in pictures:
        yield from context.decode(av.Packet(picture))
    yield from context.decode(None)


def _reformatter() -> VideoReformatter:
    if not hasattr(_mine, "reformatter"):
        _mine.reformatter = VideoReformatter()
    found: VideoReformatter = _mine.reformatter
    return found


def _to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame, out: Frames) -> None:
    rgb = reformatter.reformat(
        frame,
        format="rgb24",
        src_colorspace=Colorspace.ITU601,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : 3 * plane.width]
    out[:] = rows.reshape(plane.height, plane.width, 3)
