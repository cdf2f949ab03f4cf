"""Replay: recorded input enters, a video and a table a frame (buttons, RAM variables) leave."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vidbrain import __version__
from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import ConfigError, ResumeError, VideoError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import Recording
from vidbrain.storage import atomic
from vidbrain.storage.locks import locked
from vidbrain.video.emulator import Emulator, Movie, read_movie
from vidbrain.video.encode import ScreenWriter
from vidbrain.video.gamelogs import refuse_all
from vidbrain.video.sources import REPLAY, FirstSkip, refuse_absent, survey

FPS = 60
"""Rate in the file's header, as the data set's own scripts write it. The scanner's clock is in the events."""
_METADATA = b"vidbrain.replay"
_BYTES_A_FRAME = 1000


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How recorded input becomes video."""

    first_skip: FirstSkip = "row"
    """Whose first input line is discarded: row 0's of a run ("row"), its first file's ("file"), nobody's ("never")."""
    crf: int = 18
    """x264 quality: lower is better and larger; 0 is lossless."""
    preset: str = "ultrafast"
    """x264 effort. On sprites the fastest gives the better picture, at twice the bytes of "veryfast"."""
    keyframe_every: int = 60
    """Frames between two points where decoding can begin."""

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"crf is 0 to 51, not {self.crf}")
        if self.keyframe_every < 1:
            raise ConfigError(f"keyframe-every must be at least 1, not {self.keyframe_every}")


@dataclass(frozen=True)
class _Row:
    recording: Recording
    video: str
    n_frames: int
    source: str
    game: str
    config: ReplayConfig
    integration: str | None


def replay(
    source: str | Path,
    out: str | Path | None,
    config: ReplayConfig,
    *,
    integration: str | Path | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Replay every recording of a source that has no up-to-date video yet.

    Parameters
    ----------
    source
        A BIDS tree with ``gamelogs/``, a folder of `.bk2` files, or one file.
    out
        Where ``<key>.mp4`` and ``<key>.parquet`` go; default ``<source>/derivatives/replay``.
    config
        How.
    integration
        Folder with the user's own ROM and game integration; see `vidbrain.video.emulator.Emulator`.
    client, progress
        Where recordings are replayed, and who listens.

    Returns
    -------
    dict
        ``n_recordings``, ``n_frames``, ``n_replayed`` (in this call), ``n_bytes`` (of the videos).

    Raises
    ------
    VideoError
        If a recording is damaged, absent, of another game than the ROM, or shorter or longer than the events say. All
        that can be found before work are listed at once.
    ResumeError
        If videos are there that were made with other settings.
    StorageError
        If the videos cannot be written, or another process replays there.
    """
    client = client or Client()
    out, rows, notes = _plan(Path(source), out, config, integration)
    for note in notes:
        progress.note(note)
    todo = [row for row in rows if not _is_done(row)]
    atomic.check_writable(out, sum(row.n_frames for row in todo) * _BYTES_A_FRAME)
    for game in sorted({row.game for row in todo}):
        with Emulator(game, integration=integration, empty=True):
            pass  # a missing ROM is found before work starts
    n_frames = sum(row.n_frames for row in rows)
    with locked(out):
        for folder in {Path(row.video).parent for row in todo}:
            atomic.sweep(folder)
        progress.start("replay", n_frames, "frames", n_frames - sum(row.n_frames for row in todo))
        for position, _ in client.run(_replay_one, todo, weight=lambda row: row.n_frames):
            progress.advance(todo[position].n_frames)
        progress.finish()
        atomic.write_json(
            out / "dataset_description.json",
            {
                "Name": "Replayed game play",
                "BIDSVersion": "1.9.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "vidbrain replay", "Version": __version__, "Settings": to_mapping(config)}],
            },
        )
    return {
        "n_recordings": len(rows),
        "n_frames": n_frames,
        "n_replayed": len(todo),
        "n_bytes": sum(Path(row.video).stat().st_size for row in rows),
    }


def plan_replay(
    source: str | Path, out: str | Path | None, config: ReplayConfig, *, integration: str | Path | None = None
) -> dict[str, Any]:
    """Check every recording, say what `replay` would do, and write nothing.

    Returns
    -------
    dict
        ``n_recordings``, ``n_done``, ``n_frames`` and ``n_bytes_about`` of those still to be replayed, ``notes``.

    Raises
    ------
    VideoError, ResumeError
        As `replay`.
    """
    _, rows, notes = _plan(Path(source), out, config, integration)
    todo = [row for row in rows if not _is_done(row)]
    n_frames = sum(row.n_frames for row in todo)
    return {
        "n_recordings": len(rows),
        "n_done": len(rows) - len(todo),
        "n_frames": n_frames,
        "n_bytes_about": n_frames * _BYTES_A_FRAME,
        "notes": list(notes),
    }


def _plan(
    source: Path, out: str | Path | None, config: ReplayConfig, integration: str | Path | None
) -> tuple[Path, list[_Row], tuple[str, ...]]:
    """Read every recording's input, check it against the events, and name what it becomes."""
    root = source if source.is_dir() else source.parent
    out = Path(out) if out is not None else root / REPLAY
    found = survey(source, video_root=out, first_skip=config.first_skip)
    refuse_absent(found, root)
    rows, faults = [], []
    for recording in found.recordings:
        if recording.movie is None:
            continue
        path = Path(recording.movie)
        try:
            movie = read_movie(path)
        except VideoError as error:
            faults.append(f"{path.name}: {error.message}")
            continue
        promised = found.lines.get(recording.key, movie.n_lines)
        n_frames = movie.n_lines - recording.skip_first_step
        # One line of slack: recorders differ in whether they count the one that replay discards.
        if abs(promised - movie.n_lines) > 1 or n_frames < 1:
            faults.append(f"{path.name}: {movie.n_lines} input lines, the events say {promised}")
            continue
        folder = out / path.parent.parent.relative_to(root) if found.bids else out
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append(
            _Row(
                recording,
                str(folder / f"{recording.key}.mp4"),
                n_frames,
                checksum,
                movie.game,
                config,
                None if integration is None else str(integration),
            )
        )
    refuse_all("{n} recording(s) cannot be replayed", faults, root)
    if not rows:
        raise VideoError("there is no .bk2 recording", where=source)
    return out, rows, found.notes


def _made_with(row: _Row) -> dict[str, Any]:
    settings = {name: value for name, value in to_mapping(row.config).items() if name != "first_skip"}
    return {
        "source": row.source,
        "skip_first_step": row.recording.skip_first_step,
        "first_skip": row.config.first_skip,
        "settings": fingerprint(settings),
    }


def _is_done(row: _Row) -> bool:
    video, table = Path(row.video), Path(row.video).with_suffix(".parquet")
    if not (video.is_file() and table.is_file()):
        return False
    try:
        text = (pq.read_schema(table).metadata or {}).get(_METADATA, b"{}")
    except (OSError, pa.ArrowException):
        return False
    there, wanted = json.loads(text), _made_with(row)
    if there.get("source") != wanted["source"]:
        return False  # the recording has changed since
    differs = [name for name in ("skip_first_step", "settings") if there.get(name) != wanted[name]]
    if differs:
        raise ResumeError(
            f"the video there was made with other settings ({', '.join(differs)})",
            where=video,
            hint="give another --out, or remove this folder first",
        )
    return video.stat().st_size == there.get("n_bytes")


def _replay_one(row: _Row) -> int:
    """Replay one recording. The table is written last: it says that both are whole."""
    video, table = Path(row.video), Path(row.video).with_suffix(".parquet")
    movie = read_movie(row.recording.movie or "", with_state=True)
    table.unlink(missing_ok=True)
    with Emulator(movie.game, integration=row.integration, empty=True) as console, atomic.replacing(video) as part:
        columns = _record(console, movie, row.recording.skip_first_step, part, row.config)
        n_bytes = part.stat().st_size
    metadata = {_METADATA: json.dumps({**_made_with(row), "game": movie.game, "n_bytes": n_bytes}, sort_keys=True)}
    with atomic.replacing(table) as part:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), part, compression="zstd")
    return row.n_frames


def _record(
    console: Emulator, movie: Movie, skip_first_step: bool, path: Path, config: ReplayConfig
) -> dict[str, NDArray[Any]]:
    """Run the console over the movie's lines and encode what it shows; return the table's columns."""
    masks = console.masks(movie)[int(skip_first_step) :]
    ram = np.empty((len(masks), len(console.variables)), np.int64)
    console.reset(movie.state)
    with ScreenWriter(
        path, console.shape, fps=FPS, crf=config.crf, preset=config.preset, keyframe_every=config.keyframe_every
    ) as video:
        for position, mask in enumerate(masks):
            console.step(mask)
            ram[position] = console.read_ram()
            video.write(console.screen())
    taken = {"frame", *console.buttons}
    return {
        "frame": np.arange(len(masks)),
        **dict(zip(console.buttons, masks.view(np.bool_).T, strict=True)),
        **{f"{name}_ram" if name in taken else name: ram[:, k] for k, name in enumerate(console.variables)},
    }
