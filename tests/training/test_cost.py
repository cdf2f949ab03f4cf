"""What a training says of its cost, and what it refuses because it does not fit."""

import json
import sys
import types

import pytest
import torch

from vidbrain.errors import ModelError
from vidbrain.models.flops import count_vqvae, vqvae_flops
from vidbrain.models.pretrained import load_vqvae
from vidbrain.training import cost, precision
from vidbrain.training.cost import ClipCost, CostMeter, peak_of, ran_out, room_of
from vidbrain.training.energy import EnergyMeter

CPU = torch.device("cpu")
CLIP = ClipCost(forward=100, forward_causal=80, train=290, saved_bytes=1000, tokens=64)


def test_the_summary_says_what_a_training_cost(vqvae, vqvae_config):
    summary = json.loads((vqvae / "summary.json").read_text())
    found = summary["cost"]
    clip = (8, 32, 32)
    flops, counted = vqvae_flops(vqvae_config.model, clip), count_vqvae(load_vqvae(vqvae), clip)
    assert found["flops_per_clip"] == {
        "forward": flops.dense,
        "forward_causal": flops.causal,
        "train_counted": counted.train,
        "train_causal": counted.train,
    }
    assert found["clips"] == 12 * 8
    assert found["flops_causal"] == 96 * counted.train
    assert found["tokens_per_s"] == pytest.approx(64 * found["clips_per_s"], abs=0.1)
    assert found["mfu_causal"] is None
    assert found["mfu_reason"] == "the peak of a CPU is not stated"
    assert found["peak_memory_bytes"] > 1e8
    assert (found["energy_j"] is None) == (found["energy_reason"] is not None)
    assert 0 <= summary["precision_error"] < 1e-5


def test_causal_operations_of_training_leave_out_what_is_masked_three_times():
    assert CLIP.train_causal == 290 - 3 * 20


def test_mfu_is_causal_operations_by_the_stated_peak(monkeypatch):
    monkeypatch.setattr(cost, "peak_of", lambda *_: (1e6, None))
    found = CostMeter(CPU, "bf16", CLIP).report(clips=10, clips_per_s=500.0, stall_share=0.0, processes=2)
    assert found["mfu_causal"] == pytest.approx(500 * 230 / 2e6)
    assert found["flops_causal"] == 2300
    assert peak_of(CPU, "bf16") == (None, "the peak of a CPU is not stated")


def rapl(root, name, used, limit):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{used}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")


def test_energy_of_cpu_packages_adds_up_and_begins_again_at_0(tmp_path):
    rapl(tmp_path, "intel-rapl:0", 1_000_000, 9_999_999)
    rapl(tmp_path, "intel-rapl:1", 9_000_000, 9_999_999)
    rapl(tmp_path, "intel-rapl:0:0", 0, 9_999_999)  # a part of package 0
    meter = EnergyMeter(CPU, powercap=tmp_path)
    rapl(tmp_path, "intel-rapl:0", 3_000_000, 9_999_999)
    rapl(tmp_path, "intel-rapl:1", 500_000, 9_999_999)
    rapl(tmp_path, "intel-rapl:0:0", 5_000_000, 9_999_999)
    assert meter.report() == {"energy_j": 3.5, "energy_of": "CPU packages (RAPL)", "energy_reason": None}


def test_energy_that_cannot_be_read_is_null_with_the_reason(tmp_path):
    assert "no RAPL counters" in EnergyMeter(CPU, powercap=tmp_path).report()["energy_reason"]
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir(parents=True)
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("1")
    found = EnergyMeter(CPU, powercap=tmp_path).report()
    assert found["energy_j"] is None
    assert "directory" in found["energy_reason"]


def test_energy_of_a_gpu_is_the_difference_of_its_counter(monkeypatch):
    counter = [5000]
    nvml = types.SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: counter[0],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="1"))
    meter = EnergyMeter(torch.device("cuda"))
    counter[0] = 12_500
    assert meter.report()["energy_j"] == 7.5
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter(torch.device("cuda")).report()["energy_reason"] == "nvidia-ml-py is not installed"


def test_room_is_what_the_machine_says():
    assert room_of(CPU, 10, CLIP).free_bytes > 1e7
    assert room_of(CPU, 10, CLIP).state_bytes == 160


def test_memory_that_runs_out_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    assert ran_out(caught.value)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_arms_pass_their_test_on_this_device(name):
    before = torch.get_rng_state()
    error = precision.self_test(precision.resolve(name, CPU))
    assert 0 < error < precision.TOLERANCE[name]
    if name != "fp32":
        assert error > 1e-4  # it did run in 16 bits
    assert torch.equal(torch.get_rng_state(), before)


def test_an_arm_that_computes_wrongly_is_refused(monkeypatch):
    right = torch.nn.functional.conv3d
    monkeypatch.setattr(
        precision.F, "conv3d", lambda x, *a, **k: right(x, *a, **k) * (1.0 if x.dtype == torch.float64 else 1.2)
    )
    with pytest.raises(ModelError, match="bf16 on cpu errs by"):
        precision.self_test(precision.resolve("bf16", CPU))
