import itertools
import math

import numpy as np
import pytest
import torch

from vidbrain.models.fsq import FSQ
from vidbrain.models.vqvae import VQVAE, VQVAEConfig


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (4, 3), (2,), (7, 2, 3)])
def test_rounding_is_that_of_the_paper(levels):
    torch.manual_seed(0)
    quantizer = FSQ(levels, len(levels)).eval()
    with torch.no_grad():
        for layer in (quantizer.project_in, quantizer.project_out):
            layer.weight.copy_(torch.eye(len(levels)))
            layer.bias.zero_()
    z = torch.randn(200, len(levels)) * 2
    found = quantizer(z)
    for vector, row, code in zip(z.double().numpy(), found.vectors.detach().numpy(), found.codes.tolist(), strict=True):
        digits = []
        for value, n in zip(vector, levels, strict=True):
            half, offset = (n - 1) * 1.001 / 2, 0.5 if n % 2 == 0 else 0.0
            digits.append(round(math.tanh(value + math.atanh(offset / half)) * half - offset))
        np.testing.assert_allclose(row, [d / (n // 2) for d, n in zip(digits, levels, strict=True)], atol=1e-6)
        expected = sum(
            (d + n // 2) * math.prod(levels[:k]) for k, (d, n) in enumerate(zip(digits, levels, strict=True))
        )
        assert code == expected


@pytest.mark.parametrize("levels", [(4, 3), (8, 5, 5), (2, 2, 2, 2)])
def test_codes_count_all_combinations_and_give_their_vectors_back(levels):
    torch.manual_seed(0)
    quantizer = FSQ(levels, 6).train()
    with torch.no_grad():
        quantizer.project_in.weight.mul_(5)
        found = quantizer(torch.randn(20_000, 6))
        torch.testing.assert_close(quantizer.lookup(found.codes), found.vectors)
        digits = itertools.product(*(range(n) for n in levels))
        assert len(quantizer.vectors().unique(dim=0)) == len(list(digits)) == math.prod(levels)
    assert 0 <= int(found.codes.min()) <= int(found.codes.max()) < math.prod(levels)
    usage, restarts = quantizer.take_usage()
    assert (int(usage.sum()), restarts) == (20_000, 0)
    assert int(quantizer.take_usage()[0].sum()) == 0


def test_stays_float32_under_autocast_and_passes_gradients():
    quantizer = FSQ((5, 5), 4).eval()
    z = torch.randn(50, 4, requires_grad=True)
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(z)
    assert cast.vectors.dtype == torch.float32
    torch.testing.assert_close(cast.codes, plain.codes)
    plain.vectors.square().sum().backward()
    assert z.grad.abs().sum() > 0


def test_a_vqvae_with_fsq_learns():
    torch.manual_seed(0)
    config = VQVAEConfig(
        downsample=(2, 4, 4), patch=(1, 2, 2), n_hidden=16, n_res_layers=0, n_codes=64, quantizer="fsq",
        fsq_levels=(4, 4, 4), code_dim=8,
    )  # fmt: skip
    model = VQVAE(config).train()
    ramp = torch.linspace(0, 255, 16).to(torch.uint8)
    clips = torch.stack([ramp[:, None].expand(16, 8), ramp.flip(0)[:, None].expand(16, 8)])
    clips = clips[:, None, :, :, None].expand(2, 4, 16, 8, 3).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        output = model(clips)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.eval().decode(model.encode(clips)).shape == clips.shape
