import json

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
