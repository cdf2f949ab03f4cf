"""The two presets, kept apart: what the study trained, and what is known today to be better at no higher cost.

A configuration is of a preset when every choice but its size is that preset's; any other is called mixed, and results
of different presets do not belong in one table.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from vidbrain.models.codec import VQVAEConfig
from vidbrain.models.options import GPTConfig

PresetName = Literal["paper", "modern", "mixed"]

PAPER_GPT = GPTConfig(
    hidden=576,
    n_layers=8,
    n_heads=4,
    dropout=0.2,
    attention_dropout=0.3,
    block="study",
    norm="study",
    positions="thirds",
    embedding="codebook",
    condition="previous",
    reader="study",
)
"""The study's GPT: 40.3 M trainable parameters on codes of 4 x 8 x 8."""

MODERN_GPT = GPTConfig()
"""Today's, at the study's size."""

PAPER_VQVAE = VQVAEConfig(
    downsample=(4, 16, 16),
    linear_start=False,
    n_hidden=240,
    n_res_layers=4,
    n_heads=2,
    n_codes=1024,
    code_dim=128,
    network="study",
    restart_sums=False,
)
"""The study's tokenizer: clips of 16 x 128 x 128 to codes of 4 x 8 x 8."""

MODERN_VQVAE = VQVAEConfig(patch=(2, 4, 4))
"""Today's: it starts from principal components, and folds pixels into channels before the first convolution."""

_GPT_SIZES = ("hidden", "n_layers", "n_heads", "head_dim", "base_hidden", "window", "condition_width")
_VQVAE_SIZES = ("n_hidden", "n_res_layers", "n_codes", "code_dim", "downsample", "patch", "fsq_levels")
SIZES = {*_GPT_SIZES, *_VQVAE_SIZES}
"""Settings that a sweep varies within a preset."""


def preset_of(config: GPTConfig | VQVAEConfig) -> PresetName:
    """Name the preset that a configuration belongs to."""
    presets: dict[PresetName, tuple[object, ...]] = {
        "paper": (PAPER_GPT, PAPER_VQVAE),
        "modern": (MODERN_GPT, MODERN_VQVAE),
    }
    for name, members in presets.items():
        for preset in members:
            if type(preset) is type(config) and _choices(preset) == _choices(config):
                return name
    return "mixed"


def _choices(config: object) -> dict[str, object]:
    fields = dataclasses.fields(config)  # type: ignore[arg-type]  # a configuration
    return {field.name: getattr(config, field.name) for field in fields if field.name not in SIZES}
