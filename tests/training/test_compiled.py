"""torch.compile, really, by the compiler of this machine: the same training, the same names; a clear error without."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from vidbrain.errors import ConfigError
from vidbrain.models.gpt import GPTConfig
from vidbrain.models.pretrained import load_gpt
from vidbrain.training import compiled
from vidbrain.training.compiled import compile_error
from vidbrain.training.gpt import train_gpt
from vidbrain.training.vqvae import train_vqvae

CPU = torch.device("cpu")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing is compiled yet, and nothing stays."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses(root):
    return [row["loss"] for row in map(json.loads, (root / "metrics.jsonl").read_text().splitlines())]


def same_names_and_nearly_the_same(one, other):
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-3, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(losses(one), losses(other), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_gpt_trains_as_the_plain_one_and_they_take_turns(codes, gpt_config, tmp_path, fresh, stop_at, stop):
    config = replace(
        gpt_config,
        model=GPTConfig(hidden=16, n_layers=1, n_heads=2),
        steps=6,
        log_every=1,
        eval_every=100,
        checkpoint_every=3,
    )
    plain = train_gpt(codes, tmp_path / "plain", config)
    with pytest.raises(stop):
        train_gpt(codes, tmp_path / "compiled", replace(config, compile="default"), progress=stop_at(5))
    mixed = train_gpt(codes, tmp_path / "compiled", replace(config, compile="default"))
    assert (plain["compile"], mixed["compile"]) == ("off", "default")
    same_names_and_nearly_the_same(tmp_path / "plain", tmp_path / "compiled")
    load_gpt(tmp_path / "compiled" / "best")


# Of torch about tensors between two graphs, which nobody here asks for a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_captured_vqvae_in_parts_trains_as_the_plain_one(shards, vqvae_config, tmp_path, monkeypatch, fresh):
    # Captured with its gradient and not handed to a compiler: what breaks up the graph is the same, in seconds.
    honest = torch.compile
    monkeypatch.setattr(compiled, "check", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda model, mode, **words: honest(model, backend="aot_eager", **words))
    config = replace(vqvae_config, steps=4, log_every=1, eval_every=100, eval_clips=4, micro_batch_size=4)
    train_vqvae(shards, tmp_path / "plain", config)
    train_vqvae(shards, tmp_path / "captured", replace(config, compile="default"))
    same_names_and_nearly_the_same(tmp_path / "plain", tmp_path / "captured")


def test_a_machine_without_a_compiler_says_so_before_work(codes, gpt_config, tmp_path, fresh):
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ConfigError) as caught:
        train_gpt(codes, tmp_path / "run", replace(gpt_config, compile="default"))
    assert "torch.compile does not work here" in caught.value.message
    assert "g++" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_cuda_graphs_without_a_gpu_are_refused(codes, gpt_config, tmp_path):
    with pytest.raises(ConfigError, match="CUDA graphs need a GPU"):
        train_gpt(codes, tmp_path / "run", replace(gpt_config, compile="reduce-overhead"), device="cpu")
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_compiler_is_told_from_others():
    from torch._dynamo.exc import Unsupported

    error = compile_error(Unsupported("cannot trace this\nfrom user code", "gb"))
    assert error is not None
    assert "cannot trace this" in error.message
    assert "--compile" in error.hint
    assert compile_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_cuda_graphs_train_as_the_plain_step(codes, gpt_config, tmp_path, fresh):
    config = replace(gpt_config, steps=10, log_every=1, precision="fp32")
    train_gpt(codes, tmp_path / "plain", config)
    train_gpt(codes, tmp_path / "graphs", replace(config, compile="reduce-overhead"))
    same_names_and_nearly_the_same(tmp_path / "plain", tmp_path / "graphs")
    with pytest.raises(ConfigError, match="not in parts"):
        train_gpt(codes, tmp_path / "parts", replace(config, compile="reduce-overhead", micro_batch_size=2))
