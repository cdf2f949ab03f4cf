"""Sources of video: a BIDS tree, a folder or a file enters, a sorted list of recordings leaves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vidbrain.errors import VideoError
from vidbrain.records import Recording, RunKey
from vidbrain.video.gamelogs import GameEvent, is_absent, level_of, read_events, refuse_all, repetition_of
from vidbrain.video.lists import LIST_SUFFIXES, read_list
from vidbrain.video.names import SPLITS, key_of

FirstSkip = Literal["row", "file", "never"]
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")
MOVIE_SUFFIX = ".bk2"
REPLAY = Path("derivatives") / "replay"
"""Where replays of a tree are, below its root."""


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes
    ----------
    recordings
        Sorted by key; those whose content is absent are left out.
    absent
        Files whose content has not been fetched, recordings and events files.
    lost
        Recordings that the events or the list name and that are not there.
    notes
        What a user should know: runs without events, recordings that no events file lists.
    bids
        Whether the source is a BIDS tree.
    lines
        By key, the input lines that the events promise (duration_bk2 × 60).
    split
        By key, the source's own split, where it has one.
    """

    recordings: tuple[Recording, ...]
    absent: tuple[Path, ...] = ()
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    bids: bool = False
    lines: dict[str, int] = field(default_factory=dict)
    split: dict[str, str] = field(default_factory=dict)


def find_recordings(
    source: str | Path, *, video_root: str | Path | None = None, first_skip: FirstSkip = "row"
) -> list[Recording]:
    """List the recordings of a source.

    Parameters
    ----------
    source
        A BIDS tree with ``gamelogs/``, a folder of videos (.mp4, .mkv, .webm) or `.bk2` files, one such file, or a
        list of files (see `vidbrain.video.lists`).
    video_root
        Where replayed videos are; default ``<source>/derivatives/replay``. A video beside its `.bk2` also counts.
    first_skip
        Which recordings' first input line a replay discards: ``"row"`` the one in row 0 of the events file (as the
        data set's own scripts do), ``"file"`` the first that exists, ``"never"`` none.

    Returns
    -------
    list of Recording
        Sorted by key. `run`, `onset_s` and `duration_s` are None for a recording that no events file lists: it can
        train a model, but not be aligned.

    Raises
    ------
    VideoError
        If there is none, or if the content of any is absent; all are listed at once, with the line that fetches them.
    """
    found = survey(source, video_root=video_root, first_skip=first_skip)
    refuse_absent(found, Path(source))
    if not found.recordings:
        raise VideoError(
            "there is no recording",
            where=source,
            hint=f"give a BIDS tree with gamelogs, a folder of {', '.join(VIDEO_SUFFIXES)} or .bk2 files, or a list",
        )
    return list(found.recordings)


def refuse_absent(found: Survey, root: Path) -> None:
    """Raise a VideoError if files are missing or have to be fetched first; all are listed at once."""
    refuse_all(
        "{n} recording(s) that the source names are not there",
        list(found.lost),
        root,
        hint="fetch them, mark their rows, or correct the list",
    )
    root = root if root.is_dir() else root.parent
    names = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in found.absent]
    folders = sorted({str(Path(name).parent) for name in names})
    targets = names if len(names) <= 4 else folders
    refuse_all(
        "the content of {n} file(s) has not been fetched",
        names,
        root,
        hint=f"datalad get -d {shlex.quote(str(root))} {shlex.join(str(root / t) for t in targets)}",
    )


def survey(source: str | Path, *, video_root: str | Path | None = None, first_skip: FirstSkip = "row") -> Survey:
    """Look at a source without refusing what is absent; see `find_recordings`."""
    source = Path(source)
    if source.is_dir():
        replays = Path(video_root) if video_root is not None else source / REPLAY
        if any(source.glob("sub-*/")):
            return _survey_bids(source, replays, first_skip)
        # Replayed videos of a plain folder have a BIDS description beside them, and no subjects.
        return _survey_files(_walk(source), source, replays)
    if not source.exists() and not source.is_symlink():
        raise VideoError(
            "there is no such file or folder",
            where=source,
            hint="give a BIDS tree, a folder of recordings or one file; `vidbrain play` records game play",
        )
    if source.suffix.lower() in LIST_SUFFIXES:
        return _survey_list(source)
    if source.suffix.lower() not in (*VIDEO_SUFFIXES, MOVIE_SUFFIX):
        raise VideoError(f"{source.suffix or 'a file without suffix'} is no video that is read here", where=source)
    return _survey_files([source], source.parent, Path(video_root) if video_root else source.parent / REPLAY)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == REPLAY.parts[0]:
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.suffix.lower() in (*VIDEO_SUFFIXES, MOVIE_SUFFIX) and "__dup" not in path.name:
            yield path


def _survey_files(paths: Iterator[Path] | list[Path], root: Path, replays: Path) -> Survey:
    found: dict[str, Recording] = {}
    absent, faults = [], []
    for path in paths:
        key = key_of(path.relative_to(root).with_suffix(""))
        known = found.get(key, Recording(key=key))
        is_movie = path.suffix.lower() == MOVIE_SUFFIX
        taken = known.movie if is_movie else known.video
        if taken is not None:
            faults.append(f"{path.name} and {Path(taken).name} would both be {key!r}")
        found[key] = replace(known, movie=str(path)) if is_movie else replace(known, video=str(path))
    refuse_all("{n} file name(s) are taken twice", faults, root)
    recordings, folders = [], {}
    for key in sorted(found):
        recording = found[key]
        video = recording.video or _existing(replays / f"{key}.mp4")
        needed = Path(video or recording.movie or "")
        if is_absent(needed):
            absent.append(needed)
        else:
            recordings.append(replace(recording, video=video))
            folders[key] = Path(recording.movie or recording.video or "").relative_to(root).parts[0]
    # Folders train, val and test are a split only where they hold everything.
    split = folders if folders and set(folders.values()) <= set(SPLITS) else {}
    return Survey(tuple(recordings), tuple(absent), split=split)


def _survey_list(path: Path) -> Survey:
    recordings, split = read_list(path, MOVIE_SUFFIX)
    kept, absent, lost = [], [], []
    for recording in sorted(recordings, key=lambda recording: recording.key):
        file = Path(recording.movie or recording.video or "")
        if is_absent(file):
            absent.append(file)
        elif not file.is_file():
            lost.append(str(file))
        else:
            kept.append(recording)
    return Survey(tuple(kept), tuple(absent), tuple(lost), split=split)


def _existing(*candidates: Path) -> str | None:
    return next((str(path) for path in candidates if path.is_file() and not is_absent(path)), None)


def _survey_bids(root: Path, replays: Path, first_skip: FirstSkip) -> Survey:
    events = read_events(root)
    listed = {event.movie: event for event in events.rows if event.movie is not None}
    firsts = _first_recorded(events.rows)
    on_disk = {
        path.relative_to(root).as_posix()
        for pattern in ("sub-*/gamelogs/*.bk2", "sub-*/ses-*/gamelogs/*.bk2")
        for path in root.glob(pattern)
        if "__dup" not in path.name
    }
    recordings: dict[str, Recording] = {}
    absent, lost, faults, lines = list(events.absent), [], [], {}
    for name in sorted(on_disk | set(listed)):
        path = root / name
        key = path.stem
        if "." in key or key in recordings:
            faults.append(f"{name}: {'a dot in its name' if '.' in key else 'the same name as another recording'}")
            continue
        video = _existing(
            replays / Path(name).parent.parent / f"{key}.mp4", *(path.with_suffix(s) for s in VIDEO_SUFFIXES)
        )
        event, is_movie = listed.get(name), path.suffix.lower() == MOVIE_SUFFIX
        if video is None and is_absent(path):
            absent.append(path)
            continue
        if video is None and not path.is_file():
            lost.append(f"{name} (named by the events of {event.run if event else 'no run'})")
            continue
        recordings[key] = Recording(
            key=key,
            run=event.run if event else None,
            level=event.level if event else level_of(key),
            repetition=repetition_of(key),
            onset_s=event.onset_s if event else None,
            duration_s=event.duration_s if event else None,
            movie=str(path) if is_movie and path.is_file() and not is_absent(path) else None,
            video=video,
            skip_first_step=is_movie and event is not None and _skips(event, firsts, first_skip),
        )
        if is_movie and event is not None and event.duration_bk2_s > 0:
            lines[key] = round(event.duration_bk2_s * 60)
    refuse_all("{n} recording(s) cannot be named", faults, root)
    notes = _notes(root, recordings, {event.run.label for event in events.rows})
    found = tuple(recordings[key] for key in sorted(recordings))
    return Survey(found, tuple(absent), tuple(lost), notes, True, lines)


def _first_recorded(rows: tuple[GameEvent, ...]) -> dict[str, int]:
    firsts: dict[str, int] = {}
    for event in rows:
        if event.movie is not None:
            firsts[event.run.label] = min(event.row, firsts.get(event.run.label, event.row))
    return firsts


def _skips(event: GameEvent, firsts: dict[str, int], first_skip: FirstSkip) -> bool:
    # The data set's scripts go by row 0, although that row's file is often missing; which is right is not known.
    if first_skip == "never":
        return False
    return event.row == (0 if first_skip == "row" else firsts[event.run.label])


def _notes(root: Path, recordings: dict[str, Recording], runs: set[str]) -> tuple[str, ...]:
    notes = []
    unlisted = [key for key, recording in recordings.items() if recording.run is None]
    if unlisted:
        notes.append(
            f"{len(unlisted)} recording(s) are in no events file: they have video but no time ({unlisted[0]}, …)"
        )
    silent = sorted(
        {
            RunKey.parse(path.name).label
            for pattern in ("sub-*/func/*_bold.nii*", "sub-*/ses-*/func/*_bold.nii*")
            for path in root.glob(pattern)
            if "__dup" not in path.name
        }
        - runs
    )
    if silent:
        notes.append(f"{len(silent)} run(s) have no events and are skipped ({', '.join(silent[:5])})")
    return tuple(notes)
