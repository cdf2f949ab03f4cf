import math
import resource
from functools import partial

import pytest
import torch

from vidbrain.errors import StorageError
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.training.checkpoint import Checkpoints, Metrics
from vidbrain.training.optim import adamw, lr_factor
from vidbrain.training.precision import Precision, resolve
from vidbrain.training.world import pick_device


def test_schedule_agrees_with_torchs_cosine_after_the_warm_up():
    assert [lr_factor(s, steps=50, warmup=4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=46, eta_min=0.02)
    for step in range(4, 50):
        assert lr_factor(step, steps=50, warmup=4) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert lr_factor(0, steps=1, warmup=0) == 1


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    groups = adamw(model, lr=1.0, weight_decay=0.1, betas=(0.9, 0.99)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]


def test_precision_runs_products_as_named_and_gives_settings_back():
    x = torch.randn(4, 4)
    before = torch.get_float32_matmul_precision()
    for name, dtype in (("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        arm = resolve(name, torch.device("cpu"))
        with arm.autocast():
            assert (x @ x).dtype == dtype
        assert not arm.scaler().is_enabled()
    assert resolve("fp16", torch.device("cpu")).scaler().is_enabled()
    assert torch.get_float32_matmul_precision() == before


def test_tf32_is_an_arm_of_its_own_and_covers_the_backward_pass():
    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = now()
    for name, expected in (("fp32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("highest", False))):
        arm = Precision(name, "cpu")
        seen = []
        x = torch.ones(2, requires_grad=True)
        x.register_hook(lambda _, seen=seen: seen.append(now()))
        with arm.products():
            with arm.autocast():
                assert now() == expected
                y = x.sum()
            y.backward()
        assert seen == [expected]
        assert now() == before


def test_metrics_forget_what_a_kill_cut_and_what_will_come_again(tmp_path):
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.append({"step": step, "split": "train", "loss": 1 / step})
    with metrics.path.open("a") as handle:
        handle.write('{"step": 4, "lo')
    assert [row["step"] for row in metrics.rows()] == [1, 2, 3]
    metrics.keep_until(2)
    kept = '{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2, "split": "train", "loss": 0.5}\n'
    assert metrics.path.read_text() == kept
    assert math.isclose(metrics.rows()[1]["loss"], 0.5)


def test_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("what", ["weights", "state", "metrics"])
def test_a_disk_that_takes_no_more_is_one_clear_error(tmp_path, what):
    torch.manual_seed(0)
    model = GPT(GPTConfig(hidden=16, n_layers=1, n_heads=2), n_codes=8, grid=(1, 2, 2))
    if what == "metrics":
        write = partial(Metrics(tmp_path).append, {"step": 1, "text": "x" * 200})
    else:
        write = partial(Checkpoints(tmp_path).save, 1, model, {"big": torch.zeros(1 << 19)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19 if what == "state" else 100, limits[1]))
    try:
        with pytest.raises(StorageError, match="a file may not be so large here"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Checkpoints(tmp_path).steps() == []
    assert not list(tmp_path.rglob("*.part-*"))


def test_a_second_process_that_resumes_leaves_what_the_first_is_writing(tmp_path):
    writing = tmp_path / "metrics.jsonl.part-0123456789ab"
    writing.touch()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load_last(GPT(GPTConfig(hidden=8, n_layers=1, n_heads=1), n_codes=8, grid=(1, 2, 2))) is None
    assert writing.exists()
    checkpoints.sweep()
    assert not writing.exists()
