import math

import pytest
import torch

from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.gpt import GPT, GPTConfig

GRID = (3, 2, 4)


def lively(seed=0, **settings):
    """A small GPT whose zero-initialised weights are random, so that every path counts."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{"hidden": 12, "n_layers": 3, "n_heads": 2} | settings), n_codes=9, grid=GRID).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def codes(batch=2, seed=1):
    return torch.randint(9, (batch, *GRID), generator=torch.Generator().manual_seed(seed))


def test_fresh_model_guesses_uniformly():
    model = GPT(GPTConfig(hidden=12, n_layers=1, n_heads=3), n_codes=9, grid=GRID)
    assert model(codes()).item() == pytest.approx(math.log(9), rel=1e-5)


def test_no_position_sees_its_own_code_or_a_later_one():
    model, x = lively(), codes()
    before = model.logits(x).flatten(1, 3)
    for position in (0, 7, 23):
        changed = x.flatten(1).clone()
        changed[:, position] = (changed[:, position] + 1) % 9
        after = model.logits(changed.unflatten(1, GRID)).flatten(1, 3)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1])
        if position < 23:
            assert not torch.allclose(after[:, position + 1 :], before[:, position + 1 :])


def test_loss_is_the_mean_surprise_of_the_codes():
    model, x = lively(), codes()
    surprise = -model.logits(x).log_softmax(-1).gather(-1, x[..., None])
    torch.testing.assert_close(model(x), surprise.mean())


def test_sampling_with_kept_keys_equals_sampling_without():
    model = lively()
    prompt = codes()[:, :1]
    chance = torch.Generator().manual_seed(5)
    found = model.sample(prompt, generator=chance, temperature=0.7)
    torch.testing.assert_close(found[:, :1], prompt)
    chance = torch.Generator().manual_seed(5)
    tokens = torch.zeros(2, 24, dtype=torch.int64)
    tokens[:, :8] = prompt.flatten(1)
    for i in range(8, 24):
        scores = model.logits(tokens.unflatten(1, GRID)).flatten(1, 3)[:, i] / 0.7
        tokens[:, i] = torch.multinomial(scores.softmax(-1), 1, generator=chance)[:, 0]
    torch.testing.assert_close(found.flatten(1), tokens)


def test_sampling_from_nothing_and_greedily():
    model = lively()
    found = model.sample(codes()[:, :0], top_k=1)
    best = model.logits(found).argmax(-1)
    torch.testing.assert_close(found, best)


def test_hidden_states_are_the_stream_between_blocks():
    model, x = lively(), codes()
    found = model.hidden_states(x, ["gpt.block_2", "gpt.block_0", "gpt.block_2.mlp", "gpt.block_1"])
    assert list(found) == ["gpt.block_2", "gpt.block_0", "gpt.block_2.mlp", "gpt.block_1"]
    assert found["gpt.block_0"].shape == (2, *GRID, 12)
    seen = {}
    for k, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _m, _i, out, k=k: seen.__setitem__(k, out[0]))
    logits = model.logits(x)
    for k in range(3):
        torch.testing.assert_close(found[f"gpt.block_{k}"].flatten(1, 3), seen[k])
    torch.testing.assert_close(model.head(model.norm(found["gpt.block_2"])), logits)


def test_hidden_states_stop_after_the_deepest_layer():
    model = lively()
    model.blocks[2].register_forward_hook(lambda *_: pytest.fail("block 2 was not asked for"))
    model.hidden_states(codes(), ["gpt.block_1"])


@pytest.mark.parametrize("width", [64, 126, 1024])
def test_any_width_takes_positions(width):
    # VideoGPT refuses widths that three does not divide.
    GPT(GPTConfig(hidden=width, n_layers=1, n_heads=2), n_codes=5, grid=GRID)(codes() % 5)


def test_bad_input():
    with pytest.raises(ModelError, match="4 heads do not divide a width of 126"):
        GPTConfig(hidden=126, n_heads=4)
    with pytest.raises(ConfigError):
        GPTConfig(n_layers=0)
    with pytest.raises(ModelError, match=r"did you mean 'gpt.block_1'"):
        lively().hidden_states(codes(), ["gpt.blok_1"])
    with pytest.raises(ModelError, match=r"\(3, 2, 4\) codes, not \(2, 2, 4\)"):
        lively()(codes()[:, :2])
