"""VideoGPT's encoder and decoder, as the study trained them (arXiv 2104.10157): same shapes, same formulas.

Shapes: B clips; T H W frames, height, width; t h w the latent grid; C channels. Batch norm keeps running statistics in
each process of a training of several; the first one's are saved.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.models.attention import AxialAttention
from vidbrain.models.codec import VQVAEConfig, halvings
from vidbrain.models.positions import Triple

KERNEL = 4
"""Of every convolution that may halve or double an axis, also along axes that it keeps."""


class StudyEncoder(nn.Module):
    """(B, 3, T, H, W) -> (B, code_dim, t, h, w)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width, strides = config.n_hidden, halvings(config.downsample, config.patch)
        self.down = nn.ModuleList(Down(3 if i == 0 else width, width, s) for i, s in enumerate(strides))
        self.last = nn.Conv3d(width, width, 3, padding=1)
        self.blocks = nn.ModuleList(StudyBlock(width, config.n_heads) for _ in range(config.n_res_layers))
        self.norm = nn.BatchNorm3d(width)
        self.out = nn.Conv3d(width, config.code_dim, 1)

    def forward(self, video: Tensor) -> Tensor:
        """Encode pixels."""
        x = video
        for down in self.down:
            x = F.relu(down(x))
        x = self.last(x)
        for block in self.blocks:
            x = block(x)
        return self.out(F.relu(self.norm(x)))


class StudyDecoder(nn.Module):
    """(B, code_dim, t, h, w) -> (B, 3, T, H, W)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        # The order of the strides is not turned round: VideoGPT doubles first those axes that it halved first.
        width, strides = config.n_hidden, halvings(config.downsample, config.patch)
        self.stem = nn.Conv3d(config.code_dim, width, 1)
        self.blocks = nn.ModuleList(StudyBlock(width, config.n_heads) for _ in range(config.n_res_layers))
        self.norm = nn.BatchNorm3d(width)
        last = len(strides) - 1
        self.up = nn.ModuleList(Up(width, 3 if i == last else width, s) for i, s in enumerate(strides))

    def forward(self, z: Tensor) -> Tensor:
        """Decode code vectors to pixels."""
        x = self.stem(z)
        for block in self.blocks:
            x = block(x)
        x = F.relu(self.norm(x))
        for i, up in enumerate(self.up):
            x = up(x if i == 0 else F.relu(x))
        return x


class StudyBlock(nn.Module):
    """Batch norm, ReLU and convolution, twice, then axial attention; added to the input (B, C, t, h, w)."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.norms = nn.ModuleList([nn.BatchNorm3d(width), nn.BatchNorm3d(half), nn.BatchNorm3d(width)])
        self.conv_in = nn.Conv3d(width, half, 3, padding=1, bias=False)
        self.conv_out = nn.Conv3d(half, width, 1, bias=False)
        self.attention = AxialAttention(width, n_heads)
        for name, weight in self.attention.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Add to the input."""
        y = self.conv_in(F.relu(self.norms[0](x)))
        y = self.conv_out(F.relu(self.norms[1](y)))
        y = F.relu(self.norms[2](y)).movedim(1, -1)
        return x + self.attention(y).movedim(-1, 1)


class Down(nn.Module):
    """A convolution of kernel 4 that halves axes of stride 2 and keeps those of stride 1.

    VideoGPT pads an axis that is halved by (1, 1) and one that is kept by (2, 1).
    """

    def __init__(self, channels: int, width: int, stride: Triple) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, width, KERNEL, stride=stride, padding=1)
        self.first = [pad for s in reversed(stride) for pad in (2 - s, 0)]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, T, H, W)."""
        return self.conv(F.pad(x, self.first) if any(self.first) else x)


class Up(nn.Module):
    """A transposed convolution of kernel 4 that doubles axes of stride 2 and keeps those of stride 1.

    VideoGPT pads its input with zeros and cuts the result; the same values come from cutting less of an unpadded one,
    by (1, 1) where an axis is doubled and by (1, 2) where it is kept, at fewer operations.
    """

    def __init__(self, channels: int, width: int, stride: Triple) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(channels, width, KERNEL, stride=stride, padding=1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, t, h, w)."""
        t, h, w = (n * s for n, s in zip(x.shape[2:], self.stride, strict=True))
        return self.conv(x)[:, :, :t, :h, :w]
