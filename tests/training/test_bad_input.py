"""Input that a training cannot take: refused before work where it can be known, with what, where and what next."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.numpy import load_file, save_file

from vidbrain.errors import ConfigError, ModelError, ResumeError
from vidbrain.features.activations import open_model
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.training.gpt import train_gpt
from vidbrain.training.precision import resolve
from vidbrain.training.samples import SamplesConfig
from vidbrain.training.tokenize import TokenizeConfig, tokenize
from vidbrain.training.vqvae import train_vqvae
from vidbrain.training.world import pick_device


@pytest.fixture(scope="module")
def other_codes(shards, vqvae, vqvae_config, tmp_path_factory):
    """Codes of another tokenizer: the same shape, other weights."""
    root = tmp_path_factory.mktemp("other")
    train_vqvae(shards, root / "vqvae", replace(vqvae_config, seed=1, steps=1))
    tokenize(shards, root / "vqvae", root / "codes", TokenizeConfig(stride=4, batch_size=16))
    return root / "codes"


def test_clips_of_another_shape_are_refused_by_the_gpt():
    model = GPT(GPTConfig(hidden=8, n_layers=1, n_heads=1), n_codes=4, grid=(2, 2, 2))
    with pytest.raises(ModelError, match=r"reads clips of \(2, 2, 2\) codes, not \(2, 4, 4\)") as caught:
        model(torch.zeros(1, 2, 4, 4, dtype=torch.int32))
    assert "other clips" in caught.value.likely


def test_codes_of_another_tokenizer_do_not_go_on_with_a_training(
    codes, other_codes, gpt_config, tmp_path, stop_at, stop
):
    with pytest.raises(stop):
        train_gpt(codes, tmp_path, gpt_config, progress=stop_at(4))
    with pytest.raises(ResumeError, match=r"codes was .*; vqvae was") as caught:
        train_gpt(other_codes, tmp_path, gpt_config)
    assert "another output" in caught.value.hint


def test_codes_beyond_those_of_the_record_are_refused(codes, gpt_config, tmp_path):
    shutil.copytree(codes, tmp_path / "codes")
    path = tmp_path / "codes" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_codes": 3}))
    with pytest.raises(ModelError, match=r"the codes go up to \d+, their record says 3 codes") as caught:
        train_gpt(tmp_path / "codes", tmp_path / "run", gpt_config)
    assert "tokenize again" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_shape_is_refused(codes, gpt_config, tmp_path, stop_at, stop):
    with pytest.raises(stop):
        train_gpt(codes, tmp_path, gpt_config, progress=stop_at(10))
    path = tmp_path / "checkpoints" / "step-00000008" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"start": tensors["start"][:4]}, path)
    with pytest.raises(ModelError, match="the weights do not fit the model") as caught:
        train_gpt(codes, tmp_path, gpt_config)
    assert "start" in caught.value.message
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_a_gpu_that_lacks_a_precision_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    with pytest.raises(ConfigError, match=f"Tesla V100 has no {name}") as caught:
        resolve(name, torch.device("cuda"))
    assert caught.value.hint == "use fp16 or fp32"
    assert resolve("fp16", torch.device("cuda")).name == "fp16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no GPU that torch can use") as caught:
        pick_device("cuda")
    assert "--device cpu" in caught.value.hint


@pytest.mark.parametrize("name", ["meta", "mps", "cpu:x", "xla"])
def test_other_devices_are_refused(name):
    with pytest.raises(ConfigError, match="unknown device") as caught:
        pick_device(name)
    assert caught.value.hint == "use auto, cpu or cuda"


@pytest.mark.parametrize("seed", [-1, 2**63, 10**20])
def test_seeds_that_generators_do_not_take_are_refused(gpt_config, tmp_path, seed):
    for refused in (
        lambda: replace(gpt_config, seed=seed),
        lambda: SamplesConfig(seed=seed),
        lambda: open_model("untrained", vqvae=tmp_path, gpt=None, frame_size=(8, 8), seed=seed),
    ):
        with pytest.raises(ConfigError, match=r"between 0 and 2\^63 - 1"):
            refused()
