"""Sums of a training's numbers between rows of the metrics, kept on the device: nothing waits for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vidbrain.models.processes import from_all_ranks
from vidbrain.records import World
from vidbrain.training.world import meeting_device, reduced


class Totals:
    """Adds up what each step says, and remembers the first step whose loss is not a finite number.

    Parameters
    ----------
    device
        Where the numbers lie.
    world
        All processes of it call `first_bad`, `clips_of` and `take` together.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        self._device, self._world = device, world
        self._sums: dict[str, Tensor] = {}
        self._n_steps = 0
        self._first_bad = torch.zeros((), dtype=torch.int64, device=device)
        self._clips: dict[int, Sequence[int]] = {}

    def add(self, step: int, numbers: Mapping[str, Tensor], clips: Sequence[int]) -> None:
        """Hear of a step, counted from 1: its scalars, ``loss`` among them, and this process's clips."""
        bad = ~torch.isfinite(numbers["loss"]) & (self._first_bad == 0)
        self._first_bad = torch.where(bad, step, self._first_bad)
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self._device)) + value.float()
        self._n_steps += 1
        self._clips[step] = clips

    def first_bad(self) -> int:
        """First step at which a loss of any process was not a finite number; 0 for none."""
        return int(reduced(self._first_bad, self._world, how="max"))

    def clips_of(self, step: int) -> list[int]:
        """Clips of a step in all processes; none where it was neither of this interval nor the last before it."""
        clips = torch.tensor(self._clips.get(step, []), dtype=torch.int64, device=meeting_device())
        return from_all_ranks(clips).tolist()

    def take(self) -> dict[str, float | None]:
        """Return the means over steps and processes, and begin anew; None where one is not finite."""
        n = self._n_steps * self._world.size
        means = {name: float(reduced(value, self._world, how="sum")) / n for name, value in self._sums.items()}
        self._sums, self._n_steps = {}, 0
        # The last step's stay: what it left behind is judged after its row is written.
        self._clips = dict(list(self._clips.items())[-1:])
        # An overflow that the scaler skips leaves an infinite norm: null, not a number.
        return {name: value if abs(value) < float("inf") else None for name, value in means.items()}

    def state_dict(self) -> dict[str, Any]:
        """Sums and steps, for a checkpoint; it is written only where no loss was bad."""
        return {"sums": self._sums, "n_steps": self._n_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._sums = {name: value.to(self._device) for name, value in state["sums"].items()}
        self._n_steps = int(state["n_steps"])
