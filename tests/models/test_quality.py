import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from vidbrain.models.quality import psnr, ssim


def naive(a, b):
    """Wang et al. 2004, equations 13 to 16, window by window with scipy."""
    near = np.arange(11) - 5
    row = np.exp(-(near**2) / (2 * 1.5**2))
    window = np.outer(row, row) / row.sum() ** 2
    x, y = (v @ [0.299, 0.587, 0.114] + 0.5 for v in (a, b))

    def mean(v):
        return correlate(v, window)[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return (((2 * mx * my + 1e-4) * (2 * cov + 9e-4)) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_agrees_with_its_equations(noise):
    rng = np.random.default_rng(0)
    a = np.clip(rng.normal(size=(3, 24, 17, 3)).cumsum(1) * 0.05, -0.5, 0.5)
    b = np.clip(a + noise * rng.normal(size=a.shape), -0.5, 0.5)
    found = ssim(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(found, [naive(x, y) for x, y in zip(a, b, strict=True)], atol=1e-10)
    np.testing.assert_allclose(ssim(torch.from_numpy(a), torch.from_numpy(a)).numpy(), 1)
    x, y = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(ssim(x, y).numpy(), found, atol=1e-4)


def test_psnr():
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0.0) == pytest.approx(110)
