"""Analytic operations against torch's counter, and saved memory against what autograd keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidbrain.models.flops import _count, count_gpt, count_vqvae, gpt_flops, vqvae_flops
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.vqvae import VQVAE, VQVAEConfig

GRID = (3, 2, 4)
STUDY = {"block": "study", "norm": "study", "positions": "thirds", "embedding": "codebook"}


def gpt(**settings):
    config = GPTConfig(**{"hidden": 24, "n_layers": 4, "n_heads": 2, "condition_width": 6} | settings)
    actions = ("A", "B") if config.condition == "actions" else ()
    return GPT(config, n_codes=9, grid=GRID, code_dim=5 if config.embedding == "codebook" else None, actions=actions,
               frames=(2, 16, 8) if config.condition == "frames" else None)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head_dim": 5, "n_heads": 3},
        {"attention": "axial"},
        {"attention": "window", "window": 1},
        {"attention": "window", "window": 4},
        {"positions": "rotary"},
        STUDY,
        STUDY | {"condition": "previous"},
        STUDY | {"condition": "previous", "reader": "study"},
        STUDY | {"condition": "frames", "reader": "study"},
        {"condition": "previous"},
        {"condition": "actions"},
    ],
    ids=str,
)
def test_a_gpts_operations_are_those_torch_counts(settings):
    model = gpt(**settings)
    counted = count_gpt(model)
    assert gpt_flops(model).dense == counted.forward
    # Inputs of embeddings, conditions and actions need no gradient; every other product has two in the backward pass.
    assert 2.5 < counted.train / counted.forward <= 3


def test_causal_operations_leave_out_what_the_mask_hides():
    found = gpt_flops(gpt())
    assert found.dense - found.causal == 4 * 4 * 24 * (24 * 24 - 24 * 25 // 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"patch": (1, 1, 1)},
        {"patch": (1, 2, 2), "linear_start": False},
        {"patch": (2, 4, 4)},
        {"quantizer": "fsq", "n_codes": 12, "fsq_levels": (4, 3)},
        {"network": "study", "linear_start": False},
        {"network": "study", "linear_start": False, "downsample": (1, 2, 8)},
    ],
    ids=str,
)
def test_a_vqvaes_operations_are_those_torch_counts(settings):
    config = VQVAEConfig(
        **{"downsample": (2, 4, 4), "n_hidden": 8, "n_res_layers": 2, "n_codes": 12, "code_dim": 4} | settings
    )
    model = VQVAE(config)
    counted = count_vqvae(model, (4, 16, 8))
    assert vqvae_flops(config, (4, 16, 8)).dense == counted.forward
    assert counted.forward < counted.train < 3 * counted.forward


def test_counting_leaves_the_model_and_chance_alone():
    torch.manual_seed(0)
    model = gpt()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    count_gpt(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_saved_memory_is_what_autograd_keeps():
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 2))
    x = torch.zeros(5, 6, device="meta")
    model.to("meta")
    counted = _count(model, lambda: model(x).sum())
    # The first layer keeps its input, the activation its output, which is also the second layer's input.
    assert counted.saved_bytes == 4 * (5 * 6 + 5 * 10)
    assert counted.forward == 2 * 5 * (6 * 10 + 10 * 2)
    with FlopCounterMode(display=False) as counter:
        torch.nn.Linear(6, 10)(torch.zeros(5, 6))
    assert counter.get_total_flops() == 2 * 5 * 6 * 10
