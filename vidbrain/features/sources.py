"""What can look at clips and give features: the protocol that every source obeys.

A source states its window (which frames it looks at, which frames a row stands for), lists its layers, and maps a
batch of clips to activations at positions. Pooling and time are the same for all of them: `features.pooled`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from vidbrain.config import did_you_mean
from vidbrain.errors import ModelError
from vidbrain.features.windows import Places, Window

SAMPLING_HZ = 15.0
"""Rate at which video is looked at unless a source is told otherwise (every 4th frame at 60 Hz)."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a source.

    Attributes
    ----------
    name
        For instance ``"gpt.block_2"``; a folder of the store.
    grid
        Positions in each slice: (rows, columns), (n,) for tokens that lie in no known grid, () for a single one.
    n_channels
        At each position.
    sees_before, sees_after
        Source frames before the begin and after the end of a slice that may enter its row, at most: the receptive
        field is these and the slice itself (`receptive_field_s` in seconds).
    weights
        Names in the source's `made_from` that decide this layer; None for all.
    """

    name: str
    grid: tuple[int, ...]
    n_channels: int
    sees_before: int = 0
    sees_after: int = 0
    weights: tuple[str, ...] | None = None


class FeatureSource(Protocol):
    """Something that turns clips into activations."""

    @property
    def name(self) -> str:
        """Of the source, for instance ``"motion"``."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that were asked for."""

    @property
    def window(self) -> Window:
        """The clip: which frames enter it, and which its slices cover."""

    @property
    def made_from(self) -> dict[str, str]:
        """Fingerprints of the weights, by name; empty where there are none."""

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides the values of every layer, as plain values."""

    @property
    def in_process(self) -> bool:
        """Whether it must stay in this process, as what holds a GPU must. Others are pickled to workers."""

    @property
    def clips_at_once(self) -> int:
        """Clips in one call of `extract`, at most: bounds the memory of activations."""

    def extract(self, video: Any, /) -> dict[str, Any]:  # noqa: ANN401 -- see below
        """Activations of each layer: uint8 (B, n_input, H, W, 3) -> float (B, n_slices, *grid, n_channels).

        Arrays of NumPy, or tensors on the device that made them.
        """


@runtime_checkable
class PlacedSource(Protocol):
    """A source that wants to know where its clips lie, because it is told more of them than their frames."""

    def extract_at(self, video: Any, places: Places, /) -> dict[str, Any]:  # noqa: ANN401 -- as `extract`
        """Activations of each layer, as `FeatureSource.extract` gives them."""

    def told(self, recordings: Sequence[str], /) -> str:
        """Name what it is told of recordings beside their frames; empty for nothing."""


def choose_layers(asked: Sequence[str], known: Sequence[str], source: str) -> tuple[str, ...]:
    """Return the layers that were asked for, in the source's order; none asked for means all.

    Raises
    ------
    ModelError
        For a layer that the source does not have, with the nearest name and the list.
    """
    for name in asked:
        if name not in known:
            near = did_you_mean(name, known)
            near = near if near.startswith("; did") else ""  # else it lists them all, and the hint does
            shown = known if len(known) <= 40 else [*known[:40], f"and {len(known) - 40} more"]
            hint = f"give --layers from: {', '.join(shown)}"
            raise ModelError(f"{source} has no layer {name!r}{near}", where=name, hint=hint)
    return tuple(name for name in known if not asked or name in asked)


def sampling_step(fps: float, sample_hz: float = SAMPLING_HZ) -> int:
    """Source frames between sampled ones, for about `sample_hz` frames a second."""
    return max(1, round(fps / sample_hz))


def receptive_field_s(layer: Layer, window: Window, fps: float) -> tuple[float, float, float]:
    """Seconds before the frames that a row stands for, during them, and after them, that may enter the row.

    Parameters
    ----------
    layer, window
        Of a source.
    fps
        Source frames per second.
    """
    return layer.sees_before / fps, window.row_frames / fps, layer.sees_after / fps
