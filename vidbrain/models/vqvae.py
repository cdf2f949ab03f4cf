"""The VQ-VAE: clips of video in, a small grid of integer codes out, and back.

Shapes: B clips; T H W frames, height, width; t h w the latent grid; C channels. Video enters as uint8
(B, T, H, W, 3); inside, convolutions take (B, C, t, h, w). Source: VideoGPT (arXiv 2104.10157), with RMS norm for
batch norm, which does not depend on the batch and needs no synchronisation between processes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.models.codebook import Codebook, Quantized
from vidbrain.models.codec import Decoder, Encoder, VQVAEConfig, fold
from vidbrain.models.fsq import FSQ
from vidbrain.models.processes import from_all_ranks, from_first_rank
from vidbrain.models.videogpt import StudyDecoder, StudyEncoder

__all__ = ["VQVAE", "VQVAEConfig", "VQVAEOutput"]

STUDY_VARIANCE = 0.06
"""By which VideoGPT divides its squared error: the variance of pixels of another data set."""


@dataclass(frozen=True)
class VQVAEOutput:
    """What a training step needs: `loss` with its parts (scalars), and the codes (B, t, h, w) int64."""

    loss: Tensor
    mse: Tensor
    commitment: Tensor
    codes: Tensor


class VQVAE(nn.Module):
    """Encoder, codebook, decoder.

    The first training batch sets what gradient descent finds only slowly: the colour mean and the overall deviation
    by which pixels are standardised (dark games have a variance far from natural video's; VideoGPT divides by a
    constant 0.06), the linear path, and the codebook. All of it is saved with the weights.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    started: Tensor

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("pixel_mean", torch.zeros(3))
        self.register_buffer("pixel_std", torch.full((), 0.25))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        study = config.network == "study"
        if study:
            self.pixel_std.fill_(1.0)
            self.started.fill_(True)
        self.encoder = StudyEncoder(config) if study else Encoder(config)
        self.codebook = _quantizer(config)
        self.decoder = StudyDecoder(config) if study else Decoder(config)

    def lr_scales(self) -> dict[str, float]:
        """Factors of the learning rate by name of parameter: none."""
        return {}

    def forward(self, video: Tensor) -> VQVAEOutput:
        """Training loss of uint8 clips (B, T, H, W, 3)."""
        pixels = self._pixels(video)
        if self.training:
            self.start_if_fresh(pixels)
        target = self._standardised(pixels)
        quantized = self._quantize(self.encoder(target))
        # The decoder may run in 16 bits; the error is summed in 32.
        error = self.decoder(quantized.vectors).float() - target
        mse, l1 = error.square().mean(), self.config.l1
        reconstruction = (1 - l1) * mse + l1 * error.abs().mean() if l1 else mse
        if self.config.network == "study":
            reconstruction = reconstruction / STUDY_VARIANCE
        loss = reconstruction + self.config.commitment * quantized.commitment
        return VQVAEOutput(loss, mse.detach() * self.pixel_std**2, quantized.commitment.detach(), quantized.codes)

    @torch.no_grad()
    def start(self, videos: Sequence[Tensor]) -> None:
        """Set what the first batch sets, from all of its parts, each uint8 (B, T, H, W, 3); once only.

        A training that takes a batch in parts calls it: the first part alone would give another start.
        """
        self.start_if_fresh(torch.cat([self._pixels(video) for video in videos]))
        if isinstance(self.codebook, Codebook) and not bool(self.codebook.ready):
            encoder = copy.deepcopy(self.encoder)  # running means are not to see these clips twice
            found = [encoder(self._standardised(self._pixels(video))).movedim(1, -1) for video in videos]
            self.codebook.start(torch.cat(found).float().flatten(0, -2))

    def start_if_fresh(self, pixels: Tensor) -> None:
        """Set mean, deviation and linear path from the pixels (B, 3, T, H, W) of the first batch; once only."""
        if not bool(self.started):
            self._start_from(pixels)

    def encode_features(self, video: Tensor) -> Tensor:
        """Encoder output before quantisation: uint8 (B, T, H, W, 3) -> float (B, t, h, w, code_dim)."""
        return self.encoder(self._standardised(self._pixels(video))).movedim(1, -1)

    def encode(self, video: Tensor) -> Tensor:
        """Codes of clips: uint8 (B, T, H, W, 3) -> int64 (B, t, h, w)."""
        return self.codebook(self.encode_features(video)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """Video of codes: int64 (B, t, h, w) -> uint8 (B, T, H, W, 3)."""
        return to_uint8(self._pixels_of(self.codebook.lookup(codes).movedim(-1, 1)))

    def reconstruct(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction in [-0.5, 0.5], float32 (B, T, H, W, 3), and its codes (B, t, h, w)."""
        quantized = self._quantize(self.encoder(self._standardised(self._pixels(video))))
        return self._pixels_of(quantized.vectors), quantized.codes

    def _pixels(self, video: Tensor) -> Tensor:
        pixels = to_float(video)
        self.config.latent_grid(*video.shape[1:4])  # refuses sizes of which convolutions would drop an edge
        return pixels

    def _quantize(self, z: Tensor) -> Quantized:
        quantized = self.codebook(z.movedim(1, -1))
        return Quantized(quantized.vectors.movedim(-1, 1), quantized.codes, quantized.commitment)

    def _pixels_of(self, vectors: Tensor) -> Tensor:
        pixels = self.decoder(vectors).float() * self.pixel_std + self.pixel_mean[:, None, None, None]
        return pixels.clamp(-0.5, 0.5).movedim(1, -1)

    def _standardised(self, pixels: Tensor) -> Tensor:
        return (pixels - self.pixel_mean[:, None, None, None]) / self.pixel_std

    @torch.no_grad()
    def _start_from(self, pixels: Tensor) -> None:
        pixels = from_all_ranks(pixels)
        mean = pixels.mean(dim=(0, 2, 3, 4))
        std = (pixels - mean[:, None, None, None]).square().mean().sqrt().clamp_min(1e-3)
        self.pixel_mean.copy_(from_first_rank(mean))
        self.pixel_std.copy_(from_first_rank(std))
        assert isinstance(self.encoder, Encoder)  # VideoGPT's network starts as it is
        assert isinstance(self.decoder, Decoder)
        if self.encoder.linear is not None and self.decoder.linear is not None:
            patches = fold(self._standardised(pixels), self.config.downsample).movedim(1, -1).flatten(0, 3)
            basis = from_first_rank(principal_components(patches, self.config.code_dim))
            # Scaled alike in both directions, distances between codes remain distances between patches.
            scale = (patches @ basis).square().mean().sqrt().clamp_min(1e-6)
            scale = from_first_rank(scale)
            self.encoder.linear.weight.copy_((basis / scale).T[:, :, None, None, None])
            self.decoder.linear.weight.copy_((basis * scale)[:, :, None, None, None])
        self.started.fill_(True)


def _quantizer(config: VQVAEConfig) -> Codebook | FSQ:
    if config.quantizer == "fsq":
        return FSQ(config.fsq_levels, config.code_dim)
    return Codebook(
        config.n_codes,
        config.code_dim,
        decay=config.codebook_decay,
        restart_below=config.restart_below,
        restart_sums=config.restart_sums,
    )


def to_float(video: Tensor) -> Tensor:
    """Turn uint8 (B, T, H, W, 3) into float32 (B, 3, T, H, W) in [-0.5, 0.5], on the device where it lies."""
    if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(f"video must be uint8 (B, T, H, W, 3), not {video.dtype} {tuple(video.shape)}")
    return video.movedim(-1, 1).float() / 255 - 0.5


def to_uint8(pixels: Tensor) -> Tensor:
    """Turn pixels in [-0.5, 0.5] into uint8, rounding to nearest."""
    return ((pixels + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)


def principal_components(patches: Tensor, n: int) -> Tensor:
    """First `n` right singular vectors of patches (M, P), uncentred: (P, n) float32, zeros beyond rank P.

    Signs are fixed by making the largest entry of each positive, so that equal patches give equal vectors.
    """
    gram = patches.T.double() @ patches.double()
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :n]
    signs = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    return F.pad((vectors * signs).float(), (0, max(0, n - vectors.shape[1])))
