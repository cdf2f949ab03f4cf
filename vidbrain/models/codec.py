"""Encoder and decoder of the VQ-VAE, and the shape of both: clips of standardised pixels to code vectors and back.

Shapes: B clips; T H W frames, height, width; t h w the latent grid; C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.attention import AxialAttention, head_width
from vidbrain.models.norms import ChannelNorm
from vidbrain.models.positions import Triple

MOST_CHANNELS, MOST_LAYERS, MOST_DOWNSAMPLE = 16_384, 256, 256
"""Far beyond any tokenizer: a file that asks for more is damaged, and would fill the memory before it failed."""


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """Shape of the tokenizer. The study's own: 240 hidden, 4 residual layers, (4, 16, 16), 1,024 codes x 128."""

    downsample: Triple = (4, 8, 8)
    """Frames, rows and columns per code; powers of two. A 16 x 64 x 64 clip at (4, 8, 8) gives 4 x 8 x 8 codes."""
    patch: Triple = (1, 1, 1)
    """The part of `downsample` that folds pixels into channels; the rest is strided convolutions. (1, 1, 1) is
    VideoGPT; larger patches make training much cheaper."""
    linear_start: bool = True
    """Add a linear path from pixels to code vectors and back, started from the principal components of the first
    batch; the convolutions then learn what it leaves. Codes are useful from the first steps. False is VideoGPT."""
    n_hidden: int = 240
    """Channels inside encoder and decoder."""
    n_res_layers: int = 4
    """Residual blocks with axial attention, in the encoder and again in the decoder."""
    n_heads: int = 2
    """Heads of the axial attention; must divide `n_hidden`."""
    network: Literal["modern", "study"] = "modern"
    """modern: kernels that fit their stride, RMS norm, standardised pixels. study: VideoGPT's convolutions and batch
    norm, pixels as they are, a squared error divided by 0.06."""
    quantizer: Literal["ema", "fsq"] = "ema"
    """ema: a codebook that follows running means. fsq: rounding in a few dimensions (arXiv 2309.15505); nothing to
    learn, nothing that collapses."""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    """Steps of each dimension of fsq; their product is `n_codes`: (4, 4, 4, 4) is 256, (8, 5, 5, 5) 1,000."""
    n_codes: int = 1024
    """Vectors in the codebook."""
    code_dim: int = 128
    """Channels of a code vector."""
    codebook_decay: float = 0.99
    """Of the codebook's running means."""
    restart_below: float = 1.0
    """A code used less often than this per batch, in the running mean, is moved to where the error is."""
    restart_sums: bool = True
    """Restart the running sums of a dead code, too. VideoGPT leaves them, and its next update undoes the restart."""
    commitment: float = 0.25
    """Weight of the pull of the encoder towards its codes."""
    l1: float = 0.0
    """Share of absolute error in the reconstruction loss; the rest is squared error."""

    def __post_init__(self) -> None:
        for name, triple in (("downsample", self.downsample), ("patch", self.patch)):
            if any(n < 1 or n & (n - 1) for n in triple):
                raise ConfigError(f"{name} {triple} must be powers of two", where=name)
            if max(triple) > MOST_DOWNSAMPLE:
                raise ConfigError(f"{name} {triple} is beyond {MOST_DOWNSAMPLE} of an axis", where=name)
        if any(d % p for d, p in zip(self.downsample, self.patch, strict=True)):
            raise ConfigError(f"patch {self.patch} must divide downsample {self.downsample}", where="patch")
        if min(self.n_hidden, self.n_codes, self.code_dim) < 1 or self.n_res_layers < 0:
            raise ConfigError("n_hidden, n_codes and code_dim must be positive", where="model")
        if max(self.n_hidden, self.code_dim) > MOST_CHANNELS or self.n_res_layers > MOST_LAYERS:
            raise ConfigError(
                f"{self.n_res_layers} layers of {self.n_hidden} channels with codes of {self.code_dim} are beyond "
                f"{MOST_LAYERS} layers of {MOST_CHANNELS}",
                where="model",
                likely="a damaged config.json",
            )
        if self.n_codes > 65_536:
            raise ConfigError(f"{self.n_codes} codes do not fit uint16", where="n_codes")
        made = math.prod(self.fsq_levels)
        if self.quantizer == "fsq" and (min(self.fsq_levels, default=0) < 2 or made != self.n_codes):
            raise ConfigError(
                f"levels {self.fsq_levels}, each at least 2, make {made} codes, not {self.n_codes}",
                where="fsq_levels",
                hint=f"use --model.n-codes {made}, or other levels",
            )
        if self.network == "study" and (self.linear_start or max(self.patch) > 1 or not max(self.downsample) > 1):
            raise ConfigError(
                "VideoGPT's network has no linear path and no patches, and halves some axis",
                where="network",
                hint="use linear_start = false and patch = [1, 1, 1]",
            )
        if not 0 <= self.l1 <= 1:
            raise ConfigError(f"l1 is a share between 0 and 1, not {self.l1}", where="l1")
        for name in ("commitment", "restart_below"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, not {getattr(self, name)}", where=name)
        if not 0 <= self.codebook_decay < 1:
            raise ConfigError(f"codebook_decay is a share below 1, not {self.codebook_decay}", where="codebook_decay")
        head_width(self.n_hidden, self.n_heads)

    def latent_grid(self, n_frames: int, height: int, width: int) -> Triple:
        """Return (t, h, w) of the codes of a clip.

        Raises
        ------
        ModelError
            If the downsampling does not divide the clip.
        """
        size = (n_frames, height, width)
        if any(n % d for n, d in zip(size, self.downsample, strict=True)):
            raise ModelError(
                f"clips of {n_frames} x {height} x {width} are not multiples of the downsampling {self.downsample}",
                where="downsample",
                hint="change the clip length or the frame size of the shards, or the downsampling",
            )
        t, h, w = (n // d for n, d in zip(size, self.downsample, strict=True))
        return t, h, w


class Encoder(nn.Module):
    """(B, 3, T, H, W) -> (B, code_dim, t, h, w)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width = config.n_hidden
        self.patch = config.patch
        folded = _folded(config.patch)
        strides = halvings(config.downsample, config.patch)
        self.stem = nn.Conv3d(folded, width, 1) if folded > 3 else nn.Conv3d(3, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(width, width, _kernel(s), stride=s, padding=1) for s in strides)
        self.blocks = nn.ModuleList(ResidualBlock(width, config.n_heads) for _ in range(config.n_res_layers))
        self.norm = ChannelNorm(width)
        self.out = nn.Conv3d(width, config.code_dim, 1)
        self.downsample = config.downsample
        self.linear: nn.Conv3d | None = None
        if config.linear_start:
            self.linear = nn.Conv3d(_folded(config.downsample), config.code_dim, 1, bias=False)
            for zero in self.out.parameters():
                nn.init.zeros_(zero)

    def forward(self, video: Tensor) -> Tensor:
        """Encode standardised video."""
        x = self.stem(fold(video, self.patch))
        for down in self.down:
            x = down(F.relu(x))
        for block in self.blocks:
            x = block(x)
        z = self.out(F.relu(self.norm(x)))
        return z if self.linear is None else z + self.linear(fold(video, self.downsample))


class Decoder(nn.Module):
    """(B, code_dim, t, h, w) -> (B, 3, T, H, W)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width = config.n_hidden
        self.patch = config.patch
        folded = _folded(config.patch)
        strides = halvings(config.downsample, config.patch)[::-1]
        self.stem = nn.Conv3d(config.code_dim, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, config.n_heads) for _ in range(config.n_res_layers))
        self.norm = ChannelNorm(width)
        self.up = nn.ModuleList(nn.ConvTranspose3d(width, width, _kernel(s), stride=s, padding=1) for s in strides)
        self.out = nn.Conv3d(width, folded, 1) if folded > 3 else nn.Conv3d(width, 3, 3, padding=1)
        self.downsample = config.downsample
        self.linear: nn.Conv3d | None = None
        if config.linear_start:
            self.linear = nn.Conv3d(config.code_dim, _folded(config.downsample), 1, bias=False)
            for zero in self.out.parameters():
                nn.init.zeros_(zero)

    def forward(self, z: Tensor) -> Tensor:
        """Decode code vectors to standardised video."""
        x = self.stem(z)
        for block in self.blocks:
            x = block(x)
        x = F.relu(self.norm(x))
        for up in self.up:
            x = F.relu(up(x))
        pixels = unfold(self.out(x), self.patch)
        return pixels if self.linear is None else pixels + unfold(self.linear(z), self.downsample)


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3 x 3 x 3 convolution to half the width, back, then axial attention; added to the input."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.norms = nn.ModuleList([ChannelNorm(width), ChannelNorm(half), ChannelNorm(width)])
        self.conv_in = nn.Conv3d(width, half, 3, padding=1, bias=False)
        self.conv_out = nn.Conv3d(half, width, 1, bias=False)
        self.attention = AxialAttention(width, n_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Add to (B, C, t, h, w)."""
        y = self.conv_in(F.relu(self.norms[0](x)))
        y = self.conv_out(F.relu(self.norms[1](y)))
        y = F.relu(self.norms[2](y)).movedim(1, -1)
        return x + self.attention(y).movedim(-1, 1)


def fold(x: Tensor, patch: Triple) -> Tensor:
    """Space to depth: (B, C, T, H, W) -> (B, C·pt·ph·pw, T/pt, H/ph, W/pw)."""
    batch, channels, *size = x.shape
    (pt, ph, pw), (t, h, w) = patch, (n // p for n, p in zip(size, patch, strict=True))
    x = x.reshape(batch, channels, t, pt, h, ph, w, pw).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(batch, channels * pt * ph * pw, t, h, w)


def unfold(x: Tensor, patch: Triple) -> Tensor:
    """Depth to space, the inverse of `fold`."""
    batch, folded, t, h, w = x.shape
    pt, ph, pw = patch
    channels = folded // (pt * ph * pw)
    x = x.reshape(batch, channels, pt, ph, pw, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels, t * pt, h * ph, w * pw)


def halvings(downsample: Triple, patch: Triple) -> list[Triple]:
    """Strides of the convolutions that make up what `patch` leaves of `downsample`, one halving of each axis at most.

    Axes with fewer halvings do theirs first, as in VideoGPT: (4, 16, 16) -> (2,2,2), (2,2,2), (1,2,2), (1,2,2).
    """
    left = [(d // p).bit_length() - 1 for d, p in zip(downsample, patch, strict=True)]
    return [tuple(2 if i < n else 1 for n in left) for i in range(max(left))]  # type: ignore[misc]  # three axes


def _folded(patch: Triple) -> int:
    return 3 * patch[0] * patch[1] * patch[2]


def _kernel(stride: Triple) -> Triple:
    # With padding 1, kernel 4 halves an axis exactly and kernel 3 keeps it.
    kt, kh, kw = (4 if s == 2 else 3 for s in stride)
    return kt, kh, kw
