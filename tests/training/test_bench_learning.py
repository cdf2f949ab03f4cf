"""What the tools about learning and kills conclude from runs, and that they can conclude the contrary."""

import importlib.util
import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return load(TOOLS / "bench" / "learning.py")


@pytest.fixture(scope="module")
def kill():
    return load(TOOLS / "kill_train.py")


def test_loss_must_fall_with_the_width_in_every_seed(bench):
    losses = {0: (2.2, 1.6, 1.5), 1: (2.3, 1.7, 1.4)}
    rows = [
        {"hidden": hidden, "seed": seed, "held_out_loss": loss}
        for seed, found in losses.items()
        for hidden, loss in zip((6, 30, 126), found, strict=True)
    ]
    assert bench.falls_with_width(rows[::-1])
    rows[-1]["held_out_loss"] = 1.71
    assert not bench.falls_with_width(rows)


def test_a_gpt_must_beat_each_guess(bench):
    row = {"held_out_loss": 1.6, "held_out_loss_later": 1.5}
    row |= {"unigram_loss": 3.4, "bigram_loss": 2.3, "bigram_loss_later": 1.9}
    assert bench.below_guesses(row)
    for name in ("unigram_loss", "bigram_loss", "bigram_loss_later"):
        assert not bench.below_guesses(row | {name: 1.45})


def test_precisions_are_compared_within_a_seed(bench):
    rows = [
        {"precision": arm, "seed": seed, "held_out_loss": loss}
        for seed, arm, loss in ((0, "bf16", 2.02), (0, "fp32", 2.0), (1, "fp32", 4.0), (1, "bf16", 3.9))
    ]
    assert [row["from_fp32"] for row in bench.against_fp32(rows)] == pytest.approx([0.01, 0, 0, -0.025])


def test_the_rate_is_chosen_on_training_batches(bench):
    rows = [{"lr": 1e-3, "training_loss": 2.0}, {"lr": 3e-3, "training_loss": 1.8}, {"lr": 1e-2, "training_loss": 1.9}]
    assert bench.best_rate(rows) == 3e-3


def test_a_command_that_is_done_is_not_given_again(bench, tmp_path, capfd):
    for _ in range(2):
        bench.Work(tmp_path / "work").give("--version")
    assert json.loads((tmp_path / "work" / "commands.json").read_text()) == ["vidbrain --version"]
    assert capfd.readouterr().out.count("vidbrain --version") == 1


@pytest.mark.parametrize("change", ["bit", "shape", "count", "key"])
def test_a_single_bit_is_a_difference(kill, change):
    state = {"weights": {"a": torch.linspace(0, 1, 7), "b": torch.tensor(3)}, "best": {"loss": 0.5}, "seconds": 1.0}
    other = deepcopy(state) | {"seconds": 2.0}
    assert kill.unequal(state, other, "state") == []
    if change == "bit":
        other["weights"]["a"].view(torch.int32)[3] ^= 1
    if change == "shape":
        other["weights"]["a"] = other["weights"]["a"][:6]
    if change == "count":
        other["best"]["loss"] = 0.5000000000000001
    if change == "key":
        del other["weights"]["b"]
    assert len(kill.unequal(state, other, "state")) == 1
