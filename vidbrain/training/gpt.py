"""Trains the GPT on codes, and judges it on the codes of held-out recordings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidbrain.errors import ModelError
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.progress import SILENT, Progress
from vidbrain.records import World
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.batch import CodesBatch
from vidbrain.stream.codes import codes_stream, load_codes
from vidbrain.stream.loader import Loader
from vidbrain.training.loop import LoopConfig, train
from vidbrain.training.precision import PrecisionName  # noqa: F401 -- named by an inherited setting


@dataclass(frozen=True, kw_only=True)
class GPTTrainConfig(LoopConfig):
    """Settings of a GPT's training."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """Its shape."""


def train_gpt(
    codes_root: Path,
    out: Path,
    config: GPTTrainConfig = GPTTrainConfig(),
    *,
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a GPT on a data set of codes, or finish what a killed call began.

    Parameters
    ----------
    codes_root
        Data set of codes, as `tokenize` writes it.
    out
        Folder of the run, as `train_vqvae` lays it out.
    config
        What decides the weights.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``.

    Returns
    -------
    dict
        The summary. ``held_out`` holds ``loss``, the cross-entropy of held-out codes in nats per token. Beside it:
        ``unigram_entropy``, the entropy of the training codes without regard to position; and
        ``unigram_loss``, the cross-entropy of the held-out codes under that distribution (add-one smoothed), which is
        what the loss is to be compared with.

    Raises
    ------
    ModelError, ShardError, StorageError, ConfigError, ResumeError
        For bad codes, bad settings, another run in `out`, or a loss that is no longer a number.
    """
    manifest = open_manifest(codes_root, kind="codes")

    def task_of(world: World, device: torch.device) -> GPTTask:
        return GPTTask(Path(codes_root), config, world, device)

    _n_codes(manifest.info, Path(codes_root))
    return train(task_of, config, Path(out), device=device, progress=progress)


class GPTTask:
    """A GPT in training: see `vidbrain.training.loop.Task`."""

    kind = "gpt"

    def __init__(self, codes_root: Path, config: GPTTrainConfig, world: World, device: torch.device) -> None:
        manifest = open_manifest(codes_root, kind="codes")
        self._config, self._device = config, device
        self.made_from = {"codes": manifest.fingerprint, "vqvae": str(manifest.info["made_from"]["vqvae"])}
        self._n_codes = _n_codes(manifest.info, codes_root)
        train_codes = load_codes(codes_root, split="train").codes
        held_out = bool((manifest.segments["split"] == "val").any())
        self._val = load_codes(codes_root, split="val").codes if held_out else None
        highest = int(train_codes.max())
        if highest >= self._n_codes:
            raise ModelError(
                f"the codes go up to {highest}, their record says {self._n_codes} codes",
                where=codes_root,
                likely="the data set is damaged, or made with another VQ-VAE than it says",
                hint="tokenize again into an empty folder",
            )
        t, h, w = train_codes.shape[1:]
        self._unigram = unigram_nats(train_codes, self._val, self._n_codes)
        self.model = GPT(config.model, n_codes=self._n_codes, grid=(t, h, w))
        self.loader: Loader[CodesBatch] = codes_stream(
            codes_root, batch_size=config.batch_size, seed=config.seed, split="train", world=world
        )

    def loss(self, model: nn.Module, batch: CodesBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of codes."""
        return model(self._to_device(batch.codes)), {}

    def interval(self) -> dict[str, float]:
        """Nothing is gathered in the model."""
        return {}

    def evaluate(self) -> dict[str, Any] | None:
        """Cross-entropy of held-out clips, spread evenly over the held-out recordings."""
        if self._val is None:
            return None
        n = min(self._config.eval_clips, len(self._val))
        chosen = self._val[np.linspace(0, len(self._val) - 1, n).round().astype(np.int64)]
        total = 0.0
        for first in range(0, n, self._config.batch_size):
            part = chosen[first : first + self._config.batch_size]
            total += float(self.model(self._to_device(part))) * len(part)
        return {"loss": total / n, "clips": n}

    def facts(self) -> dict[str, Any]:
        """Grid, number of codes, and what a guess by frequency alone achieves."""
        return {
            "grid": list(self.model.grid),
            "tokens_per_clip": self.model.n_tokens,
            "n_codes": self._n_codes,
            **self._unigram,
        }

    def _to_device(self, codes: NDArray[np.uint16]) -> Tensor:
        return torch.from_numpy(codes.astype(np.int32)).to(self._device, non_blocking=True)


def unigram_nats(
    train: NDArray[np.uint16], held_out: NDArray[np.uint16] | None, n_codes: int
) -> dict[str, float | None]:
    """What a guess by frequency alone achieves, in nats per token.

    Returns
    -------
    dict
        ``unigram_entropy``: -Σ p log p of the training codes. ``unigram_loss``: -Σ q log p of the held-out codes under
        the training frequencies with one added to each count; None where nothing is held out.
    """
    counts = np.bincount(train.ravel(), minlength=n_codes).astype(np.float64)
    p = counts[counts > 0] / counts.sum()
    loss = None
    if held_out is not None:
        smoothed = (counts + 1) / (counts + 1).sum()
        loss = float(-np.log(smoothed[held_out.ravel()]).mean())
    return {"unigram_entropy": float(-(p * np.log(p)).sum()), "unigram_loss": loss}


def _n_codes(info: dict[str, Any], root: Path) -> int:
    try:
        return int(info["n_codes"])
    except (KeyError, TypeError, ValueError):
        raise ModelError("the codes do not say how many codes there are", where=root) from None
