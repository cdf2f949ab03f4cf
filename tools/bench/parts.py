"""How small can lossless frames be? Bytes a frame by length of a part, level of zstd, filter and dictionary.

Each recording is cut as sharding cuts it, into samples of 256 frames and the margin of 60 that makes every clip
reachable. Rows are ways to pack a sample: in parts of so many frames, each packed without the others, or whole. `chunk`
packs the samples of a recording one after another as one piece, as litdata and MosaicML streaming pack their chunks:
there a margin costs next to nothing, because the frames were seen just before, and a clip cannot be read without
unpacking all that comes before it. The dictionary is trained on the recordings that the rows do not use; its own bytes
are not counted.

Filters change the bytes before zstd sees them, and are undone after. They are checked to give back the same frames.

CPU time (of the thread, least of three) is printed and not kept: caches are shared with whatever else runs.

Run: python tools/bench/parts.py SOURCE --size 64 128 --json docs/benchmarks/parts-NAME.json
"""

import argparse
import contextlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from vidbrain.sharding.order import keyed
from vidbrain.sharding.parts import PART_FRAMES, Frames
from vidbrain.video.screens import recording_frames
from vidbrain.video.sources import find_recordings

OWNED, MARGIN, LEVEL = 256, 60, 3
DICTIONARY_BYTES = 112 << 10
Pack = Callable[[Frames], NDArray[np.uint8]]
Unpack = Callable[[NDArray[np.uint8]], Frames]


def since(reference: Callable[[Frames], Frames], *, by_xor: bool) -> Pack:
    """Frames but the first, as difference from others."""

    def pack(frames: Frames) -> Frames:
        packed = frames.copy()
        packed[1:] = frames[1:] ^ reference(frames) if by_xor else frames[1:] - reference(frames)
        return packed

    return pack


def add_up(packed: Frames) -> Frames:
    for i in range(1, len(packed)):
        np.add(packed[i], packed[i - 1], out=packed[i])
    return packed


def xor_up(packed: Frames) -> Frames:
    for i in range(1, len(packed)):
        np.bitwise_xor(packed[i], packed[i - 1], out=packed[i])
    return packed


def add_first(packed: Frames) -> Frames:
    packed[1:] += packed[0]
    return packed


def xor_first(packed: Frames) -> Frames:
    packed[1:] ^= packed[0]
    return packed


def pack_left(frames: Frames) -> Frames:
    packed = frames.copy()
    packed[:, :, 1:] -= frames[:, :, :-1]
    return packed


def unpack_left(packed: Frames) -> Frames:
    return np.add.accumulate(packed, axis=2, dtype=np.uint8, out=packed)


def pack_green(frames: Frames) -> Frames:
    """Red and blue as difference from green."""
    packed = frames.copy()
    packed[..., ::2] -= frames[..., 1:2]
    return packed


def unpack_green(packed: Frames) -> Frames:
    pixels = packed.reshape(-1, 3)  # long rows: numpy's inner loop over two channels would cost ten times as much
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    return packed


def unpack_planes(packed: NDArray[np.uint8]) -> Frames:
    frames = np.empty((*packed.shape[1:], 3), np.uint8)
    for channel in range(3):
        frames.reshape(-1, 3)[:, channel] = packed[channel].ravel()
    return frames


def unpack_green_planes(packed: NDArray[np.uint8]) -> Frames:
    frames = np.empty((*packed.shape[1:], 3), np.uint8)
    red, green, blue = packed.reshape(3, -1)
    pixels = frames.reshape(-1, 3)
    np.add(red, green, out=pixels[:, 0])
    pixels[:, 1] = green
    np.add(blue, green, out=pixels[:, 2])
    return frames


def planes(frames: Frames) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frames.transpose(3, 0, 1, 2))


def swap_rows(frames: Frames) -> NDArray[np.uint8]:
    """The axes of (T, H, W, 3) as (H, T, W, 3), and back."""
    return np.ascontiguousarray(frames.swapaxes(0, 1))


def same(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frames


FILTERS: dict[str, tuple[Pack, Unpack]] = {
    "none": (same, same),
    "difference from the frame before": (since(lambda f: f[:-1], by_xor=False), add_up),
    "exclusive or with the frame before": (since(lambda f: f[:-1], by_xor=True), xor_up),
    "difference from the first frame": (since(lambda f: f[0], by_xor=False), add_first),
    "exclusive or with the first frame": (since(lambda f: f[0], by_xor=True), xor_first),
    "difference from the pixel to the left": (pack_left, unpack_left),
    "planes of red, green, blue": (planes, unpack_planes),
    "red and blue less green": (pack_green, unpack_green),
    "planes, red and blue less green": (lambda frames: planes(pack_green(frames)), unpack_green_planes),
    "the same row of all frames together": (swap_rows, swap_rows),
}


def read_recordings(source: Path, size: int, n_recordings: int, n_frames: int) -> list[Frames]:
    """The beginnings of a few recordings, chosen by a keyed hash."""
    chosen = sorted(find_recordings(source), key=lambda r: keyed(0, "bench", r.key))[:n_recordings]
    found = []
    for recording in chosen:
        blocks, n_seen = [], 0
        with contextlib.closing(recording_frames(recording, size=(size, size))) as frames:
            for block in frames:
                blocks.append(block.copy())
                n_seen += len(block)
                if n_seen >= n_frames:
                    break
        found.append(np.concatenate(blocks)[:n_frames])
    return found


def samples_of(frames: Frames) -> list[Frames]:
    return [frames[at : at + OWNED + MARGIN] for at in range(0, max(1, len(frames) - MARGIN), OWNED)]


def least_cpu_s(work: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


def measure(
    pieces: list[Frames],
    name: str = "none",
    compressor: zstandard.ZstdCompressor | None = None,
    dictionary: zstandard.ZstdCompressionDict | None = None,
) -> tuple[int, float, float]:
    """Pack pieces, each by itself; return bytes, and CPU seconds of packing and of unpacking."""
    (pack, unpack), packed = FILTERS[name], []
    compressor = compressor or zstandard.ZstdCompressor(level=LEVEL)
    known = {} if dictionary is None else {"dict_data": dictionary}
    decompressor = zstandard.ZstdDecompressor(**known)
    arrays = [pack(np.ascontiguousarray(piece)) for piece in pieces]
    memory = np.empty(max(piece.nbytes for piece in pieces), np.uint8)

    def write() -> None:
        packed[:] = [compressor.compress(array.data) for array in arrays]

    def read(check: bool = False) -> None:
        for data, array, piece in zip(packed, arrays, pieces, strict=True):
            decompressor.stream_reader(data).readinto(memory.data[: array.nbytes])
            frames = unpack(memory[: array.nbytes].reshape(array.shape))
            if check and not np.array_equal(frames, piece):
                raise SystemExit(f"{name}: other frames came back")

    write_s = least_cpu_s(write, 1)
    read(check=True)
    return sum(map(len, packed)), write_s, least_cpu_s(read, 3)


def compare(recordings: list[Frames]) -> list[dict]:
    """Measure every way to pack every second recording."""
    mine, others = recordings[::2], recordings[1::2]
    samples = [sample for frames in mine for sample in samples_of(frames)]
    n_frames, rows = sum(map(len, samples)), []

    def add(what: str, pieces: list[Frames], **how: object) -> None:
        n_bytes, write_s, read_s = measure(pieces, **how)
        rows.append(
            {
                "what": what,
                "bytes_per_frame": round(n_bytes / n_frames, 1),
                "ratio": n_bytes / n_frames,
                "pack_us": 1e6 * write_s / n_frames,
                "unpack_us": 1e6 * read_s / n_frames,
            }
        )

    def parts(length: int) -> list[Frames]:
        return [sample[at : at + length] for sample in samples for at in range(0, len(sample), length)]

    add(f"parts of {PART_FRAMES}, level {LEVEL}", parts(PART_FRAMES))
    for length in (8, 32, 64):
        add(f"parts of {length}", parts(length))
    add("whole samples", samples)
    add("chunk", [np.concatenate(samples_of(frames)) for frames in mine])
    for level in (1, 6, 9, 19):
        add(f"level {level}", parts(PART_FRAMES), compressor=zstandard.ZstdCompressor(level=level))
    lazy = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_LAZY2, min_match=6, window_log=20, hash_log=16, chain_log=16, search_log=1
    )
    add("lazy2 search, matches of 6", parts(PART_FRAMES), compressor=zstandard.ZstdCompressor(compression_params=lazy))
    for name in FILTERS:
        if name != "none":
            add(name, parts(PART_FRAMES), name=name)
    dictionary = zstandard.train_dictionary(
        DICTIONARY_BYTES, [frame.tobytes() for frames in others for frame in frames[::4]], k=400, d=8
    )
    by_dictionary = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary)
    add("trained dictionary", parts(PART_FRAMES), compressor=by_dictionary, dictionary=dictionary)
    unit = rows[0]["ratio"]
    return [{**row, "ratio": round(row["ratio"] / unit, 3)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="BIDS tree of game play, a folder of videos, one video, or a list")
    parser.add_argument("--size", type=int, nargs="+", default=[64], help="height and width of the frames, in pixels")
    parser.add_argument("--recordings", type=int, default=6, help="half of them train the dictionary")
    parser.add_argument("--frames", type=int, default=5 * OWNED + MARGIN, help="of each recording, at most")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if options.recordings < 2:
        parser.error("--recordings must be at least 2")
    sizes = []
    for size in options.size:
        recordings = read_recordings(options.source, size, options.recordings, options.frames)
        rows = compare(recordings)
        print(f"\n{size} by {size} pixels, {[len(frames) for frames in recordings[::2]]} frames")
        print(f"{'':<40}{'B/frame':>10}{'ratio':>8}{'pack us':>10}{'unpack us':>11}")
        for row in rows:
            numbers = (
                f"{row['bytes_per_frame']:>10.1f}{row['ratio']:>8.3f}{row['pack_us']:>10.1f}{row['unpack_us']:>11.2f}"
            )
            print(f"{row['what']:<40}{numbers}")
        kept = [{name: row[name] for name in ("what", "bytes_per_frame", "ratio")} for row in rows]
        sizes.append({"pixels": size, "frames": [len(frames) for frames in recordings[::2]], "rows": kept})
    if options.json:
        chosen = (
            f"--size {' '.join(map(str, options.size))} --recordings {options.recordings} --frames {options.frames}"
        )
        record = {
            "question": "bytes a stored frame of lossless zstd by length of a part, level, filter and dictionary",
            "command": f"python tools/bench/parts.py SOURCE {chosen} --json docs/benchmarks/{options.json.name}",
            "versions": {"python": platform.python_version(), "zstandard": zstandard.__version__},
            "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
            "sample": [OWNED, MARGIN],
            "ratio": f"to parts of {PART_FRAMES} at level {LEVEL}",
            "sizes": sizes,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
