"""``--codec auto``: measures each codec on a sample of the source and chooses by a fixed rule.

Bytes and PSNR are measured, what decoding takes is not: a busy or another machine must not choose differently. A data
set keeps the codec that it began with, however it grows.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, MissingExtraError, ShardError, StorageError
from vidbrain.records import Recording
from vidbrain.sharding.codecs import CODECS, Codec, decode_segment, get_codec
from vidbrain.sharding.parts import PART_FRAMES, Frames
from vidbrain.sharding.plan import Listed, ShardConfig, keyed
from vidbrain.storage.atomic import read_json, write_json

CHOICE = "codec.json"
PLAN = "plan.json"

STORE_BYTES_PER_S = 10e6
"""What a store gives one reading process."""
LOWEST_PSNR_DB = 35.0
"""Below this a lossy codec does not come into question."""
FASTER = 2.0
"""A lossy codec must be this many times cheaper than the lossless one."""
RULE = (
    f"lossless zstd, unless a codec of at least {LOWEST_PSNR_DB:g} dB needs less than 1/{FASTER:g} of its time a frame "
    f"(bytes at {STORE_BYTES_PER_S / 1e6:g} MB/s, and decoding); then the one that needs least"
)

_RUN_FRAMES, _N_RUNS, _REACH = 128, 4, 1024
_MOST_PIXELS = 2**26


@dataclass(frozen=True)
class Measured:
    """What a codec takes for a sample of frames.

    Attributes
    ----------
    codec
        Its name.
    bytes_per_frame
        Of the encoded members.
    psnr_db
        10 log10(255² / mean squared error) over all pixels; None where nothing is lost.
    cost_us
        Time to read and decode a frame by the rule's fixed numbers, in microseconds.
    """

    codec: str
    bytes_per_frame: float
    psnr_db: float | None
    cost_us: float


def measure(codec: Codec, runs: Sequence[Frames]) -> Measured:
    """Encode and decode runs of frames (T, H, W, 3), each as a segment."""
    n_bytes, n_frames, squares = 0, 0, 0.0
    height, width = runs[0].shape[1:3]
    for frames in runs:
        parts = codec.encode(frames)
        n_bytes, n_frames = n_bytes + sum(map(len, parts)), n_frames + len(frames)
        decoded = decode_segment(codec, b"".join(parts), [len(part) for part in parts], height, width)
        squares += float(np.square(decoded.astype(np.int32) - frames).sum(dtype=np.float64))
    error = squares / (n_frames * height * width * 3)
    read_us = n_bytes / n_frames / STORE_BYTES_PER_S * 1e6
    decode_us = codec.decode_us + codec.decode_ns_per_pixel * height * width / 1e3
    return Measured(
        codec.name,
        round(n_bytes / n_frames, 1),
        round(10 * math.log10(255**2 / error), 2) if error else None,
        round(read_us + decode_us, 1),
    )


def choose(measured: Sequence[Measured]) -> str:
    """Return the codec that `RULE` names; the lossless one is always among those measured."""
    lossless = min((m for m in measured if CODECS[m.codec].lossless), key=lambda m: m.cost_us)
    able = [m for m in measured if m.psnr_db is not None and m.psnr_db >= LOWEST_PSNR_DB]
    cheap = [m for m in able if m.cost_us * FASTER < lossless.cost_us]
    return min(cheap, key=lambda m: m.cost_us).codec if cheap else lossless.codec


def sample(listing: Sequence[Listed], config: ShardConfig) -> list[tuple[str, int, int]]:
    """Draw runs of frames by a keyed hash: the same ones for every size of a data set.

    Returns
    -------
    list of (recording, first frame, frames)
        At most four runs of at most 128 frames (fewer where frames are large), all within the first 1,024 frames of
        their recordings, because a video is decoded from its beginning.
    """
    parts = max(1, min(_N_RUNS * _RUN_FRAMES, _MOST_PIXELS // config.frame_size**2) // PART_FRAMES)
    length = min(_RUN_FRAMES, parts * PART_FRAMES)
    n_runs = -(-parts * PART_FRAMES // length)
    some = heapq.nsmallest(
        n_runs,
        (item for item in listing if item.n_frames),
        key=lambda item: (keyed(config.seed, "codec", item.recording.key), item.recording.key),
    )
    runs = [
        (item.recording.key, start, min(length, item.n_frames - start))
        for item in some
        for start in range(0, max(1, min(item.n_frames, _REACH) - length + 1), length)
    ]
    return sorted(heapq.nsmallest(n_runs, runs, key=lambda run: (keyed(config.seed, "codec", *run), run)))


def settle_codec(
    listing: Sequence[Listed],
    config: ShardConfig,
    root: str | Path,
    frames_of: Callable[[Recording], Generator[Frames, None, None]],
) -> tuple[ShardConfig, dict[str, Any] | None]:
    """Settle which codec writes a data set; write nothing.

    Parameters
    ----------
    listing
        Every recording of the source.
    config
        Settings; `codec` may be ``"auto"``.
    root
        Folder of the data set. If an earlier call began there, its codec is kept.
    frames_of
        Decodes a recording from its beginning, in blocks of frames of the data set's size. It is closed early.

    Returns
    -------
    ShardConfig
        With the name of a codec.
    dict or None
        Where ``"auto"`` chose, now or when the data set began: codec, rule, sample and what was measured, as plain
        values for `write_choice`.

    Raises
    ------
    ConfigError
        If the codec cannot hold frames of this size.
    MissingExtraError
        If this installation has no encoder.
    ShardError
        If the source holds no frame, or the data set was begun with a codec that this version does not know.
    """
    choice, begun = read_choice(root), _begun(root)
    if config.codec == "auto" and (choice or begun):
        config = _with_codec(config, choice["codec"] if choice else str(begun))
    if config.codec != "auto":
        get_codec(config.codec).check(config.frame_size, config.frame_size)
        return config, choice if choice and choice["codec"] == config.codec else None
    runs = sample(listing, config)
    if not runs:
        raise ShardError("the source holds no frames", hint="run `vidbrain replay` first, or check the path")
    recordings = {item.recording.key: item.recording for item in listing}
    frames = [_read(frames_of(recordings[key]), key, first, n_frames) for key, first, n_frames in runs]
    measured = [measure(codec, frames) for codec in CODECS.values() if _can_write(codec, config)]
    choice = {
        "codec": choose(measured),
        "rule": RULE,
        "sample": [{"recording": key, "start_frame": first, "n_frames": n} for key, first, n in runs],
        "measured": [to_mapping(m) for m in measured],
    }
    return _with_codec(config, choice["codec"]), choice


def read_choice(root: str | Path) -> dict[str, Any] | None:
    """Read what ``"auto"`` chose for a data set; None if it was not asked.

    Raises
    ------
    StorageError
        If the record is damaged.
    """
    path = Path(root) / CHOICE
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or record.get("codec") not in CODECS:
        raise StorageError(
            "the record of the choice of a codec is damaged",
            where=path,
            hint=f"name one: --codec {' or '.join(CODECS)}",
        )
    return record


def write_choice(root: str | Path, choice: Mapping[str, Any] | None) -> None:
    """Keep a choice, so that a data set that grows or was killed goes on with it."""
    if choice is not None and read_choice(root) != choice:
        write_json(Path(root) / CHOICE, dict(choice))


def _begun(root: str | Path) -> str | None:
    """The codec of the plan that stands in a folder: it was named, not chosen."""
    path = Path(root) / PLAN
    record = read_json(path) if path.is_file() else None
    config = record.get("config") if isinstance(record, dict) else None
    return str(config.get("codec")) if isinstance(config, dict) else None


def _with_codec(config: ShardConfig, name: str) -> ShardConfig:
    get_codec(name)
    return replace(config, codec=cast("Any", name))


def _can_write(codec: Codec, config: ShardConfig) -> bool:
    try:
        codec.check(config.frame_size, config.frame_size)
    except (ConfigError, MissingExtraError):
        return False
    return True


def _read(blocks: Generator[Frames, None, None], recording: str, first: int, n_frames: int) -> Frames:
    """Pass over the beginning, keep the run, and leave the rest."""
    kept, at = [], 0
    with contextlib.closing(blocks):
        for block in blocks:
            kept.append(block[max(0, first - at) : max(0, first + n_frames - at)])
            at += len(block)
            if at >= first + n_frames:
                return np.concatenate(kept)
    raise ShardError(f"{recording} gave {at} frames, at least {first + n_frames} were counted before")
