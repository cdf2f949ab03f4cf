"""Clips -> codes with a trained VQ-VAE, in the layout of the shards that the clips come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidbrain.cluster import available_cores
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import ConfigError, ResumeError
from vidbrain.models.digest import weights_fingerprint
from vidbrain.models.pretrained import load_vqvae
from vidbrain.progress import SILENT, Progress
from vidbrain.records import ClipSpec
from vidbrain.sharding.claims import PLAN
from vidbrain.sharding.codes import write_codes
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.record import DATASET
from vidbrain.storage.atomic import read_json
from vidbrain.storage.info import read_info
from vidbrain.storage.urls import is_url
from vidbrain.stream.clips import clip_table
from vidbrain.stream.reader import SegmentReader
from vidbrain.training import precision
from vidbrain.training.precision import PrecisionName
from vidbrain.training.tokenizer import TOKENIZER, clip_of
from vidbrain.training.world import pick_device


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Which clips become codes."""

    stride: int | None = None
    """Source frames between the starts of clips; by default a clip's frames times its step, so that every frame is
    in one clip. Each offset needs codes of its own: half the stride, twice the codes."""
    batch_size: int = 32
    """Clips encoded at a time."""
    precision: PrecisionName = "fp32"
    """Of the encoder; the search for the nearest code is fp32 always. Codes are cached once, so accuracy wins."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.stride is not None and self.stride < 1):
            raise ConfigError("stride and batch_size must be at least 1", where="stride")


def tokenize(
    data_root: Path,
    vqvae_root: Path,
    out: Path,
    config: TokenizeConfig = TokenizeConfig(),
    *,
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Encode every clip of a data set, or finish what a killed call began.

    Parameters
    ----------
    data_root
        Data set of shards.
    vqvae_root
        A finished VQ-VAE training.
    out
        Data set of codes to write: the same tars and keys, with members ``codes.npy`` (n_clips, t, h, w) uint16. Clip
        j of a segment starts at the j-th multiple of the stride (counted from the recording's first frame, phase 0)
        among the frames that the segment owns.
    config
        Which clips.

    Returns
    -------
    dict
        The root record of the codes.

    Raises
    ------
    ModelError, ShardError, StorageError, ResumeError
        If the model is missing or unfinished, does not fit the frames, or `out` holds other codes.
    """
    manifest, vqvae = open_manifest(data_root), read_info(vqvae_root, "vqvae")
    place = pick_device(device)
    arm = precision.resolve(config.precision, place)
    model = load_vqvae(vqvae_root, device=place)
    trained = clip_of(vqvae, where=vqvae_root)
    length, step = trained.n_frames, trained.step
    clip = ClipSpec(length, step, config.stride or length * step)
    grid = model.config.latent_grid(length, manifest.height, manifest.width)
    table = clip_table(manifest.segments, np.arange(len(manifest.segments)), clip, manifest.margin)
    first = table.offsets
    codebook = fingerprint(model.codebook.vectors().flatten().tolist())
    made_from = {"shards": manifest.fingerprint, "vqvae": str(vqvae["fingerprint"])}
    if _names_tokenizer(out, codebook, progress):
        made_from[TOKENIZER] = weights_fingerprint(model)
    torch.set_num_threads(available_cores())

    def encode(positions: Sequence[int]) -> Iterable[tuple[int, NDArray[np.uint16]]]:
        clips = np.concatenate([np.arange(first[p], first[p + 1]) for p in positions])
        codes = _encoded(clips)
        held = np.empty((0, *grid), np.uint16)
        for position in positions:
            wanted = int(table.counts[position])
            while len(held) < wanted:
                held = np.concatenate([held, next(codes)])
            yield position, held[:wanted]
            held = held[wanted:]

    def _encoded(clips: NDArray[np.int64]) -> Iterator[NDArray[np.uint16]]:
        # Batches run over the borders of segments, which often hold a single clip.
        for at in range(0, len(clips), config.batch_size):
            segments, starts = table.locate(clips[at : at + config.batch_size])
            video = np.empty((len(starts), clip.n_frames, manifest.height, manifest.width, 3), np.uint8)
            reader.read_clips(segments, starts, clip, video)
            with torch.no_grad(), arm.autocast():
                codes = model.encode(torch.from_numpy(video).to(place))
            yield codes.cpu().numpy().astype(np.uint16)

    with SegmentReader(manifest) as reader:
        return write_codes(
            out,
            manifest,
            encode,
            config={"clip": to_mapping(clip), "phase": 0, "precision": arm.name},
            made_from=made_from,
            facts={
                "n_codes": model.config.n_codes,
                "grid": list(grid),
                "tokens_per_clip": math.prod(grid),
                "codebook": codebook,
            },
            progress=progress,
        )


def _names_tokenizer(out: Path, codebook: str, progress: Progress) -> bool:
    """Whether codes are to name their tokenizer's weights: all but those begun before codes did.

    Raises
    ------
    ResumeError
        If such codes are there, whole, with another codebook.
    """
    if is_url(out):
        return True
    name = next((name for name in (DATASET, PLAN) if (Path(out) / name).is_file()), None)
    held = {} if name is None else read_json(Path(out) / name)
    inputs = held.get("made_from") if isinstance(held, dict) else None
    if name is None or not isinstance(inputs, dict) or TOKENIZER in inputs:
        return True
    if name == DATASET and held.get("codebook") != codebook:
        raise ResumeError(
            "the codes there were made with another tokenizer",
            where=Path(out) / name,
            hint="give another output, or remove this one first",
        )
    progress.note("tokenize: the codes there do not name the weights of their VQ-VAE, which are not compared")
    return False
