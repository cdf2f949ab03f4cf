"""What a conditional GPT is told of the clips that it looks at, as in its training: never of another recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vidbrain.errors import ModelError
from vidbrain.features.windows import Places, Window
from vidbrain.models.gpt import GPT, Condition
from vidbrain.records import ClipSpec, Recording
from vidbrain.training.conditions import Buttons, find_tables, held_buttons


class PressedButtons:
    """Buttons of recordings, read one recording at a time.

    Parameters
    ----------
    game
        What was sharded, with its tables of buttons.
    recordings
        Keys of the recordings.
    names
        Buttons that the GPT knows; those that a recording lacks count as never pressed.

    Raises
    ------
    VideoError
        If there is no such source.
    ModelError
        If a recording is not there.
    """

    def __init__(self, game: str | Path, recordings: Sequence[str], names: tuple[str, ...]) -> None:
        self.names = names
        self._tables: dict[str, Recording] = find_tables(game, recordings)
        self._last: tuple[str, Buttons] | None = None

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the presses in each recording."""
        return {key: self._of(key).fingerprint for key in self._tables}

    def during(self, places: Places, window: Window, n_slices: int) -> Tensor:
        """Share of each time slice of each clip during which each button was held: (B, n_slices, n_buttons) float32."""
        clip = ClipSpec(window.n_frames, window.step, window.covered)
        recordings = [places.recording] * len(places.starts)
        return torch.from_numpy(self._of(places.recording).during(recordings, places.starts, clip, n_slices))

    def _of(self, key: str) -> Buttons:
        if self._last is None or self._last[0] != key:
            self._last = key, Buttons(self.names, {key: held_buttons(self._tables[key], self.names)})
        return self._last[1]


def condition_of(
    gpt: GPT,
    video: Tensor,
    codes: Tensor,
    window: Window,
    places: Places | None,
    *,
    encode: Callable[[Tensor], Tensor],
    buttons: PressedButtons | None,
) -> Condition | None:
    """What a GPT is told of a batch of clips; None where it is told nothing.

    Parameters
    ----------
    gpt
        Which.
    video : (B, window.n_input, H, W, 3) uint8
        Clips, and in front of them the ``window.before`` frames of the clip before.
    codes : (B, t, h, w)
        Of the clips.
    window, places
        How the clips were cut, and where; places may be unknown where no buttons are told.
    encode
        Codes of clips.
    buttons
        Where they are read.

    Raises
    ------
    ModelError
        If buttons are told, and places or buttons are unknown.
    """
    kind = gpt.config.condition
    if kind == "previous":
        return Condition(previous=_codes_before(video[:, : window.before], codes, window, places, encode))
    if kind == "frames" and gpt.frames is not None:
        return Condition(frames=video[:, window.before : window.before + gpt.frames[0]])
    if kind == "actions":
        if buttons is None or places is None:
            raise ModelError(
                "a GPT that is told actions needs to know which clips it looks at, and their buttons",
                where="condition",
                hint="name what was sharded: --game",
            )
        return Condition(actions=buttons.during(places, window, gpt.grid[0]).to(codes.device))
    return None


def _codes_before(
    before: Tensor, codes: Tensor, window: Window, places: Places | None, encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """Codes of the clips before; those that are in the batch themselves are not encoded twice."""
    starts = [] if places is None else places.starts.tolist()
    rows = {start: row for row, start in enumerate(starts)}
    # Clips of unknown places have no row here.
    row_before = [rows.get(start - window.lead, -1) for start in starts] or [-1] * len(codes)
    found = torch.tensor(row_before, device=codes.device)
    told = codes[found.clamp_min(0)]
    lacking = found < 0
    if bool(lacking.any()):
        told[lacking] = encode(before[lacking])
    return told


def any_condition(gpt: GPT) -> Condition | None:
    """A condition of the right shape for one clip, of zeros."""
    kind, device = gpt.config.condition, gpt.start.device
    if kind == "previous":
        return Condition(previous=torch.zeros(1, *gpt.grid, dtype=torch.int64, device=device))
    if kind == "actions":
        return Condition(actions=torch.zeros(1, gpt.grid[0], len(gpt.actions), device=device))
    if kind == "frames" and gpt.frames is not None:
        return Condition(frames=torch.zeros(1, *gpt.frames, 3, dtype=torch.uint8, device=device))
    return None
