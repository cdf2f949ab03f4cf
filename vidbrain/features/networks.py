"""What sources that run networks of torch have in common: device, precision, memory, and travelling to workers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from vidbrain.errors import ModelError
from vidbrain.features.sources import Layer
from vidbrain.features.windows import Window
from vidbrain.training import precision
from vidbrain.training.world import pick_device

MOST_CLIPS = 16
"""Clips in one forward pass, at most."""

TOKEN_BYTES = 256 * 2**20
"""Activations of the asked layers in one forward pass, unless a single clip has more."""


class NetworkSource:
    """Holds what every source with networks needs. Runs in float32, on the GPU where there is one.

    A source that was opened from files or by name (`opened_by`) is pickled as that, and opened again by the worker:
    weights do not travel. Others, and those on a GPU, stay in their process.
    """

    made_from: dict[str, str]

    def __init__(self) -> None:
        self._device = pick_device("auto")
        self._arm = precision.resolve("fp32", self._device)
        self._opened: tuple[Callable[..., Any], dict[str, Any]] | None = None

    @property
    def in_process(self) -> bool:
        """On a GPU, which one process holds, and where there are no files that a worker could open."""
        return self._opened is None or self._device.type != "cpu"

    def opened_by(self, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
        """Say that ``function(**arguments)`` makes this source again; both are pickled, so they are small."""
        self._opened = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._opened is None:
            raise TypeError("networks that were not opened from files stay in their process")
        return _open_again, (*self._opened, self.made_from)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with torch.inference_mode(), self._arm.autocast():
            yield


def _open_again(function: Callable[..., Any], arguments: dict[str, Any], made_from: dict[str, str]) -> Any:  # noqa: ANN401 -- what the function makes
    source = function(**arguments)
    if source.made_from != made_from:
        raise ModelError(
            f"a worker finds other weights in {source.name} than the main process did",
            likely="the files have changed meanwhile, or a factory draws weights at random without a seed",
            hint="seed them, or give --workers 0",
        )
    return source


def clips_at_once(window: Window, layers: Sequence[Layer]) -> int:
    """Clips in one forward pass whose activations in these layers fit `TOKEN_BYTES`, from 1 to `MOST_CLIPS`."""
    per_clip = sum(4 * math.prod((window.n_slices, *layer.grid, layer.n_channels)) for layer in layers)
    return min(MOST_CLIPS, max(1, TOKEN_BYTES // max(1, per_clip)))
