"""The shipped recipes are the presets."""

from importlib.resources import files

import pytest

from vidbrain.config import from_mapping, read_toml
from vidbrain.models.presets import PAPER_GPT, PAPER_VQVAE, preset_of
from vidbrain.training.gpt import GPTTrainConfig
from vidbrain.training.tokenize import TokenizeConfig
from vidbrain.training.vqvae import VQVAETrainConfig


@pytest.mark.parametrize("name", ["paper", "modern"])
def test_recipes_are_the_presets(name):
    path = files("vidbrain") / "recipes" / f"{name}.toml"
    tables = read_toml(path)
    vqvae = from_mapping(VQVAETrainConfig, tables["vqvae"], path)
    gpt = from_mapping(GPTTrainConfig, tables["gpt"], path)
    from_mapping(TokenizeConfig, tables["tokenize"], path)
    assert (preset_of(vqvae.model), preset_of(gpt.model)) == (name, name)
    assert vqvae.model.latent_grid(16, 128, 128) == (4, 8, 8)
    if name == "paper":
        assert (vqvae.model, gpt.model) == (PAPER_VQVAE, PAPER_GPT)
        assert (gpt.lr, gpt.betas, gpt.batch_size, gpt.seed, gpt.precision) == (3e-4, (0.9, 0.999), 64, 1234, "fp16")
