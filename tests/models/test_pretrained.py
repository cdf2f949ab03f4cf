import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidbrain.errors import ConfigError, ModelError, StorageError
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.pretrained import load_gpt, load_vqvae, save_pretrained, untrained_like
from vidbrain.models.vqvae import VQVAE, VQVAEConfig

VIDEO = torch.randint(256, (2, 2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vqvae(tmp_path):
    torch.manual_seed(3)
    model = VQVAE(VQVAEConfig(downsample=(1, 4, 4), n_hidden=8, n_res_layers=1, n_codes=6, code_dim=4)).train()
    model(VIDEO)
    save_pretrained(model, tmp_path / "vqvae")
    return model.eval(), tmp_path / "vqvae"


@pytest.fixture
def gpt(tmp_path):
    model = GPT(GPTConfig(hidden=8, n_layers=2, n_heads=2), n_codes=6, grid=(2, 2, 2)).eval()
    save_pretrained(model, tmp_path / "gpt")
    return model, tmp_path / "gpt"


def test_models_come_back_as_they_were(vqvae, gpt):
    model, folder = vqvae
    loaded = load_vqvae(folder)
    assert loaded.config == model.config
    assert bool(loaded.codebook.ready)  # VideoGPT starts the codebook again after loading
    torch.testing.assert_close(loaded.encode(VIDEO), model.encode(VIDEO))
    model, folder = gpt
    codes = torch.randint(6, (2, 2, 2, 2))
    torch.testing.assert_close(load_gpt(folder).logits(codes), model.logits(codes))
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())


def test_untrained_control_shares_the_shape_and_not_the_weights(vqvae, gpt):
    model, folder = vqvae
    control = untrained_like(folder, 0)
    assert control.config == model.config
    torch.testing.assert_close(control.pixel_mean, model.pixel_mean)
    assert not torch.equal(control.codebook.embeddings, model.codebook.embeddings)
    for seed, same in ((0, True), (1, False)):
        again = untrained_like(folder, seed)
        assert torch.equal(again.encode_features(VIDEO), control.encode_features(VIDEO)) is same
    control = untrained_like(gpt[1], 0)
    assert all(weight.any() for weight in control.parameters())


def test_what_is_not_there_or_does_not_fit_is_refused(vqvae, gpt, tmp_path):
    with pytest.raises(StorageError):
        load_vqvae(tmp_path / "nothing")
    with pytest.raises(ModelError, match="expected a vqvae, found 'gpt'"):
        load_vqvae(gpt[1])
    config = json.loads((vqvae[1] / "config.json").read_text())
    (vqvae[1] / "config.json").write_text(json.dumps(config | {"n_codes": 7}))
    with pytest.raises(ModelError, match="do not fit"):
        load_vqvae(vqvae[1])
    (vqvae[1] / "config.json").write_text(json.dumps(config | {"n_kodes": 7}))
    with pytest.raises(ConfigError, match="n_codes"):
        load_vqvae(vqvae[1])


def test_damaged_weights_are_refused(vqvae):
    path = vqvae[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot be read"):
        load_vqvae(vqvae[1])


@pytest.mark.parametrize("setting", ["n_hidden", "n_res_layers", "code_dim"])
def test_a_config_of_absurd_size_is_refused_before_anything_is_built(vqvae, setting):
    path = vqvae[1] / "config.json"
    record = json.loads(path.read_text())
    holder = record if setting in record else next(v for v in record.values() if isinstance(v, dict) and setting in v)
    holder[setting] = 10**7
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="beyond 256 layers"):
        load_vqvae(vqvae[1])
    with pytest.raises(ConfigError, match="beyond 1024 layers"):
        GPTConfig(n_layers=10**7)


HOSTILE = [
    ("gpt", {"grid": [-1, 2, 2]}),
    ("gpt", {"grid": [float("inf"), 4, 4]}),
    ("gpt", {"grid": [2**40, 2, 2]}),
    ("gpt", {"n_codes": 10**12}),
    ("gpt", {"n_codes": -1}),
    ("gpt", {"n_codes": 0}),
    ("gpt", {"code_dim": 10**12}),
    ("gpt", {"condition_width": 3 * 10**9}),
    ("gpt", {"hidden": 16_384, "n_layers": 8}),
    ("gpt", {"n_heads": 2**50, "head_dim": 16_384}),
    ("gpt", {"actions": 5}),
    ("vqvae", {"downsample": [2**60, 8, 8]}),
    ("vqvae", {"downsample": [4, 2**20, 2**20]}),
    ("vqvae", {"n_codes": 0}),
    ("vqvae", {"commitment": float("nan")}),
    ("vqvae", {"codebook_decay": float("inf")}),
]


@pytest.mark.parametrize(("kind", "change"), HOSTILE, ids=str)
def test_a_hostile_config_is_refused_before_memory_is_taken(request, kind, change):
    folder = request.getfixturevalue(kind)[1]
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    load = load_gpt if kind == "gpt" else load_vqvae
    for attempt in (load, lambda root: untrained_like(root, 0)):
        with pytest.raises((ConfigError, ModelError)) as caught:
            attempt(folder)
        assert str(folder) in caught.value.where
        assert next(iter(change)).split("_")[-1] in str(caught.value) or re.search(
            r"do not fit|no model has this shape", caught.value.message
        )


def test_weights_that_are_a_folder_are_named(vqvae):
    path = vqvae[1] / "model.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_vqvae(vqvae[1])
    assert caught.value.where == str(path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(vqvae, gpt, value):
    for folder, name, load in ((vqvae[1], "codebook.embeddings", load_vqvae), (gpt[1], "start", load_gpt)):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors[name].view(-1)[-1] = value
        save_file(tensors, path)
        with pytest.raises(ModelError, match=f"not finite numbers: {name}\n") as caught:
            load(folder)
        assert caught.value.where == str(path)
