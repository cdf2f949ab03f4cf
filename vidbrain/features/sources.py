"""What can look at clips and give features: the protocol, and the sources without a model (pixels, motion energy).

A source states its window (which frames it looks at, which frames a row stands for), lists its layers, and maps a
batch of clips to rows. Networks are in `features.activations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidbrain.config import did_you_mean, fingerprint, to_mapping
from vidbrain.errors import ModelError
from vidbrain.features.motion import LUMA, MotionConfig, motion_energy, reach, to_grey
from vidbrain.features.pooling import Pooling, pool
from vidbrain.features.windows import Window

SAMPLING_HZ = 15.0
"""Rate at which pixels and motion energy look at video, as the models do (every 4th frame at 60 Hz)."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a source.

    Attributes
    ----------
    name
        For instance ``"gpt.block_2"``; a folder of the store.
    grid
        Rows and columns of its tokens in each slice.
    n_channels
        Of each token.
    n_features
        After pooling.
    sees_before, sees_after
        Source frames before the begin and after the end of a slice that may enter its row, at most: the receptive
        field is these and the slice itself.
    """

    name: str
    grid: tuple[int, int]
    n_channels: int
    n_features: int
    sees_before: int
    sees_after: int


PIXEL_LAYERS = {"pixels.rgb": (12, 3), "pixels.grey": (20, 1)}
"""Layers of the pixels: cells along each side, and colours."""

MOTION_LAYER = "motion.energy"


class FeatureSource(Protocol):
    """Something that turns clips into rows of features."""

    @property
    def name(self) -> str:
        """Of the feature set, for instance ``"motion"``."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that were asked for."""

    @property
    def window(self) -> Window:
        """Which frames enter a clip, and which its rows stand for."""

    @property
    def made_from(self) -> dict[str, str]:
        """Fingerprints of the weights, by name; empty where there are none."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the values, as plain values."""

    @property
    def in_process(self) -> bool:
        """Whether it must stay in this process, as what holds a GPU must. Others are pickled to workers."""

    def rows(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Rows of each layer: (B, n_input, H, W, 3) -> (B, n_slices, n_features), pooled before transfer."""


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
            hint = f"give --layers from: {', '.join(known)}"
            raise ModelError(f"{source} has no layer {name!r}{near}", where=name, hint=hint)
    return tuple(name for name in known if not asked or name in asked)


def sampling_step(fps: float) -> int:
    """Source frames between sampled ones, for about 15 frames a second."""
    return max(1, round(fps / SAMPLING_HZ))


@dataclass(frozen=True, kw_only=True)
class PixelSource:
    """Small pictures: local colour, and local brightness on a finer grid.

    Attributes
    ----------
    layer_names
        ``pixels.rgb`` (12x12 cells of red, green, blue: 432 features) and ``pixels.grey`` (20x20 cells of luma: 400).
    step
        Source frames between sampled ones.
    """

    layer_names: tuple[str, ...] = ("pixels.rgb",)
    step: int = 4
    name: str = field(default="pixels", init=False)
    in_process: bool = field(default=False, init=False)

    @property
    def window(self) -> Window:
        """A row for every sampled frame."""
        return Window(n_frames=16, step=self.step, n_slices=16)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """As asked for."""
        layers = []
        for name in choose_layers(self.layer_names, list(PIXEL_LAYERS), self.name):
            cells, colours = PIXEL_LAYERS[name]
            grid, n = (cells, cells), cells**2 * colours
            layers.append(Layer(name=name, grid=grid, n_channels=colours, n_features=n, sees_before=0, sees_after=0))
        return tuple(layers)

    @property
    def made_from(self) -> dict[str, str]:
        """Nothing."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """The grids and colours."""
        grids = {layer.name: list(PIXEL_LAYERS[layer.name]) for layer in self.layers}
        return {"grids": grids, "luma": LUMA.tolist()}

    def rows(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Mean colour or luma of each cell, in [0, 1]."""
        made = {}
        for layer in self.layers:
            cells = layer.grid[0]
            if layer.n_channels == 1:
                made[layer.name] = to_grey(video, cells).reshape(*video.shape[:2], -1)
            else:
                made[layer.name] = pool(video.astype(np.float32) / np.float32(255), Pooling(grid=cells))
        return made


@dataclass(frozen=True, kw_only=True)
class MotionSource:
    """Motion energy (`features.motion`).

    Attributes
    ----------
    config
        The filters.
    fps
        Source frames per second; filters are made for this rate.
    layer_names
        ``motion.energy``, the only one, or none for all.
    """

    config: MotionConfig = field(default_factory=MotionConfig)
    fps: float = 60.0
    layer_names: tuple[str, ...] = ()
    name: str = field(default="motion", init=False)
    in_process: bool = field(default=False, init=False)

    @property
    def window(self) -> Window:
        """A row for every sampled frame; the temporal filters reach beyond the clip."""
        step = sampling_step(self.fps)
        return Window(n_frames=64, step=step, n_slices=64, margin=reach(self.config, self.fps / step))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """One."""
        (name,) = choose_layers(self.layer_names, [MOTION_LAYER], self.name)
        n, reached = self.config.n_features, self.window.margin * self.window.step
        grid = (max(self.config.cells), max(self.config.cells))
        # A sampled frame stands for `step` frames, and the filter sees none after its last sampled one.
        return (
            Layer(name=name, grid=grid, n_channels=n // sum(c * c for c in self.config.cells), n_features=n,
                  sees_before=reached, sees_after=max(0, reached - self.window.step + 1)),
        )  # fmt: skip

    @property
    def made_from(self) -> dict[str, str]:
        """Nothing."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """The filters and the rate."""
        return {"filters": to_mapping(self.config), "fps": self.fps}

    def rows(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Compressed energy of each filter around each sampled frame."""
        rate_hz = self.fps / self.window.step
        return {MOTION_LAYER: motion_energy(to_grey(video, self.config.size), rate_hz, self.config)}


def source_fingerprint(source: FeatureSource) -> str:
    """Name a source by what decides its rows: window, layers, settings and weights."""
    layers = [to_mapping(layer) for layer in source.layers]
    return fingerprint(source.name, to_mapping(source.window), layers, source.settings, source.made_from)
