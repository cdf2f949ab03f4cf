"""How near a reconstruction is to its original: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.models.norms import full_precision

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (BT.601)."""

WINDOW, SIGMA = 11, 1.5
"""Pixels of the Gaussian window of SSIM, and its deviation."""


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of values with a range of 1.

    A floor of half a grey level in 100,000 pixels keeps a perfect reconstruction a number.
    """
    return -10 * math.log10(max(mse, 1e-11))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of pictures (Wang et al. 2004), on their luma.

    Parameters
    ----------
    a, b : (N, H, W, 3) floats in [-0.5, 0.5]
        H and W of at least 11.

    Returns
    -------
    Tensor
        (N,), the mean over all windows that lie inside the picture.
    """
    with full_precision(a):  # in 16 bits the variances of flat windows would be lost
        weights = torch.tensor(LUMA, dtype=a.dtype, device=a.device)
        # Its constants refer to values from 0 to 1: half a range is added to pixels that begin at -0.5.
        x, y = ((v @ weights)[:, None] + 0.5 for v in (a, b))
        near = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
        row = torch.exp(-(near**2) / (2 * SIGMA**2))
        row = row / row.sum()
        maps = torch.cat([x, y, x * x, y * y, x * y])
        mean = F.conv2d(F.conv2d(maps, row[None, None, None]), row[None, None, :, None])
        mx, my, xx, yy, xy = mean.chunk(5)
        c1, c2 = 0.01**2, 0.03**2
        vx, vy, cov = xx - mx**2, yy - my**2, xy - mx * my
        found = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        return found.mean(dim=(1, 2, 3))
