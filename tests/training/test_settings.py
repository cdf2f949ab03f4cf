"""Settings that no training or drawing can take are refused where they are made: before anything is written."""

import math

import pytest
import torch

from vidbrain.errors import ConfigError
from vidbrain.models.gpt import GPTConfig
from vidbrain.models.vqvae import VQVAEConfig
from vidbrain.training.convert import ConvertConfig
from vidbrain.training.gpt import GPTTrainConfig
from vidbrain.training.optim import adamw
from vidbrain.training.samples import SamplesConfig

NAN, INF = math.nan, math.inf
IMPOSSIBLE = {
    GPTTrainConfig: {
        "lr": [NAN, INF, 0.0, -1.0],
        "weight_decay": [NAN, INF, -0.1],
        "clip_norm": [NAN, INF, -1.0],
        "betas": [(NAN, 0.9), (0.9, NAN), (2.0, 2.0), (1.0, 1.0), (-0.1, 0.9), (0.9, INF)],
    },
    VQVAEConfig: {
        "commitment": [NAN, INF, -5.0],
        "codebook_decay": [NAN, INF, -0.1, 1.0, 5.0],
        "restart_below": [NAN, INF, -1.0],
        "downsample": [(2**60, 8, 8), (4, 2**20, 2**20), (0, 8, 8)],
        "patch": [(2**60, 1, 1)],
        "l1": [NAN],
    },
    GPTConfig: {"dropout": [NAN, 1.0], "condition_width": [3 * 10**9], "base_hidden": [10**400], "n_heads": [0]},
    SamplesConfig: {
        "n_clips": [0],
        "prompt": [NAN, 1.0],
        "temperature": [NAN, INF, 0.0, 1e-40, -1.0],
        "top_k": [0, -1],
    },
    ConvertConfig: {"n_frames": [0], "n_heads": [0], "step": [0], "class_label": [-1]},
}
CASES = [(cls, name, value) for cls, rows in IMPOSSIBLE.items() for name, values in rows.items() for value in values]


@pytest.mark.parametrize(("cls", "name", "value"), CASES, ids=lambda x: getattr(x, "__name__", str(x)[:12]))
def test_an_impossible_setting_is_refused(cls, name, value):
    with pytest.raises(ConfigError, match=name):
        cls(**{name: value})


def test_settings_at_the_edge_are_taken():
    config = GPTTrainConfig(betas=(0.0, 0.0), weight_decay=0.0, clip_norm=0.0, warmup=0, lr=1e-12)
    adamw(torch.nn.Linear(2, 2), lr=config.lr, weight_decay=config.weight_decay, betas=config.betas)
    VQVAEConfig(commitment=0.0, codebook_decay=0.0, restart_below=0.0)
    scores = torch.tensor([80.0, 79.0, -80.0]) / SamplesConfig(temperature=0.001, top_k=1).temperature
    assert scores.softmax(0).tolist() == [1.0, 0.0, 0.0]
