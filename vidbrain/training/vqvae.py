"""Trains the VQ-VAE on clips of shards, and judges it on held-out recordings."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidbrain.errors import ConfigError
from vidbrain.models.codebook import Codebook, perplexity
from vidbrain.models.flops import count_vqvae, vqvae_flops
from vidbrain.models.presets import preset_of
from vidbrain.models.quality import WINDOW, psnr, ssim
from vidbrain.models.vqvae import VQVAE, VQVAEConfig
from vidbrain.progress import SILENT, Progress
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.batch import ClipBatch
from vidbrain.stream.loader import Loader, stream
from vidbrain.stream.opening import open_part
from vidbrain.stream.source import ClipSource
from vidbrain.training.cost import ClipCost
from vidbrain.training.loop import train
from vidbrain.training.settings import LoopConfig


@dataclass(frozen=True, kw_only=True)
class VQVAETrainConfig(LoopConfig):
    """Settings of a VQ-VAE's training."""

    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    """Its shape."""
    clip: ClipSpec = field(default_factory=ClipSpec)
    """Frames of a clip, their step, and the stride between clips, in source frames."""
    bad_share: float = 0.0
    """Largest share of clips that may be damaged: others take their places. 0 stops at the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.bad_share < 1:
            raise ConfigError(f"bad_share is a share below 1, not {self.bad_share}", where="bad_share")

    def deciding(self) -> dict[str, Any]:
        """Leave out how much damage is borne: a run that was stopped by some goes on when more is allowed."""
        return {name: value for name, value in super().deciding().items() if name != "bad_share"}


def train_vqvae(
    data_root: str | Path,
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
        Data set of shards, a folder or a URL; clips of split ``"train"`` teach, those of ``"val"`` judge.
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
        ``psnr_gain``, their difference; ``ssim`` of the middle
        frame of every clip (null below 11 pixels); ``active``, the share of codes in use; ``perplexity``.

    Raises
    ------
    ModelError, ShardError, StorageError, ConfigError, ResumeError
        For frames or clips that the downsampling does not divide, bad shards, bad settings, another run in `out`, or
        a loss that is no longer a number.
    """
    manifest = open_manifest(data_root)
    config.model.latent_grid(config.clip.n_frames, manifest.height, manifest.width)

    def task_of(world: World, device: torch.device) -> VQVAETask:
        return VQVAETask(data_root, config, world, device)

    return train(task_of, config, Path(out), device=device, progress=progress)


class VQVAETask:
    """A VQ-VAE in training: see `vidbrain.training.loop.Task`."""

    kind = "vqvae"

    def __init__(self, data_root: str | Path, config: VQVAETrainConfig, world: World, device: torch.device) -> None:
        self._root, self._config, self._device = data_root, config, device
        manifest = open_manifest(data_root)
        self.made_from = {"shards": manifest.fingerprint}
        self._held_out = bool((manifest.segments["split"] == "val").any())
        self.model = VQVAE(config.model)
        self._recordings = manifest.segments["recording"].to_numpy()
        self._source = ClipSource(open_part(data_root), config.clip, "train")
        self.loader: Loader[ClipBatch] = Loader(
            self._source,
            batch_size=config.batch_size,
            seed=config.seed,
            world=world,
            device=device,
            on_bad_clip="substitute" if config.bad_share else "error",
            bad_share=config.bad_share,
        )
        self._clip = (config.clip.n_frames, manifest.height, manifest.width)
        self._grid = config.model.latent_grid(config.clip.n_frames, manifest.height, manifest.width)

    def begin(self, parts: Sequence[ClipBatch]) -> None:
        """Fit what the model takes from its first batch."""
        self.model.start([self._to_device(part) for part in parts])

    def more_to_come(self) -> AbstractContextManager[None]:
        """Let the codebook wait for the whole batch."""
        codebook = self.model.codebook
        return codebook.held() if isinstance(codebook, Codebook) else contextlib.nullcontext()

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
        squared, squared_of_mean, similar, loss, pixels, clips = 0.0, 0.0, 0.0, 0.0, 0, 0
        large = False
        for batch in batches:
            video = self._to_device(batch.unmasked())
            output = self.model(video)
            reconstruction, codes = self.model.reconstruct(video)
            target = video.float() / 255 - 0.5
            squared += float((reconstruction - target).square().double().sum())
            squared_of_mean += float((target.mean(dim=1, keepdim=True) - target).square().double().sum())
            middle = target.shape[1] // 2
            large = min(target.shape[2:4]) >= WINDOW
            if large:
                similar += float(ssim(reconstruction[:, middle], target[:, middle]).sum())
            usage += torch.bincount(codes.flatten(), minlength=len(usage)).cpu()
            loss += float(output.loss) * len(video)
            pixels, clips = pixels + target.numel(), clips + len(video)
            if clips >= config.eval_clips:
                break
        found, of_mean = psnr(squared / pixels), psnr(squared_of_mean / pixels)
        return {
            "loss": loss / clips,
            "psnr": found,
            "psnr_mean_frame": of_mean,
            "psnr_gain": found - of_mean,
            "ssim": similar / clips if large else None,
            "active": float((usage > 0).float().mean()),
            "perplexity": perplexity(usage),
            "clips": clips,
        }

    def facts(self) -> dict[str, Any]:
        """Grid of codes of a clip, and tokens."""
        n_codes = self._config.model.n_codes
        return {
            "grid": list(self._grid),
            "tokens_per_clip": math.prod(self._grid),
            "n_codes": n_codes,
            "preset": preset_of(self._config.model),
        }

    def clip_cost(self) -> ClipCost:
        """Operations and memory of a clip of video."""
        flops, counted = vqvae_flops(self._config.model, self._clip), count_vqvae(self.model, self._clip)
        return ClipCost(flops.dense, flops.causal, counted.train, counted.saved_bytes, math.prod(self._grid))

    def place_of(self, clip: int) -> str:
        """Recording and first frame of a clip."""
        segments, starts = self._source.table.locate(np.array([clip]))
        return f"{self._recordings[segments[0]]} from frame {starts[0]}"

    def _to_device(self, batch: ClipBatch) -> Tensor:
        # uint8 over the bus, float on the device; what the loader put there already stays.
        return torch.as_tensor(batch.video, device=self._device)
