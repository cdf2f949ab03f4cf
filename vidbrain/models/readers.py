"""What reads a GPT's condition: the clip before, as code vectors, or the first frames of a clip, as pixels.

Shapes: B clips; t h w a grid; D channels of a code vector; E channels of the context that blocks attend to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.models.norms import ChannelLayerNorm, ChannelNorm
from vidbrain.models.positions import Triple, summed, thirds

ReaderName = Literal["modern", "study", "videogpt"]

MakeNorm = Callable[[int], nn.Module]

NORMS: dict[ReaderName, MakeNorm] = {"study": ChannelLayerNorm, "videogpt": nn.BatchNorm3d}
"""Norms of the residual blocks: the study put layer norm over channels where VideoGPT has batch norm."""

FRAMES_PER_CELL = (1, 4, 4)
"""Frames, rows and columns of pixels for each position of the context that a `FramesReader` gives."""

_STEM, _WIDTHS, _DEPTHS = 64, (64, 128, 256), (3, 4, 6, 3)
_STRIDES = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 1, 1))


class PreviousClip(nn.Module):
    """Turns code vectors of the clip before (B, t, h, w, D) into a context (B, t·h·w, E).

    A residual block of two 3 x 3 x 3 convolutions with RMS norm, whose shortcut is not normalised; positions are added.
    """

    def __init__(self, channels: int, width: int, grid: Triple) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(channels, width, 3, padding=1, bias=False)
        self.conv_out = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv3d(channels, width, 1, bias=False)
        self.norms = nn.ModuleList([ChannelNorm(width), ChannelNorm(width)])
        self.positions = nn.ParameterList(torch.randn(n, width) * 0.01 for n in grid)

    def forward(self, vectors: Tensor) -> Tensor:
        """Read the clip before."""
        x = vectors.movedim(-1, 1)
        y = self.norms[1](self.conv_out(F.relu(self.norms[0](self.conv_in(x)))))
        read = F.relu(y + self.shortcut(x)).flatten(2).transpose(1, 2)
        return read + summed(self.positions)


class StudyPreviousClip(nn.Module):
    """As `PreviousClip`, with the study's formulas: `Residual`, and positions in thirds of the width."""

    def __init__(self, channels: int, width: int, grid: Triple, norm: MakeNorm) -> None:
        super().__init__()
        self.block = Residual(channels, width, norm=norm)
        self.positions = nn.ParameterList(torch.randn(n, width // 3) * 0.01 for n in grid)

    def forward(self, vectors: Tensor) -> Tensor:
        """Read the clip before."""
        return self.block(vectors.movedim(-1, 1)).flatten(2).transpose(1, 2) + thirds(self.positions)


class FramesReader(nn.Module):
    """Turns frames (B, 3, n, H, W) in [-0.5, 0.5] into a context (B, n·H/4·W/4, E): VideoGPT's 3-D ResNet-34.

    Its first convolution keeps the resolution; the second and third group of residual blocks halve rows and columns.
    """

    def __init__(self, width: int, frames: Triple, norm: MakeNorm) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv3d(3, _STEM, 3, padding=1, bias=False), norm(_STEM)
        blocks, channels = [], _STEM
        for n_blocks, out, stride in zip(_DEPTHS, (*_WIDTHS, width), _STRIDES, strict=True):
            blocks.append(Residual(channels, out, stride, norm=norm))
            blocks += [Residual(out, out, norm=norm, project=False) for _ in range(n_blocks - 1)]
            channels = out
        self.blocks = nn.ModuleList(blocks)
        self.positions = nn.ParameterList(torch.randn(n, width // 3) * 0.01 for n in context_grid(frames))

    def forward(self, pixels: Tensor) -> Tensor:
        """Read frames."""
        x = F.relu(self.stem_norm(self.stem(pixels)))
        for block in self.blocks:
            x = block(x)
        return x.flatten(2).transpose(1, 2) + thirds(self.positions)


class Residual(nn.Module):
    """VideoGPT's residual block: two convolutions of 3 x 3 x 3, each with norm and ReLU, and a shortcut.

    The shortcut is a convolution of 1 x 1 x 1 with a norm where `project` says so, else the input itself.
    """

    def __init__(
        self, channels: int, width: int, stride: Triple = (1, 1, 1), *, norm: MakeNorm, project: bool = True
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.conv_out = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([norm(width), norm(width)])
        self.shortcut: nn.Module | None = None
        self.shortcut_norm: nn.Module | None = None
        if project:
            self.shortcut = nn.Conv3d(channels, width, 1, stride=stride, bias=False)
            self.shortcut_norm = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) -> (B, E, t', h', w')."""
        kept = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            kept = self.shortcut_norm(self.shortcut(x))
        y = F.relu(self.norms[0](self.conv_in(x)))
        # Both convolutions are rectified before the sum, and the sum once more.
        return F.relu(F.relu(self.norms[1](self.conv_out(y))) + kept)


def context_grid(frames: Triple) -> Triple:
    """Positions that a `FramesReader` makes of (n, H, W) frames."""
    t, h, w = (n // cell for n, cell in zip(frames, FRAMES_PER_CELL, strict=True))
    return t, h, w


def frames_flops(width: int, frames: Triple) -> int:
    """Multiplications with their additions of a `FramesReader` on one clip."""
    n, channels = math.prod(frames), _STEM
    total = n * 27 * 3 * _STEM
    for n_blocks, out, stride in zip(_DEPTHS, (*_WIDTHS, width), _STRIDES, strict=True):
        n //= math.prod(stride)
        total += n * (27 * channels * out + channels * out + (2 * n_blocks - 1) * 27 * out * out)
        channels = out
    return total
