"""A step in parts is the step: on one process and on several, killed or not, and refused where not even a part fits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.gpt import GPTConfig
from vidbrain.training import cost
from vidbrain.training.checkpoint import load_state
from vidbrain.training.cost import Room
from vidbrain.training.gpt import GPTTrainConfig, train_gpt
from vidbrain.training.vqvae import VQVAETrainConfig, train_vqvae

SCRIPT = """
import json, sys
from pathlib import Path
from vidbrain.config import from_mapping
from vidbrain.training import gpt, vqvae
kind, data, out, config = sys.argv[1:]
if kind == "gpt":
    gpt.train_gpt(data, Path(out), from_mapping(gpt.GPTTrainConfig, json.loads(config)))
else:
    vqvae.train_vqvae(data, Path(out), from_mapping(vqvae.VQVAETrainConfig, json.loads(config)))
"""


def losses(root):
    return [row["loss"] for row in map(json.loads, (root / "metrics.jsonl").read_text().splitlines())]


def close(one, other, *, atol):
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-3, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def plain_gpt(gpt_config):
    """Without dropout, whose masks differ, and logged at each step."""
    return replace(gpt_config, model=GPTConfig(hidden=16, n_layers=1, n_heads=2), steps=5, log_every=1, eval_every=100)


@pytest.fixture(scope="module")
def whole_gpt(codes, plain_gpt, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole-gpt")
    train_gpt(codes, root, plain_gpt)
    return root


@pytest.fixture(scope="module")
def plain_vqvae(vqvae_config):
    """With restarts: dead codes move onto vectors of any process and any part."""
    model = replace(vqvae_config.model, restart_below=20.0, codebook_decay=0.5)
    return replace(vqvae_config, model=model, steps=4, log_every=1, batch_size=12, eval_every=100, eval_clips=4)


@pytest.fixture(scope="module")
def whole_vqvae(shards, plain_vqvae, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole-vqvae")
    train_vqvae(shards, root, plain_vqvae)
    return root


def test_a_gpt_in_parts_of_unequal_size_is_the_whole(codes, plain_gpt, whole_gpt, tmp_path):
    summary = train_gpt(codes, tmp_path, replace(plain_gpt, micro_batch_size=3))  # 3, 3 and 2 of 8
    assert summary["micro_batch_size"] == 3
    np.testing.assert_allclose(losses(tmp_path), losses(whole_gpt), rtol=1e-5)
    close(tmp_path, whole_gpt, atol=1e-5)


def test_a_vqvae_in_parts_is_the_whole_with_its_start_codebook_and_restarts(shards, plain_vqvae, whole_vqvae, tmp_path):
    train_vqvae(shards, tmp_path, replace(plain_vqvae, micro_batch_size=5))  # 5, 5 and 2 of 12
    rows = [
        [(row["active"], row["restarts"]) for row in map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
         if row["split"] == "train"]
        for root in (tmp_path, whole_vqvae)
    ]  # fmt: skip
    assert rows[0] == rows[1]
    assert sum(restarts for _, restarts in rows[0]) > 0
    np.testing.assert_allclose(losses(tmp_path), losses(whole_vqvae), rtol=1e-4)
    close(tmp_path, whole_vqvae, atol=1e-3)


def test_two_processes_in_parts_train_as_one(codes, shards, plain_gpt, plain_vqvae, whole_gpt, whole_vqvae, together,
                                             tmp_path):  # fmt: skip
    cases = (("gpt", codes, plain_gpt, whole_gpt, 1e-5), ("vqvae", shards, plain_vqvae, whole_vqvae, 1e-3))
    for kind, data, config, whole, atol in cases:
        parts = replace(config, micro_batch_size=config.batch_size // 2 - 1)
        together(2, SCRIPT, kind, data, tmp_path / kind, json.dumps(to_mapping(parts)))
        summary = json.loads((tmp_path / kind / "summary.json").read_text())
        assert (summary["processes"], summary["micro_batch_size"]) == (2, config.batch_size // 2 - 1)
        np.testing.assert_allclose(losses(tmp_path / kind), losses(whole), rtol=1e-4)
        close(tmp_path / kind, whole, atol=atol)


def test_the_part_is_chosen_by_memory_and_kept_by_a_resumed_training(
    codes, gpt_config, tmp_path, monkeypatch, weights, stop_at, stop
):
    config = replace(gpt_config, steps=8, checkpoint_every=4, eval_every=100)
    honest = cost.room_of

    def for_five(*arguments):
        room = honest(*arguments)
        return replace(room, free_bytes=room.state_bytes + 5 * room.clip_bytes)

    with monkeypatch.context() as patched:
        patched.setattr("vidbrain.training.loop.room_of", for_five)
        whole = train_gpt(codes, tmp_path / "whole", config)
        assert 1 <= whole["micro_batch_size"] <= 4
        with pytest.raises(stop):
            train_gpt(codes, tmp_path / "killed", config, progress=stop_at(6))
    state = load_state(tmp_path / "killed" / "checkpoints" / "step-00000004" / "state.pt")
    assert state["micro_batch_size"] == whole["micro_batch_size"]
    again = train_gpt(codes, tmp_path / "killed", config)  # with all of the memory
    assert again["micro_batch_size"] == whole["micro_batch_size"]
    weights(tmp_path / "whole", tmp_path / "killed")


def test_room_chooses_equal_parts_and_refuses_what_cannot_fit():
    room = Room(free_bytes=10_000, state_bytes=3_000, clip_bytes=1_000)
    assert room.micro_batch(7) == 7
    assert room.micro_batch(8) == 4  # 5 fit in four fifths of the memory: two parts
    assert room.micro_batch(16) == 4
    assert room.micro_batch(16, before=6) == 6
    assert room.micro_batch(16, before=9) == 4
    assert room.micro_batch(16, asked=2, before=6) == 2
    assert room.micro_batch(3, asked=5) == 3
    with pytest.raises(ModelError, match="8 clips at a time do not fit") as caught:
        room.micro_batch(16, asked=8)
    assert caught.value.hint == "use --micro-batch-size 7 or less: steps stay the same"
    assert "--micro-batch-size 2 or" in room.error("memory ran out", fewer_than=4).hint
    assert "smaller model" in room.error("memory ran out", fewer_than=1).hint
    with pytest.raises(ModelError, match="not even one clip") as caught:
        Room(1_000, 3_000, 1_000).micro_batch(1)
    assert "smaller model" in caught.value.hint


def test_a_model_that_cannot_fit_is_refused_before_the_start(codes, gpt_config, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "free_host_bytes", lambda: 1_000_000)
    config = replace(gpt_config, model=GPTConfig(hidden=64, n_layers=4, n_heads=2))
    with pytest.raises(ModelError, match="not even one clip fits in memory") as caught:
        train_gpt(codes, tmp_path, config)
    assert "0.00 GB are free" in caught.value.likely
    assert not list(tmp_path.iterdir())


def test_memory_that_runs_out_names_a_smaller_part_and_the_same_command_goes_on(
    codes, gpt_config, tmp_path, monkeypatch
):
    config = replace(gpt_config, steps=6, checkpoint_every=2, eval_every=100)
    honest, steps = torch.nn.utils.clip_grad_norm_, []

    def greedy(*arguments):
        steps.append(1)
        if len(steps) == 4:
            torch.empty(1 << 58)
        return honest(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", greedy)
    with pytest.raises(ModelError, match="memory ran out at step 4") as caught:
        train_gpt(codes, tmp_path, config)
    assert caught.value.hint == "use --micro-batch-size 4 or less: steps stay the same"
    again = train_gpt(codes, tmp_path, replace(config, micro_batch_size=4))
    assert (again["steps"], again["micro_batch_size"]) == (6, 4)


def test_a_part_of_no_clips_is_refused():
    for config in (GPTTrainConfig, VQVAETrainConfig):
        with pytest.raises(ConfigError, match="micro_batch_size must be at least 1"):
            config(micro_batch_size=0)
