"""The benchmark of training runs, compares steps of equal sizes, and both sides do learn."""

import importlib.util
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "train.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_train", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CLIP, module.N_CODES, module.CODE_DIM, module.RES_LAYERS = (4, 16, 16), 32, 8, 1
    return module


@pytest.mark.parametrize("what", [12, "vqvae"])
def test_it_measures_three_steps_of_one_size(bench, what):
    row = bench.measure(what, layers=2, batch=2, width=8, repeats=1)
    assert set(row["median_s"]) == {"original", "paper", "modern"}
    assert row["ratio"]["original"] == 1
    assert row["ratio"]["modern"] == pytest.approx(row["median_s"]["original"] / row["median_s"]["modern"])
    assert all(0 < sum(shares.values()) <= 1.01 for shares in row["profile"].values())
    assert row["flops_per_clip"]["train"] > 2 * row["flops_per_clip"]["forward"]


def test_the_papers_gpt_does_what_the_original_does(bench):
    steps, _ = bench.gpt_steps(12, 2, 2, 8)
    cells = {name: dict(zip(step.__code__.co_freevars, step.__closure__, strict=True)) for name, step in steps.items()}
    models = {name: cell["model"].cell_contents for name, cell in cells.items()}
    sizes = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}
    assert sizes["original"] == sizes["paper"]
    losses = {name: cell["loss_of"].cell_contents for name, cell in cells.items()}
    for name in steps:
        torch.manual_seed(0)
        first = losses[name]().item()
        for _ in range(12):
            steps[name]()
        assert losses[name]().item() < first, name
