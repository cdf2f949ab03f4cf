"""Events of a game-play study: ``*_events.tsv`` files enter, checked rows leave, missing recordings included.

The rows say which recording was on the screen when. They follow the CNeuroMod Shinobi data set; its traps are named
where they are handled.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from vidbrain.errors import ConfigError, VideoError
from vidbrain.records import RunKey

GAME_TRIALS = ("gym-retro_game", "vizdoom_game")
COLUMNS = ("trial_type", "onset", "duration", "duration_bk2", "level", "stim_file")
# Empty, "n/a" and NaN mean the same: a recording bug lost the file.
_NO_FILE = {"", "missing file", "nan", "n/a", "na", "none"}
# Neither desc-annotated_events.tsv (another table) nor ..._events__dup-01.tsv (a repeat to ignore) matches.
_EVENTS_NAME = re.compile(r"sub-[0-9A-Za-z]+(_ses-[0-9A-Za-z]+)?_task-[0-9A-Za-z]+(_run-\d+)?_events\.tsv")
_LEVEL = re.compile(r"_level-([0-9A-Za-z]+)")
_REPETITION = re.compile(r"_rep-([0-9A-Za-z]+)")
_MOST_NAMED = 12


@dataclass(frozen=True)
class GameEvent:
    """One repetition of a run, as an events file gives it.

    Attributes
    ----------
    run
        The run.
    row
        Row number in the file, from 0: the replay of row 0 skips a step, whether or not its recording exists.
    onset_s, duration_s
        On the run's clock; `duration_s` is wall-clock.
    duration_bk2_s
        Recorded input lines / 60. Stale on rows without a recording: never use it there. NaN where it is absent.
    level
        As the column says, for instance ``"1-0"``.
    movie
        Path of the recording below the data set's root, a `.bk2` or a video, or None: the run's volumes exist, the
        video does not.
    """

    run: RunKey
    row: int
    onset_s: float
    duration_s: float
    duration_bk2_s: float
    level: str
    movie: str | None


@dataclass(frozen=True)
class Events:
    """All readable events of a data set.

    Attributes
    ----------
    rows
        Sorted by run, then onset.
    absent
        Events files whose content has not been fetched.
    """

    rows: tuple[GameEvent, ...]
    absent: tuple[Path, ...]


def read_events(bids_root: str | Path) -> Events:
    """Read every events file of a data set.

    Raises
    ------
    VideoError
        If any file or row is wrong; all faults are listed at once.
    """
    root = Path(bids_root)
    if not root.is_dir():
        raise VideoError("there is no such data set", where=root)
    rows: list[GameEvent] = []
    absent: list[Path] = []
    faults: list[str] = []
    for path in sorted([*root.glob("sub-*/func/*_events.tsv"), *root.glob("sub-*/ses-*/func/*_events.tsv")]):
        if not _EVENTS_NAME.fullmatch(path.name):
            continue
        if is_absent(path):
            absent.append(path)
            continue
        found, wrong = _read_file(path, root)
        rows += found
        faults += wrong
    seen: dict[str, GameEvent] = {}
    for event in rows:
        if event.movie is not None and seen.setdefault(event.movie, event) is not event:
            faults.append(f"{event.movie}: named by {seen[event.movie].run} and again by {event.run} row {event.row}")
    refuse_all("the events of the data set have {n} fault(s)", faults, root)
    # A run has no number where a session holds a single one; a session is None where a data set has none.
    rows.sort(key=lambda e: (e.run.subject, e.run.session or "", e.run.task, e.run.run or 0, e.onset_s, e.row))
    return Events(tuple(rows), tuple(absent))


def _read_file(path: Path, root: Path) -> tuple[list[GameEvent], list[str]]:
    where = path.relative_to(root).as_posix()
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:
        return [], [f"{where}: not a table: {error}"]
    lacking = [name for name in COLUMNS if name not in table.columns and name != "duration_bk2"]
    if lacking:
        return [], [f"{where}: no column {', '.join(lacking)}"]
    run = RunKey.parse(path.name)
    rows, faults = [], []
    for number, values in enumerate(table.to_dict("records")):
        if values["trial_type"] not in GAME_TRIALS:
            continue
        spot = f"{where} row {number}"
        onset_s, duration_s = _number(values["onset"]), _number(values["duration"])
        if not (math.isfinite(onset_s) and onset_s >= 0 and math.isfinite(duration_s) and duration_s > 0):
            faults.append(f"{spot}: onset {values['onset']!r}, duration {values['duration']!r}")
            continue
        movie = None if values["stim_file"].strip().lower() in _NO_FILE else values["stim_file"].strip()
        if movie is not None:
            fault = _movie_fault(movie, run, values["level"])
            if fault:
                faults.append(f"{spot}: {fault}")
                continue
        bk2_s = _number(values.get("duration_bk2", ""))
        rows.append(GameEvent(run, number, onset_s, duration_s, bk2_s, values["level"], movie))
    ordered = sorted(rows, key=lambda event: event.onset_s)
    for before, after in itertools.pairwise(ordered):
        if before.onset_s + before.duration_s > after.onset_s:
            faults.append(f"{where} row {after.row}: begins before row {before.row} has ended")
    return rows, faults


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _movie_fault(movie: str, run: RunKey, level: str) -> str | None:
    path = PurePosixPath(movie)
    if path.is_absolute() or ".." in path.parts or "\\" in movie:
        return f"stim_file {movie!r} leaves the data set"
    try:
        named = RunKey.parse(path.name)
    except ConfigError:
        return f"stim_file {movie!r} does not name its run"
    if named != run:  # as integers: run-01 is run-1
        return f"stim_file {movie!r} belongs to {named}"
    found = level_of(path.name)
    if found is not None and found != level.split("-")[0]:
        return f"level {level!r}, but the file says level-{found}"
    return None


def level_of(name: str) -> str | None:
    """Return the level label in a file name, or None."""
    found = _LEVEL.search(name)
    return found[1] if found else None


def repetition_of(name: str) -> str | None:
    """Return the repetition label in a file name, or None. It is a name, not a counter: it may skip or begin at 00."""
    found = _REPETITION.search(name)
    return found[1] if found else None


def is_absent(path: Path) -> bool:
    """Whether a file's content has not been fetched: a dangling annex link, or a file that holds an annex path."""
    if not path.exists():
        return path.is_symlink()
    if path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        head = file.read(1024)
    return head.startswith(b"/annex/objects/") or (b"\n" not in head.strip() and b".git/annex/objects/" in head)


def refuse_all(message: str, faults: list[str], where: Path, hint: str | None = None) -> None:
    """Raise one VideoError that lists every fault (the first dozen by name), or return if there is none."""
    if faults:
        shown = "".join(f"\n    {fault}" for fault in faults[:_MOST_NAMED])
        more = f"\n    … and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
        raise VideoError(message.format(n=len(faults)) + ":" + shown + more, where=where, hint=hint)
