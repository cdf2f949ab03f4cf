"""Trains the VQ-VAE on clips of shards, and judges it on held-out recordings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidbrain.models.codebook import perplexity
from vidbrain.models.vqvae import VQVAE, VQVAEConfig
from vidbrain.progress import SILENT, Progress
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.batch import ClipBatch
from vidbrain.stream.loader import Loader, stream
from vidbrain.training.loop import LoopConfig, train
from vidbrain.training.precision import PrecisionName  # noqa: F401 -- named by an inherited setting


@dataclass(frozen=True, kw_only=True)
class VQVAETrainConfig(LoopConfig):
    """Settings of a VQ-VAE's training."""

    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    """Its shape."""
    clip: ClipSpec = field(default_factory=ClipSpec)
    """Frames of a clip, their step, and the stride between clips, in source frames."""


def train_vqvae(
    data_root: Path,
    out: Path,
    config: VQVAETrainConfig = VQVAETrainConfig(),
    *,
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a VQ-VAE, or finish what a killed call began.

    Parameters
    ----------
    data_root
        Data set of shards; clips of split ``"train"`` teach, those of ``"val"`` judge.
    out
        Folder of the run: ``model.safetensors``, ``config.json``, ``metrics.jsonl``, ``summary.json``,
        ``checkpoints/``, ``best/``, and ``info.json``, which is written last.
    config
        What decides the weights.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``.

    Returns
    -------
    dict
        The summary. ``held_out`` holds, over the held-out clips: ``loss``; ``psnr`` of the reconstruction (dB, peak 1,
        of the mean squared error over all clips); ``psnr_mean_frame``, that of repeating every clip's own mean frame;
        ``psnr_gain``, their difference; ``active``, the share of codes in use; ``perplexity``.

    Raises
    ------
    ModelError, ShardError, StorageError, ConfigError, ResumeError
        For frames or clips that the downsampling does not divide, bad shards, bad settings, another run in `out`, or
        a loss that is no longer a number.
    """
    manifest = open_manifest(data_root)
    config.model.latent_grid(config.clip.n_frames, manifest.height, manifest.width)

    def task_of(world: World, device: torch.device) -> VQVAETask:
        return VQVAETask(Path(data_root), config, world, device)

    return train(task_of, config, Path(out), device=device, progress=progress)


class VQVAETask:
    """A VQ-VAE in training: see `vidbrain.training.loop.Task`."""

    kind = "vqvae"

    def __init__(self, data_root: Path, config: VQVAETrainConfig, world: World, device: torch.device) -> None:
        self._root, self._config, self._device = data_root, config, device
        manifest = open_manifest(data_root)
        self.made_from = {"shards": manifest.fingerprint}
        self._held_out = bool((manifest.segments["split"] == "val").any())
        self.model = VQVAE(config.model)
        self.loader: Loader[ClipBatch] = stream(
            data_root,
            clip=config.clip,
            batch_size=config.batch_size,
            seed=config.seed,
            split="train",
            world=world,
            device=device,
        )
        self._grid = config.model.latent_grid(config.clip.n_frames, manifest.height, manifest.width)

    def loss(self, model: nn.Module, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of clips."""
        output = model(self._to_device(batch))
        return output.loss, {"mse": output.mse, "commitment": output.commitment}

    def interval(self) -> dict[str, float]:
        """Share of codes in use and perplexity, from counts since the last row."""
        usage, restarts = self.model.codebook.take_usage()
        return {
            "active": float((usage > 0).float().mean()),
            "perplexity": perplexity(usage),
            "restarts": restarts,
        }

    def evaluate(self) -> dict[str, Any] | None:
        """Judge on held-out clips that do not overlap."""
        if not self._held_out:
            return None
        config = self._config
        clip = replace(config.clip, stride=config.clip.n_frames * config.clip.step)
        batches = stream(
            self._root,
            clip=clip,
            batch_size=config.batch_size,
            seed=config.seed,
            split="val",
            tail="mask",
            world=World(),  # one process judges
        )
        usage = torch.zeros(config.model.n_codes, dtype=torch.int64)
        squared, squared_of_mean, loss, pixels, clips = 0.0, 0.0, 0.0, 0, 0
        for batch in batches:
            video = self._to_device(batch.unmasked())
            output = self.model(video)
            reconstruction, codes = self.model.reconstruct(video)
            target = video.float() / 255 - 0.5
            squared += float((reconstruction - target).square().double().sum())
            squared_of_mean += float((target.mean(dim=1, keepdim=True) - target).square().double().sum())
            usage += torch.bincount(codes.flatten(), minlength=len(usage)).cpu()
            loss += float(output.loss) * len(video)
            pixels, clips = pixels + target.numel(), clips + len(video)
            if clips >= config.eval_clips:
                break
        psnr, psnr_of_mean = _psnr(squared / pixels), _psnr(squared_of_mean / pixels)
        return {
            "loss": loss / clips,
            "psnr": psnr,
            "psnr_mean_frame": psnr_of_mean,
            "psnr_gain": psnr - psnr_of_mean,
            "active": float((usage > 0).float().mean()),
            "perplexity": perplexity(usage),
            "clips": clips,
        }

    def facts(self) -> dict[str, Any]:
        """Grid of codes of a clip, and tokens."""
        n_codes = self._config.model.n_codes
        return {"grid": list(self._grid), "tokens_per_clip": math.prod(self._grid), "n_codes": n_codes}

    def _to_device(self, batch: ClipBatch) -> Tensor:
        # uint8 over the bus, float on the device; what the loader put there already stays.
        return torch.as_tensor(batch.video, device=self._device)


def _psnr(mse: float) -> float:
    # A floor of half a grey level in 100,000 pixels keeps a perfect reconstruction a number.
    return -10 * math.log10(max(mse, 1e-11))
