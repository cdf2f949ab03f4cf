"""The coordinate check: under mup, what a few steps change does not grow or vanish with the width."""

import numpy as np
import pytest
import torch

from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.training.optim import adamw, set_lr

WIDTHS = (32, 64, 128, 256, 512)
GRID = (2, 3, 4)


def changes(width, parametrization, steps=4):
    """Mean absolute change, by steps of Adam, of the stream after each block and of the logits."""
    torch.manual_seed(0)
    config = GPTConfig(hidden=width, n_layers=2, n_heads=4, parametrization=parametrization, base_hidden=64)
    model = GPT(config, n_codes=16, grid=GRID)
    codes = torch.randint(16, (8, *GRID), generator=torch.Generator().manual_seed(0))
    optimizer = adamw(model, lr=1e-2, weight_decay=0.0, betas=(0.9, 0.99), lr_scales=model.lr_scales())
    set_lr(optimizer, 1e-2)
    names = ["gpt.block_0.mlp", "gpt.block_1.mlp"]

    def look():
        with torch.no_grad():
            states = model.hidden_states(codes, names)
            return [states[name] for name in names] + [model.logits(codes)]

    before = look()
    for _ in range(steps):
        loss = model(codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [float((b - a).abs().mean()) for a, b in zip(before, look(), strict=True)]


def slopes(parametrization):
    sizes = np.log2([changes(width, parametrization) for width in WIDTHS])
    return np.polyfit(np.log2(WIDTHS), sizes, 1)[0]


def test_coordinates_keep_their_size_under_mup_and_not_under_sp():
    mup, sp = slopes("mup"), slopes("sp")
    assert np.abs(mup).max() < 0.25, mup
    assert sp.max() > 0.4, sp


def test_equal_at_the_base_width():
    assert changes(64, "mup") == pytest.approx(changes(64, "sp"), rel=1e-5)


def test_scaled_groups_say_their_factor():
    model = GPT(GPTConfig(hidden=32, n_layers=1, n_heads=2, parametrization="mup", base_hidden=8), n_codes=5, grid=GRID)
    assert set(model.lr_scales()) == {f"blocks.0.{n}.weight" for n in ("attention.qkv", "attention.out", "up", "down")}
    optimizer = adamw(model, lr=1.0, weight_decay=0.1, betas=(0.9, 0.99), lr_scales=model.lr_scales())
    set_lr(optimizer, 2.0)
    found = {(round(g["lr"], 6), round(g["weight_decay"], 6)): len(g["params"]) for g in optimizer.param_groups}
    assert found[0.5, 0.4] == 4
    assert all(lr * decay == pytest.approx(0.2) or decay == 0 for lr, decay in found)
    assert sum(found.values()) == len(list(model.parameters()))
