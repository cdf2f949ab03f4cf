"""What do the codecs take for a source? Bytes, PSNR and frames per second of each, on the same segments, in one call.

Codecs take turns in every repetition, so that a busy machine slows all of them. Ratios are to lossless zstd; a clip is
16 frames at step 4, at random places of random segments, cut from the parts that hold it. Below the codecs stand other
readers of the same H.264 member. One thread.

With several sizes of frames, the cost of a codec's frame on the way to a clip (stored frames, four for each that is
delivered) is fitted as a constant and a cost a pixel: what `--codec auto` reckons with stands beside it.

Run: python tools/bench/codecs.py SOURCE --size 32 64 128 --json docs/benchmarks/codecs-NAME.json
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL
import zstandard

from vidbrain.errors import VidbrainError
from vidbrain.records import ClipSpec
from vidbrain.sharding.choice import RULE, choose, measure
from vidbrain.sharding.codecs import CODECS, decode_segment
from vidbrain.sharding.parts import PART_FRAMES, Codec, Frames, cut
from vidbrain.sharding.plan import keyed
from vidbrain.video.screens import recording_facts, recording_frames
from vidbrain.video.sources import find_recordings

CLIP = ClipSpec(n_frames=16, step=4)


def read_segments(source: Path, size: int, n_segments: int, n_frames: int) -> list[Frames]:
    """Take one run of frames from each of a few recordings, chosen by a keyed hash, after their first thousand."""
    chosen = sorted(find_recordings(source), key=lambda r: keyed(0, "bench", r.key))[:n_segments]
    found = []
    for recording in chosen:
        first = max(0, min(1000, recording_facts(recording).n_frames - n_frames))
        blocks, at = [], 0
        with contextlib.closing(recording_frames(recording, size=(size, size))) as frames:
            for block in frames:
                blocks.append(block[max(0, first - at) : max(0, first + n_frames - at)])
                at += len(block)
                if at >= first + n_frames:
                    break
        found.append(np.concatenate(blocks))
    return found


def read_clips(codec: Codec, members: list[list[bytes]], segments: list[Frames], seed: int, n_clips: int = 40) -> int:
    """Decode random clips; return the frames delivered."""
    rng = np.random.default_rng(seed)
    out = np.empty((CLIP.n_frames, *segments[0].shape[1:]), np.uint8)
    for _ in range(n_clips):
        number = int(rng.integers(len(segments)))
        start = int(rng.integers(len(segments[number]) - CLIP.span + 1))
        written = 0
        for part, wanted in cut(range(start, start + CLIP.span, CLIP.step)):
            codec.decode_into(members[number][part], out[written : written + len(wanted)], wanted)
            written += len(wanted)
    return n_clips * CLIP.n_frames


def by_decord(data: bytes) -> Frames:
    import decord

    reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
    return reader.get_batch(range(len(reader))).asnumpy()


def by_pyav(data: bytes) -> Frames:
    """As its documentation shows: demuxed, one frame at a time converted with defaults."""
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rate(work: Callable[[], int]) -> float:
    """Frames per second of one call."""
    began = time.perf_counter()
    n_frames = work()
    return n_frames / (time.perf_counter() - began)


def compare(segments: list[Frames], repetitions: int) -> tuple[list[dict], str]:
    """Measure every codec, then choose as ``--codec auto`` would for these segments."""
    n_frames, (height, width) = sum(map(len, segments)), segments[0].shape[1:3]
    members = {name: [codec.encode(frames) for frames in segments] for name, codec in CODECS.items()}
    measured = [measure(codec, segments) for codec in CODECS.values()]
    rows = [
        {
            "codec": m.codec,
            "kib_per_16_frames": 16 * m.bytes_per_frame / 1024,
            "bytes_per_frame": m.bytes_per_frame,
            "psnr_db": m.psnr_db,
        }
        for m in measured
    ]
    rates: dict[tuple[str, str], list[float]] = {}
    for repetition in range(repetitions):
        for name, codec in CODECS.items():

            def encode(codec: Codec = codec) -> int:
                return sum(len(codec.encode(frames)) and len(frames) for frames in segments)

            def decode(name: str = name, codec: Codec = codec) -> int:
                for parts in members[name]:
                    decode_segment(codec, b"".join(parts), [len(p) for p in parts], height, width)
                return n_frames

            def clips(name: str = name, codec: Codec = codec, seed: int = repetition) -> int:
                return read_clips(codec, members[name], segments, seed)

            for what, work in (("encode_fps", encode), ("decode_fps", decode), ("clip_fps", clips)):
                rates.setdefault((name, what), []).append(rate(work))
        for label, reader in (("h264 by decord", by_decord), ("h264 by PyAV alone", by_pyav)):
            files = [b"".join(parts) for parts in members["h264"]]
            reads = rates.setdefault((label, "decode_fps"), [])
            reads.append(rate(lambda files=files, reader=reader: sum(len(reader(data)) for data in files)))
    rows += [{"codec": label} for label in ("h264 by decord", "h264 by PyAV alone")]
    for row in rows:
        for what in ("encode_fps", "decode_fps", "clip_fps"):
            values = rates.get((row["codec"], what))
            row[what] = statistics.median(values) if values else None
    lossless = rows[0]
    for row in rows:
        row["clip_us_per_stored_frame"] = 1e6 / (CLIP.step * row["clip_fps"]) if row["clip_fps"] else None
        for what in ("bytes_per_frame", "encode_fps", "decode_fps", "clip_fps"):
            row[f"{what}_ratio"] = row[what] / lossless[what] if row.get(what) else None
    return rows, choose(measured)


def print_table(rows: list[dict]) -> None:
    columns = [
        ("codec", 20, "{}"),
        ("kib_per_16_frames", 9, "{:.1f}"),
        ("bytes_per_frame", 9, "{:.0f}"),
        ("bytes_per_frame_ratio", 7, "{:.2f}"),
        ("psnr_db", 8, "{:.1f}"),
        ("encode_fps", 10, "{:.0f}"),
        ("decode_fps", 10, "{:.0f}"),
        ("decode_fps_ratio", 7, "{:.2f}"),
        ("clip_fps", 10, "{:.0f}"),
        ("clip_fps_ratio", 7, "{:.2f}"),
    ]
    heads = ["codec", "KiB/16", "B/frame", "ratio", "PSNR dB", "encode/s", "decode/s", "ratio", "clips f/s", "ratio"]
    print("".join(f"{head:>{width}}" for head, (_, width, _) in zip(heads, columns, strict=True)))
    for row in rows:
        cells = [(form.format(row[name]) if row.get(name) is not None else "-", w) for name, w, form in columns]
        print("".join(f"{text:>{width}}" for text, width in cells))


def fit_costs(tables: dict[int, list[dict]]) -> dict[str, dict[str, float]]:
    """Fit microseconds a stored frame to a constant and a cost a pixel, by least squares over the sizes."""
    found = {}
    for name, codec in CODECS.items():
        measured = {
            size: row["clip_us_per_stored_frame"]
            for size, rows in tables.items()
            for row in rows
            if row["codec"] == name
        }
        pixels = np.array([size**2 for size in measured], np.float64)
        design = np.stack([np.ones_like(pixels), pixels / 1e3], axis=1)
        (constant, slope), *_ = np.linalg.lstsq(design, np.array(list(measured.values())), rcond=None)
        found[name] = {
            "decode_us": round(float(constant), 2),
            "decode_ns_per_pixel": round(float(slope), 3),
            "rule_decode_us": codec.decode_us,
            "rule_decode_ns_per_pixel": codec.decode_ns_per_pixel,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="BIDS tree of game play, a folder of videos, one video, or a list")
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="height and width of the frames, in pixels")
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--frames", type=int, default=316, help="in a segment; 316 are 256 and the usual margin")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if options.frames < CLIP.span:
        parser.error(f"--frames must be at least {CLIP.span}, the span of a clip")
    tables, choices, lengths = {}, {}, {}
    for size in options.size:
        try:
            found = read_segments(options.source, size, options.segments, options.frames)
        except VidbrainError as error:
            parser.exit(1, f"error: {error}\n")
        segments = [frames for frames in found if len(frames) >= CLIP.span]
        if not segments:
            parser.error(f"no recording of {options.source} is as long as a clip of {CLIP.span} frames")
        lengths[size] = [len(frames) for frames in segments]
        tables[size], choices[size] = compare(segments, options.repetitions)
        print(f"\n{size} by {size} pixels, {len(segments)} segments")
        print_table(tables[size])
        print(f"auto would choose {choices[size]} for these: {RULE}")
    costs = fit_costs(tables) if len(tables) > 1 else None
    for name, cost in (costs or {}).items():
        print(
            f"{name:>20}: {cost['decode_us']:.1f} us and {cost['decode_ns_per_pixel']:.2f} ns a pixel; "
            f"the rule reckons with {cost['rule_decode_us']:g} and {cost['rule_decode_ns_per_pixel']:g}"
        )
    if options.json:
        sizes = " ".join(map(str, options.size))
        record = {
            "question": "bytes, PSNR and frames per second of each codec on the same segments, one thread",
            "command": f"python tools/bench/codecs.py SOURCE --size {sizes} --segments {options.segments} "
            f"--frames {options.frames} --repetitions {options.repetitions} --json docs/benchmarks/{options.json.name}",
            "machine": {"cores": os.cpu_count(), "platform": platform.platform()},
            "versions": {
                "python": platform.python_version(),
                "av": av.__version__,
                "ffmpeg": ".".join(map(str, av.library_versions["libavcodec"])),
                "pillow": PIL.__version__,
                "zstandard": zstandard.__version__,
            },
            "part_frames": PART_FRAMES,
            "clip": [CLIP.n_frames, CLIP.step],
            "repetitions": options.repetitions,
            "sizes": [
                {"pixels": size, "segments": lengths[size], "rows": tables[size], "auto": choices[size]}
                for size in options.size
            ],
            "costs": costs,
            "rule": RULE,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
