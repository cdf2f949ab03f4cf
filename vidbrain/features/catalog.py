"""The sources by name, built for a data set of shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidbrain.errors import ConfigError
from vidbrain.features.extract import frame_rate
from vidbrain.features.pooling import Pooling
from vidbrain.features.sources import FeatureSource, MotionSource, PixelSource, sampling_step
from vidbrain.sharding.manifest import open_manifest

SourceName = Literal["model", "untrained", "pixels", "motion", "drivers"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What a source is asked for."""

    layers: tuple[str, ...] = ()
    """Layers to write; default all of a model, pixels.rgb of pixels."""
    pool: Literal["mean", "grid", "last"] | None = None
    """How a model's tokens become one vector; default the finest grid up to 4x4 with at most 512 features a layer."""
    grid: int | None = None
    """Cells along each side, for --pool grid."""
    stride: int | None = None
    """Source frames between a model's clips; default: clips that do not overlap."""
    seed: int = 0
    """Of the weights of the untrained model."""

    @property
    def pooling(self) -> Pooling | None:
        """As asked for; None for the source's own choice."""
        if self.grid is not None and self.pool in ("mean", "last"):
            raise ConfigError(f"--grid {self.grid} has no meaning for --pool {self.pool}")
        if self.pool is None and self.grid is None:
            return None
        return Pooling(kind=self.pool or "grid", grid=self.grid or Pooling().grid)


def make_source(
    name: SourceName, data: str | Path, config: SourceConfig, *, vqvae: str | Path | None, gpt: str | Path | None
) -> FeatureSource:
    """Build a source for the video of a data set.

    Parameters
    ----------
    name
        ``"model"``, ``"untrained"``, ``"pixels"`` or ``"motion"``.
    data
        Finished shards.
    config
        What is asked for.
    vqvae, gpt
        Folders of the trained networks, for ``"model"`` and ``"untrained"``; without a GPT there are no gpt layers.

    Raises
    ------
    ConfigError
        For settings that the source has not.
    ModelError
        For an unknown layer, or networks that do not fit the frames.
    """
    manifest = open_manifest(data)
    if name in ("model", "untrained"):
        from vidbrain.features.activations import open_model  # the others need no torch

        if vqvae is None:
            raise ConfigError(f"{name} features need a trained VQ-VAE", hint="--vqvae FOLDER")
        return open_model(
            name, vqvae=vqvae, gpt=gpt, frame_size=(manifest.height, manifest.width), layers=config.layers,
            pooling=config.pooling, stride=config.stride, seed=config.seed,
        )  # fmt: skip
    if config.pooling is not None or config.stride is not None:
        raise ConfigError(f"{name} have a grid and a stride of their own", hint="leave out --pool, --grid and --stride")
    fps = frame_rate(manifest)
    if name == "pixels":
        source: FeatureSource = PixelSource(layer_names=config.layers or ("pixels.rgb",), step=sampling_step(fps))
    elif name == "motion":
        source = MotionSource(fps=fps, layer_names=config.layers)
    else:
        raise ConfigError(f"{name} do not look at video", hint="use extract_drivers")
    return source
