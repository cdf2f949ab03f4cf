"""What a conditional GPT is told of each clip: the codes of the clip before, or the buttons held in each time slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vidbrain.config import fingerprint
from vidbrain.errors import ModelError
from vidbrain.models.gpt import Condition
from vidbrain.records import ClipSpec, Recording
from vidbrain.stream.codes import CodesTable
from vidbrain.video.decode import read_table
from vidbrain.video.sources import find_recordings

Actions = NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """Clips of a table that have a clip before them, and which one that is.

    Attributes
    ----------
    table
        The clips that have one.
    before : (N,) int64
        Row of the clip before each, in the table that was asked.
    """

    table: CodesTable
    before: NDArray[np.int64]


def pairs(table: CodesTable) -> Pairs:
    """Find, for each clip, the clip of the same recording that ends where it begins.

    Raises
    ------
    ModelError
        If no clip has one: the stride of the codes does not divide the length of a clip.
    """
    covered = table.clip.n_frames * table.clip.step
    places = zip(table.recording.tolist(), table.start_frame.tolist(), strict=True)
    row_of = {place: row for row, place in enumerate(places)}
    before = np.array([row_of.get((name, start - covered), -1) for name, start in row_of], np.int64)
    kept = np.flatnonzero(before >= 0)
    if not len(kept):
        raise ModelError(
            f"no clip of {covered} source frames has codes of the {covered} frames before it",
            where="condition",
            likely=f"their stride of {table.clip.stride} does not divide {covered}, or the recordings are short",
            hint="tokenize with a stride that divides it",
        )
    shard = np.repeat(np.arange(len(table.clips_per_shard)), table.clips_per_shard)
    held = replace(
        table,
        codes=table.codes[kept],
        recording=table.recording[kept],
        start_frame=table.start_frame[kept],
        clips_per_shard=np.bincount(shard[kept], minlength=len(table.clips_per_shard)).astype(np.int64),
        fingerprint=f"{table.fingerprint}/with-the-clip-before",
    )
    return Pairs(held, before[kept])


@dataclass(frozen=True)
class Buttons:
    """What was pressed in each recording.

    Attributes
    ----------
    names
        Of the buttons.
    held
        By recording, running sums over frames: (n_frames + 1, n_buttons) float64.
    """

    names: tuple[str, ...]
    held: dict[str, NDArray[np.float64]]

    @property
    def fingerprint(self) -> str:
        """Of names and presses."""
        pressed = {key: np.flatnonzero(np.diff(sums, axis=0)).tolist() for key, sums in self.held.items()}
        return fingerprint(self.names, pressed)

    def during(self, recording: Sequence[str], start_frame: NDArray[np.int64], clip: ClipSpec, slices: int) -> Actions:
        """Share of each time slice of each clip during which each button was held: (N, slices, n_buttons) float32.

        Frames past the end of a table count as those with nothing pressed.
        """
        length = clip.n_frames * clip.step // slices
        edges = start_frame[:, None] + np.arange(slices + 1) * length
        sums = np.stack([self.held[name][np.minimum(row, len(self.held[name]) - 1)]
                         for name, row in zip(recording, edges, strict=True)])  # fmt: skip
        return (np.diff(sums, axis=1) / length).astype(np.float32)


def find_tables(game: str | Path, recordings: Sequence[str]) -> dict[str, Recording]:
    """Find the recordings that have the tables of buttons, by key, sorted.

    Parameters
    ----------
    game
        What was sharded: a tree, a folder of videos with their tables, or of `.bk2` files.
    recordings
        Keys of the recordings.

    Raises
    ------
    VideoError
        If there is no such source.
    ModelError
        If a recording is not there.
    """
    known: dict[str, Recording] = {recording.key: recording for recording in find_recordings(game)}
    lost = sorted(set(recordings) - set(known))
    if lost:
        raise ModelError(
            f"{len(lost)} recordings of the codes are not there, {lost[0]} among them",
            where=game,
            likely="the codes were made from other recordings",
        )
    return {key: known[key] for key in sorted(set(recordings))}


def held_buttons(recording: Recording, names: Sequence[str]) -> NDArray[np.float64]:
    """Running sums over frames of which buttons were held, (n_frames + 1, n_buttons); 0 for those that it lacks.

    Raises
    ------
    VideoError
        If the recording has no table of buttons.
    """
    return _held(read_table(recording), names)


def read_buttons(game: str | Path, recordings: Sequence[str], names: tuple[str, ...] = ()) -> Buttons:
    """Read the buttons of recordings.

    Parameters
    ----------
    game, recordings
        See `find_tables`.
    names
        The buttons that a model knows; by default all that any recording has.

    Raises
    ------
    VideoError
        If there is no such source, or a recording has no table of buttons.
    ModelError
        If a recording of the codes is not there, or none has a button.
    """
    tables = {key: read_table(recording) for key, recording in find_tables(game, recordings).items()}
    found = sorted({name for table in tables.values() for name in table.columns[table.dtypes == np.bool_]})
    names = names or tuple(found)
    if not names:
        raise ModelError("no recording has a table with buttons", where=game)
    return Buttons(names, {key: _held(table, names) for key, table in tables.items()})


def _held(table: pd.DataFrame, names: Sequence[str]) -> NDArray[np.float64]:
    pressed = np.stack([table[n].to_numpy(np.float64) if n in table else np.zeros(len(table)) for n in names], 1)
    return np.concatenate([np.zeros((1, len(names))), np.cumsum(pressed, axis=0)])


@dataclass(frozen=True)
class Told:
    """Conditions of the clips of a table, by row; all absent where nothing is told.

    Attributes
    ----------
    codes, before
        All codes (M, t, h, w) uint16, and the row in them of the clip before each clip (N,).
    actions : (N, t, n_actions) float32
    """

    codes: NDArray[np.uint16] | None = None
    before: NDArray[np.int64] | None = None
    actions: Actions | None = None

    def of(self, rows: NDArray[np.int64], device: torch.device) -> Condition | None:
        """Conditions of some clips, on a device."""
        if self.codes is not None and self.before is not None:
            return Condition(previous=torch.from_numpy(self.codes[self.before[rows]].astype(np.int32)).to(device))
        if self.actions is not None:
            return Condition(actions=torch.from_numpy(self.actions[rows]).to(device))
        return None
