"""Which tokenizer made codes: root records of codes, and of GPTs that learned them, name it by its weights.

The fingerprint of a VQ-VAE is of its settings and inputs; the same training on another machine gives other weights, and
other codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidbrain.config import from_mapping
from vidbrain.errors import ModelError
from vidbrain.models.digest import weights_fingerprint
from vidbrain.models.vqvae import VQVAE
from vidbrain.records import ClipSpec

TOKENIZER = "vqvae_weights"
"""Name of the digest among the inputs of an artefact."""


def tokenizer_of(made_from: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest among the inputs of an artefact, to be handed on; none for one that was made without."""
    return {TOKENIZER: str(made_from[TOKENIZER])} if TOKENIZER in made_from else {}


def check_tokenizer(made_from: Mapping[str, Any], vqvae: VQVAE, *, where: object) -> None:
    """Refuse an artefact that was made with another tokenizer; one that does not name its own passes.

    Raises
    ------
    ModelError
        If the weights are others.
    """
    given = weights_fingerprint(vqvae)
    learned = made_from.get(TOKENIZER, given)
    if learned != given:
        raise ModelError(
            f"it belongs to a VQ-VAE of weights {learned}, the one that was given has weights {given}",
            where=where,
            likely="the VQ-VAE was trained again, on another machine or device, or its files were changed",
            hint="name the VQ-VAE that made the codes, or tokenize again and train a GPT on those codes",
        )


def clip_of(record: Mapping[str, Any], *, where: object) -> ClipSpec:
    """Clips that a VQ-VAE was trained on, by its root record.

    Raises
    ------
    ModelError, ConfigError
        If the record does not say their frames and step, or says what cannot be.
    """
    settings = record.get("config")
    told = settings.get("clip") if isinstance(settings, Mapping) else None
    if not isinstance(told, Mapping) or not {"n_frames", "step"} <= told.keys():
        raise ModelError(
            f"the record of the VQ-VAE says no frames and step of a clip: {told!r}",
            where=where,
            hint="train or convert it again",
        )
    return from_mapping(ClipSpec, told, where)
