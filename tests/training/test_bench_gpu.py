"""The benchmark for GPUs, rehearsed on the CPU; it says so where there is none."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "gpu.py"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rehearsal_fills_every_row_or_says_why_not(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CLIP", (4, 32, 32))
    monkeypatch.setattr(bench, "N_CODES", 16)
    monkeypatch.setattr(bench, "GRID", (2, 2, 2))
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--only", "widths", "vqvae", "--hidden", "6", "--batch", "1"]
    words += ["--width", "8", "--seconds", "0.01", "--precision", "fp32", "tf32", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    assert bench.main() == 0
    record = json.loads(out.read_text())
    assert record["device"] == "cpu"
    assert [(row["what"], row["precision"]) for row in record["rows"]] == [
        (what, arm) for what in ("hidden 6", "vqvae") for arm in ("fp32", "tf32")
    ]
    for row in record["rows"]:
        if row["precision"] == "tf32":
            assert row["reason"] == "tf32 is a number format of GPUs"
            continue
        assert row["clips_per_s"] == pytest.approx(row["steps"] * row["batch"] / row["seconds"])
        assert row["mfu_causal"] is None
        assert row["mfu_reason"]
    assert "clips/s" in capsys.readouterr().out


def test_shapes_are_those_of_the_sweep(bench):
    names = [name for name, _ in bench.cells(bench.HIDDEN, ["widths", "layers", "heads"])]
    assert names[:5] == [f"hidden {n}" for n in (6, 30, 126, 576, 1024)]
    assert len(names) == 14


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert bench.main() == 1
    assert "there is no GPU" in capsys.readouterr().out
