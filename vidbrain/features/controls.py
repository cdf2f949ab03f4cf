"""Sources without a model, which a model has to beat: pixels, luminance, motion energy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.config import to_mapping
from vidbrain.features.motion import LUMA, MotionConfig, motion_energy, reach, to_grey
from vidbrain.features.pooling import Pooling, pool
from vidbrain.features.sources import Layer, choose_layers, sampling_step
from vidbrain.features.windows import Window

ANY_NUMBER = 1 << 30
"""Clips at once of sources that hold little more than the video itself."""

PIXEL_LAYERS = {"pixels.rgb": (12, 3), "pixels.grey": (20, 1)}
"""Layers of the pixels: cells along each side, and colours."""

LUMINANCE_LAYERS = ("luminance.mean", "luminance.contrast", "luminance.change")
"""One number for each frame: mean luma, its standard deviation over the frame (RMS contrast, Peli 1990, J. Opt. Soc.
Am. A 7, 2032), and its mean absolute change since the sampled frame before."""

MOTION_LAYER = "motion.energy"


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
    clips_at_once: int = field(default=ANY_NUMBER, init=False)

    @property
    def window(self) -> Window:
        """A row for every sampled frame."""
        return Window(n_frames=16, step=self.step, n_slices=16)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """As asked for."""
        names = choose_layers(self.layer_names, list(PIXEL_LAYERS), self.name)
        return tuple(
            Layer(name=name, grid=(cells, cells), n_channels=colours)
            for name, (cells, colours) in ((name, PIXEL_LAYERS[name]) for name in names)
        )

    @property
    def made_from(self) -> dict[str, str]:
        """Nothing."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """The weights of the colours."""
        return {"luma": LUMA.tolist()}

    def extract(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Mean colour or luma of each cell, in [0, 1]."""
        made = {}
        for layer in self.layers:
            cells = layer.grid[0]
            if layer.n_channels == 1:
                made[layer.name] = to_grey(video, cells)[..., None]
            else:
                found = pool(video.astype(np.float32) / np.float32(255), Pooling(kind="grid", grid=cells))
                made[layer.name] = found.reshape(*video.shape[:2], cells, cells, 3)
        return made


@dataclass(frozen=True, kw_only=True)
class LuminanceSource:
    """Brightness of the whole frame: what the eye's pupil and the grand mean of a visual area follow.

    Attributes
    ----------
    layer_names
        Of `LUMINANCE_LAYERS`; none for all.
    step
        Source frames between sampled ones.
    """

    layer_names: tuple[str, ...] = ()
    step: int = 4
    name: str = field(default="luminance", init=False)
    in_process: bool = field(default=False, init=False)
    clips_at_once: int = field(default=ANY_NUMBER, init=False)

    @property
    def window(self) -> Window:
        """A row for every sampled frame, with one of context for the change."""
        return Window(n_frames=64, step=self.step, n_slices=64, margin=1)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """As asked for."""
        names = choose_layers(self.layer_names, LUMINANCE_LAYERS, self.name)
        return tuple(
            Layer(name=name, grid=(), n_channels=1, sees_before=self.step * name.endswith("change")) for name in names
        )

    @property
    def made_from(self) -> dict[str, str]:
        """Nothing."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """The weights of the colours."""
        return {"luma": LUMA.tolist()}

    def extract(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Luma in [0, 1], its deviation and its change: (B, T + 2, H, W, 3) -> (B, T, 1) each."""
        luma = video @ (LUMA / 255).astype(np.float32)
        inside = luma[:, 1:-1]
        found = {
            "luminance.mean": inside.mean((2, 3)),
            "luminance.contrast": inside.std((2, 3)),
            "luminance.change": np.abs(inside - luma[:, :-2]).mean((2, 3)),
        }
        return {layer.name: found[layer.name][..., None] for layer in self.layers}


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
    clips_at_once: int = field(default=ANY_NUMBER, init=False)

    @property
    def window(self) -> Window:
        """A row for every sampled frame; the temporal filters reach beyond the clip."""
        step = sampling_step(self.fps)
        return Window(n_frames=64, step=step, n_slices=64, margin=reach(self.config, self.fps / step))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """One. Its scales have grids of their own, so that to pooling it is a single position."""
        (name,) = choose_layers(self.layer_names, [MOTION_LAYER], self.name)
        reached = self.window.margin * self.window.step
        # A sampled frame stands for `step` frames, and the filter sees none after its last sampled one.
        return (
            Layer(name=name, grid=(), n_channels=self.config.n_features, sees_before=reached,
                  sees_after=max(0, reached - self.window.step + 1)),
        )  # fmt: skip

    @property
    def made_from(self) -> dict[str, str]:
        """Nothing."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """The filters and the rate."""
        return {"filters": to_mapping(self.config), "fps": self.fps}

    def extract(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Compressed energy of each filter around each sampled frame."""
        rate_hz = self.fps / self.window.step
        return {MOTION_LAYER: motion_energy(to_grey(video, self.config.size), rate_hz, self.config)}
