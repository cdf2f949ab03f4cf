"""A list file enters, recordings and the list's own split leave.

A ``.txt`` file names one video a line. A ``.tsv`` or ``.csv`` file has a header: ``path``, and whatever is known of
``key``, ``subject``, ``session``, ``task``, ``run``, ``level``, ``repetition``, ``onset_s``, ``duration_s`` and
``split``. Paths are relative to the list.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from vidbrain.errors import ConfigError, VideoError
from vidbrain.records import Recording, RunKey
from vidbrain.video.gamelogs import refuse_all
from vidbrain.video.names import SPLITS, key_of

LIST_SUFFIXES = (".tsv", ".csv", ".txt")
COLUMNS = (
    "path",
    "key",
    "subject",
    "session",
    "task",
    "run",
    "level",
    "repetition",
    "onset_s",
    "duration_s",
    "split",
)
_OF_A_RUN = ("subject", "task", "onset_s", "duration_s")


def read_list(path: str | Path, movie_suffix: str) -> tuple[list[Recording], dict[str, str]]:
    """Read a list of recordings.

    Parameters
    ----------
    path
        The list.
    movie_suffix
        Suffix of recorded input; anything else is a video.

    Returns
    -------
    list of Recording, dict
        In the order of the list, and the split by key where the list gives one.

    Raises
    ------
    VideoError
        If the list cannot be read, or any row is wrong; all faults are listed at once.
    """
    path = Path(path)
    rows = _rows(path)
    recordings: dict[str, Recording] = {}
    split: dict[str, str] = {}
    faults = []
    for number, row in enumerate(rows, 1):
        try:
            recording = _recording(row, path.parent, movie_suffix)
        except ConfigError as error:
            faults.append(f"row {number} ({row['path'] or 'no path'}): {error.message}")
            continue
        if recording.key in recordings:
            faults.append(f"row {number} ({row['path']}): the name {recording.key!r} is taken twice")
        if row["split"] not in ("", *SPLITS):
            faults.append(f"row {number} ({row['path']}): split {row['split']!r} is none of {', '.join(SPLITS)}")
        recordings[recording.key] = recording
        if row["split"]:
            split[recording.key] = row["split"]
    refuse_all("the list has {n} fault(s)", faults, path)
    return list(recordings.values()), split


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        if path.suffix.lower() == ".txt":
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            return [dict.fromkeys(COLUMNS, "") | {"path": line} for line in lines if line and line[0] != "#"]
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise VideoError(f"the list cannot be read: {error}", where=path) from error
    odd = [str(name) for name in table.columns if name not in COLUMNS]
    if odd or "path" not in table.columns:
        raise VideoError(
            f"the list has {'columns that are not known: ' + ', '.join(odd) if odd else 'no column path'}",
            where=path,
            hint=f"known: {', '.join(COLUMNS)}",
        )
    blank = dict.fromkeys(COLUMNS, "")
    return [blank | {name: text.strip() for name, text in row.items()} for row in table.to_dict("records")]


def _recording(row: dict[str, str], folder: Path, movie_suffix: str) -> Recording:
    if not row["path"]:
        raise ConfigError("it names no file")
    file = folder / row["path"]
    key = key_of(Path(row["key"])) if row["key"] else key_of(Path(row["path"]).with_suffix(""))
    values: dict[str, Any] = {"movie" if file.suffix.lower() == movie_suffix else "video": str(file)}
    given = [name for name in (*_OF_A_RUN, "session", "run") if row[name]]
    if given:
        lacking = [name for name in _OF_A_RUN if not row[name]]
        if lacking:
            raise ConfigError(f"it gives {', '.join(given)}, but not {', '.join(lacking)}")
        onset_s, duration_s = _seconds(row, "onset_s"), _seconds(row, "duration_s")
        if onset_s < 0 or duration_s <= 0:
            raise ConfigError(f"onset_s {row['onset_s']}, duration_s {row['duration_s']}")
        values |= {"run": _run(row), "onset_s": onset_s, "duration_s": duration_s}
    return Recording(key=key, level=row["level"] or None, repetition=row["repetition"] or None, **values)


def _run(row: dict[str, str]) -> RunKey:
    for name in ("subject", "session", "task", "run"):
        if row[name] and not (row[name].isascii() and row[name].isalnum()):
            raise ConfigError(f"{name} {row[name]!r} is not letters and digits")
    if row["run"] and not row["run"].isdigit():
        raise ConfigError(f"run {row['run']!r} is not a number")
    return RunKey(row["subject"], row["session"] or None, row["task"], int(row["run"]) if row["run"] else None)


def _seconds(row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{name} {row[name]!r} is not a number of seconds")
    return value
