"""The sources by name, built for a data set of shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vidbrain.config import did_you_mean
from vidbrain.errors import ConfigError
from vidbrain.features.controls import LuminanceSource, MotionSource, PixelSource
from vidbrain.features.pooled import Pooled, RowTime
from vidbrain.features.pooling import MAX_FEATURES, Pooling, PoolingName
from vidbrain.features.runs import frame_rate
from vidbrain.features.sources import SAMPLING_HZ, FeatureSource, sampling_step
from vidbrain.sharding.manifest import Manifest, open_manifest

CONTROLS = ("pixels", "luminance", "motion")
NAMES = ("model", "untrained", *CONTROLS, "buttons", "drivers")
PREFIXES = ("hf", "timm", "module", "arrays")
"""Of sources that are spelled with a folder or a name behind a colon."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What a source is asked for."""

    layers: tuple[str, ...] = ()
    """Layers to write; default all of a model's stages, pixels.rgb of pixels. study: where the study read out."""
    pool: PoolingName | None = None
    """How positions become one vector; default all of them, or the finest grid up to 4x4 with at most 512 features."""
    grid: int | None = None
    """Cells along each side, for --pool grid."""
    n_out: int | None = None
    """Features, for --pool projection; default 512."""
    time: RowTime = "centre"
    """Which frames a row stands for: the middle of what it sees, or the end (then give --stride)."""
    stride: int | None = None
    """Source frames between a model's clips; default: clips that do not overlap."""
    seed: int = 0
    """Of the weights of an untrained model, and of a projection."""

    @property
    def pooling(self) -> Pooling | None:
        """As asked for; None for the default of each layer."""
        for name, value, meant in (("--grid", self.grid, "grid"), ("--n-out", self.n_out, "projection")):
            if value is not None and self.pool not in (None, meant):
                raise ConfigError(f"{name} {value} has no meaning for --pool {self.pool}")
        if self.grid is not None and self.n_out is not None:
            raise ConfigError("--grid and --n-out belong to different poolings", hint="give one of them")
        kind = self.pool
        if kind is None:
            if self.grid is None and self.n_out is None:
                return None
            kind = "projection" if self.grid is None else "grid"
        return Pooling(kind=kind, grid=self.grid or Pooling().grid, n_out=self.n_out or MAX_FEATURES, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """What a network of other people's is shown; hf and timm know all but the rate themselves."""

    sample_hz: float = SAMPLING_HZ
    """Frames a second that it is shown, about."""
    clip_frames: int | None = None
    """Frames of a clip; default 16."""
    size: tuple[int, int] | None = None
    """Rows and columns to which frames are scaled; default those of the shards."""
    layout: Literal["BCTHW", "BTCHW", "BCHW"] | None = None
    """Axes of its input; BCHW shows every frame by itself; default BCTHW."""
    pixel_mean: tuple[float, float, float] | None = None
    """Subtracted from red, green and blue in [0, 1]; default 0."""
    pixel_std: tuple[float, float, float] | None = None
    """By which they are divided then; default 1."""
    token_grid: tuple[int, ...] | None = None
    """How tokens lie: t h w, or h w of images."""

    def __post_init__(self) -> None:
        if not 0 < self.sample_hz <= 1000:
            raise ConfigError(f"{self.sample_hz:g} frames a second cannot be right", where="sample-hz")


def make_source(
    name: str,
    data: str | Path,
    config: SourceConfig,
    *,
    vqvae: str | Path | None = None,
    gpt: str | Path | None = None,
    game: str | Path | None = None,
    look: LookConfig = LookConfig(),
    trust: bool = False,
) -> Pooled:
    """Build a source for the video of a data set.

    Parameters
    ----------
    name
        ``"model"``, ``"untrained"``, ``"pixels"``, ``"luminance"``, ``"motion"``; ``"hf:FOLDER"``, ``"timm:FOLDER"``,
        and the same behind ``"untrained:"``; ``"module:package.factory"``.
    data
        Finished shards.
    config
        What is asked for.
    vqvae, gpt
        Folders of the trained networks, for ``"model"`` and ``"untrained"``; without a GPT there are no gpt layers.
    game
        What was sharded, with its tables of buttons, for a GPT that is told actions.
    look
        What other people's networks are shown.
    trust
        Whether the code that ``"module:"`` names may be imported and run.

    Raises
    ------
    ConfigError
        For an unknown source, or settings that it does not have.
    ModelError
        For an unknown layer, or networks that do not fit the frames.
    """
    spelled, _, rest = name.removeprefix("untrained:").partition(":")
    untrained = name.startswith("untrained:")
    if spelled not in (*NAMES, *PREFIXES) or (spelled in PREFIXES) != bool(rest) or (untrained and not rest):
        known = [*NAMES, "hf:FOLDER", "timm:FOLDER", "module:package.factory", "arrays:FOLDER"]
        raise ConfigError(f"there is no source {name!r}{did_you_mean(name, known)}", where=name)
    if spelled in ("buttons", "drivers", "arrays"):
        raise ConfigError(f"{spelled} do not look at video", hint=f"use extract_{spelled}")
    _refuse_foreign(spelled, look)
    pooling = config.pooling
    manifest = open_manifest(data)
    source: FeatureSource
    if spelled in ("model", "untrained"):
        source = _own(spelled, manifest, config, vqvae, gpt, game)
    elif spelled == "module":
        source = _of_module(rest, manifest, config, look, trust=trust, untrained=untrained)
    elif spelled in PREFIXES:
        source = _of_hub(spelled, rest, manifest, config, look, untrained=untrained)
    else:
        source = _control(spelled, manifest, config)
    return Pooled(source, pooling, config.time)


def _refuse_foreign(spelled: str, look: LookConfig) -> None:
    given = [key for key, default in vars(LookConfig()).items() if getattr(look, key) != default]
    meant = {"module": given, "hf": ["sample_hz"], "timm": ["sample_hz"]}.get(spelled, [])
    for key in given:
        if key not in meant:
            raise ConfigError(f"--{key.replace('_', '-')} has no meaning for {spelled}, which knows it", where=spelled)


def _control(name: str, manifest: Manifest, config: SourceConfig) -> FeatureSource:
    if config.stride is not None:
        raise ConfigError(f"{name} have rows for every sampled frame", hint="leave out --stride")
    fps = frame_rate(manifest)
    if name == "pixels":
        return PixelSource(layer_names=config.layers or ("pixels.rgb",), step=sampling_step(fps))
    if name == "luminance":
        return LuminanceSource(layer_names=config.layers, step=sampling_step(fps))
    return MotionSource(fps=fps, layer_names=config.layers)


def _own(
    name: str,
    manifest: Manifest,
    config: SourceConfig,
    vqvae: str | Path | None,
    gpt: str | Path | None,
    game: str | Path | None,
) -> FeatureSource:
    from vidbrain.features.activations import open_model  # the controls need no torch

    if vqvae is None:
        raise ConfigError(f"{name} features need a trained VQ-VAE", hint="--vqvae FOLDER")
    return open_model(
        "untrained" if name == "untrained" else "model", vqvae=vqvae, gpt=gpt,
        frame_size=(manifest.height, manifest.width), layers=config.layers, stride=config.stride, seed=config.seed,
        game=game, shards=str(manifest.root),
    )  # fmt: skip


def _of_hub(
    kind: str, folder: str, manifest: Manifest, config: SourceConfig, look: LookConfig, *, untrained: bool
) -> FeatureSource:
    from vidbrain.features.hub import open_hf, open_timm

    common: dict[str, Any] = {
        "frame_size": (manifest.height, manifest.width), "fps": frame_rate(manifest), "sample_hz": look.sample_hz,
        "layers": config.layers, "untrained": untrained, "seed": config.seed,
    }  # fmt: skip
    if kind == "hf":
        return open_hf(folder, stride=config.stride, **common)
    if config.stride is not None:
        raise ConfigError("a network of images has a row for every sampled frame", hint="leave out --stride")
    return open_timm(folder, **common)


def _of_module(
    spec: str, manifest: Manifest, config: SourceConfig, look: LookConfig, *, trust: bool, untrained: bool
) -> FeatureSource:
    from vidbrain.features.modules import ClipInput, open_module

    if untrained:
        raise ConfigError(
            "what fresh weights of a network of yours are, only its code knows",
            where=spec,
            hint="write a second factory that makes it without loading weights",
        )
    shown = ClipInput(
        n_frames=look.clip_frames or 16,
        step=sampling_step(frame_rate(manifest), look.sample_hz),
        size=look.size,
        layout=look.layout or "BCTHW",
        mean=look.pixel_mean or (0.0, 0.0, 0.0),
        std=look.pixel_std or (1.0, 1.0, 1.0),
        token_grid=look.token_grid,
    )
    return open_module(
        spec, trust=trust, layers=config.layers, shown=shown, frame_size=(manifest.height, manifest.width),
        stride=config.stride,
    )  # fmt: skip
