"""Frames for the eye: held-out clips, their reconstructions, and continuations that the GPT dreams up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.digest import weights_fingerprint
from vidbrain.models.gpt import GPT, Condition
from vidbrain.models.pretrained import load_gpt, load_vqvae
from vidbrain.models.vqvae import VQVAE, to_uint8
from vidbrain.progress import SILENT, Progress
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import Manifest, open_manifest
from vidbrain.storage.atomic import check_writable, replacing
from vidbrain.storage.info import is_done, read_info, write_info
from vidbrain.stream.batch import ClipBatch
from vidbrain.stream.loader import stream
from vidbrain.stream.reader import SegmentReader
from vidbrain.training.conditions import read_buttons
from vidbrain.training.settings import check_seed
from vidbrain.training.tokenizer import TOKENIZER, check_tokenizer, clip_of
from vidbrain.training.world import one_thread, pick_device

SAMPLES = "samples.npz"

LEAST_TEMPERATURE = 1e-3
"""Below it, scores divided by the temperature leave the range of float32."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """What is drawn."""

    n_clips: int = 4
    """Held-out clips."""
    prompt: float = 0.5
    """Share of a clip's time slices that the GPT is given."""
    temperature: float = 1.0
    """Of sampling; below 1 prefers likely codes."""
    top_k: int | None = 32
    """Draw from this many most likely codes."""
    seed: int = 0
    """Of the choice of clips and of sampling."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.n_clips < 1:
            raise ConfigError(f"n_clips must be at least 1, not {self.n_clips}", where="n_clips")
        if not 0 <= self.prompt < 1:
            raise ConfigError(f"prompt is a share below 1, not {self.prompt}", where="prompt")
        if not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature must be finite and at least {LEAST_TEMPERATURE}, not {self.temperature}",
                where="temperature",
                hint="use --top-k 1 for the likeliest code",
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, not {self.top_k}", where="top_k")


def write_samples(
    vqvae_root: Path,
    gpt_root: Path | None,
    data_root: Path,
    out: Path,
    config: SamplesConfig = SamplesConfig(),
    *,
    game: str | Path | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write ``samples.npz``, which `numpy.load(..., allow_pickle=False)` reads.

    Arrays, N clips of held-out recordings (of all recordings where none is held out), uint8 (N, T, H, W, 3):
    ``original``; ``reconstruction`` by the VQ-VAE; with a GPT also ``true``, the original's codes decoded, and
    ``sampled``, which begins with the same codes and goes on with the GPT's; ``prompt_frames``, how many frames the
    codes that were given cover; and ``start_frame`` (N,) int64. A GPT that is told the clip before, or the buttons (in
    `game`, what was sharded), is told them here, too.

    Raises
    ------
    ModelError, StorageError, ShardError
        If a model is missing or unfinished, or the GPT belongs to another VQ-VAE.
    """
    manifest, vqvae = open_manifest(data_root), read_info(vqvae_root, "vqvae")
    place = pick_device(device)
    model = load_vqvae(vqvae_root, device=place)
    made_from = {
        "shards": manifest.fingerprint,
        "vqvae": vqvae["fingerprint"],
        TOKENIZER: weights_fingerprint(model),
    }
    clip = clip_of(vqvae, where=vqvae_root)
    if gpt_root is not None:
        gpt_info = read_info(gpt_root, "gpt")
        made_from["gpt"] = gpt_info["fingerprint"]
        if gpt_info["made_from"]["vqvae"] != vqvae["fingerprint"]:
            raise ModelError(
                f"the GPT was trained on codes of VQ-VAE {gpt_info['made_from']['vqvae']}, not of {made_from['vqvae']}",
                where=gpt_root,
                hint="tokenize with this VQ-VAE and train a GPT on those codes",
            )
        check_tokenizer(gpt_info["made_from"], model, where=gpt_root)
    settings = to_mapping(config)
    if is_done(out, "samples", config=settings, made_from=made_from):
        return read_info(out, "samples")
    check_writable(out)
    model.config.latent_grid(clip.n_frames, manifest.height, manifest.width)
    split: Literal["val"] | None = "val" if (manifest.segments["split"] == "val").any() else None

    progress.start("samples", 2 if gpt_root is not None else 1, "models")
    batches = stream(
        data_root,
        clip=replace(clip, stride=clip.n_frames * clip.step),
        batch_size=min(config.n_clips, _BATCH),  # there may be fewer clips than are asked for
        seed=config.seed,
        split=split,
        tail="mask",
        world=World(),
    )
    gpt = None if gpt_root is None else load_gpt(gpt_root, device=place)
    before = clip.n_frames * clip.step if gpt is not None and gpt.config.condition == "previous" else 0
    batch = _first(batches, config.n_clips, before)
    arrays: dict[str, Any] = {"original": batch.video, "start_frame": batch.start_frame}
    with torch.no_grad():
        pixels, codes = model.reconstruct(torch.from_numpy(batch.video).to(place))
        arrays["reconstruction"] = to_uint8(pixels).cpu().numpy()
        progress.advance(1)
        if gpt is not None:
            told = _told(gpt, model, manifest, batch, clip, game)
            given = int(config.prompt * codes.shape[1])
            chance = torch.Generator(place).manual_seed(config.seed)
            with one_thread():
                sampled = gpt.sample(
                    codes[:, :given],
                    condition=told,
                    generator=chance,
                    temperature=config.temperature,
                    top_k=config.top_k,
                )
            arrays["true"] = model.decode(codes).cpu().numpy()
            arrays["sampled"] = model.decode(sampled).cpu().numpy()
            arrays["prompt_frames"] = np.int64(given * model.config.downsample[0])
            progress.advance(1)
    progress.finish()
    with replacing(Path(out) / SAMPLES) as part, part.open("wb") as handle:
        np.savez(handle, **arrays)
    facts = {"n_clips": len(batch.video), "split": split or "all"}
    return write_info(out, "samples", config=settings, made_from=made_from, facts=facts)


def _first(batches: Iterable[ClipBatch], n: int, earliest: int) -> ClipBatch:
    """The first `n` clips that begin at a frame or later; fewer where there are not so many."""
    found: list[ClipBatch] = []
    for batch in batches:
        late = (batch.index >= 0) & (batch.start_frame >= earliest)
        found.append(_rows([batch], late))
        if sum(len(part.video) for part in found) >= n:
            break
    batch = _rows(found, slice(n))
    if not len(batch.video):
        raise ModelError(f"no held-out clip has {earliest} frames before it", likely="the recordings are too short")
    return batch


def _rows(parts: Sequence[ClipBatch], keep: slice | NDArray[np.bool_]) -> ClipBatch:
    """Some rows of batches one after the other."""
    return ClipBatch(
        video=np.concatenate([part.video for part in parts])[keep],
        index=np.concatenate([part.index for part in parts])[keep],
        segment=np.concatenate([part.segment for part in parts])[keep],
        start_frame=np.concatenate([part.start_frame for part in parts])[keep],
    )


def _told(
    gpt: GPT, vqvae: VQVAE, manifest: Manifest, batch: ClipBatch, clip: ClipSpec, game: str | Path | None
) -> Condition | None:
    """What a conditional GPT is told of the clips of a batch."""
    rows, device = manifest.segments, gpt.start.device
    recordings = rows["recording"].to_numpy()[batch.segment].tolist()
    if gpt.config.condition == "previous":
        starts = batch.start_frame - clip.n_frames * clip.step
        owned = rows["start_frame"].to_numpy(), (rows["start_frame"] + rows["n_frames"]).to_numpy()
        with SegmentReader(manifest) as reader:
            clips = []
            for name, start in zip(recordings, starts.tolist(), strict=True):
                here = (rows["recording"].to_numpy() == name) & (owned[0] <= start) & (start < owned[1])
                clips.append(reader.clip(int(np.flatnonzero(here)[0]), start, clip))
        return Condition(previous=vqvae.encode(torch.from_numpy(np.stack(clips)).to(device)))
    if gpt.frames is not None:
        return Condition(frames=torch.from_numpy(batch.video[:, : gpt.frames[0]]).to(device))
    if gpt.config.condition == "actions":
        if game is None:
            raise ModelError(
                "a GPT that is told actions needs the recordings",
                where="condition",
                hint="name what was sharded: --game",
            )
        buttons = read_buttons(game, recordings, gpt.actions)
        held = buttons.during(recordings, batch.start_frame, clip, gpt.grid[0])
        return Condition(actions=torch.from_numpy(held).to(device))
    return None
