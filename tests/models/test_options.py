"""Every choice of the GPT, against its definition in float64 or in plain torch."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.causal import CausalSelfAttention, CrossAttention, Reach
from vidbrain.models.gpt import GPT, Condition, GPTConfig
from vidbrain.models.norms import NORMS
from vidbrain.models.positions import Rotary, thirds
from vidbrain.models.presets import MODERN_GPT, PAPER_GPT, preset_of

GRID = (3, 2, 4)
STUDY = {"block": "study", "norm": "study", "positions": "thirds", "embedding": "codebook"}
KINDS = [
    {},
    {"attention": "axial"},
    {"attention": "window", "window": 1},
    {"attention": "window", "window": 0},
    {"positions": "rotary"},
    {"positions": "rotary", "attention": "axial", "norm": "layer"},
    {"positions": "rotary", "attention": "window", "parametrization": "mup", "base_hidden": 36},
    STUDY,
    STUDY | {"condition": "previous", "condition_width": 6, "reader": "study"},
    {"condition": "previous", "condition_width": 6},
    {"condition": "actions"},
]
NAMES = [" ".join(f"{k}={v}" for k, v in kind.items()) or "default" for kind in KINDS]


def lively(**settings):
    """A small float64 GPT whose zero-initialised weights are random, so that every path counts."""
    torch.manual_seed(0)
    config = GPTConfig(**{"hidden": 24, "n_layers": 4, "n_heads": 2} | settings)
    model = GPT(
        config,
        n_codes=9,
        grid=GRID,
        code_dim=5 if config.embedding == "codebook" else None,
        actions=("A", "B") if config.condition == "actions" else (),
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    if config.embedding == "codebook":
        model.set_codebook(torch.randn(9, 5))
    return model.double().eval()


def codes(batch=2, seed=1):
    return torch.randint(9, (batch, *GRID), generator=torch.Generator().manual_seed(seed))


def told(model, seed=2):
    kind = model.config.condition
    if kind == "previous":
        return Condition(previous=codes(seed=seed))
    pressed = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Condition(actions=pressed) if kind == "actions" else None


def sees(reach, i, j):
    """Whether token i may attend to token j, from the definition."""
    places = list(itertools.product(*(range(n) for n in reach.grid)))
    a, b = places[i], places[j]
    if reach.kind == "axial":
        return j <= i and all(a[k] == b[k] for k in range(3) if k != reach.axis)
    if reach.kind == "window":
        return j <= i and b[0] >= a[0] - reach.window
    return j <= i


REACHES = [Reach(GRID), *(Reach(GRID, "axial", axis) for axis in range(3))]
REACHES += [Reach(GRID, "window", window=n) for n in (0, 1, 2, 5)]


@pytest.mark.parametrize("reach", REACHES, ids=lambda r: f"{r.kind}-{r.axis}-{r.window}")
def test_attention_is_masked_softmax(reach):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 24, 5, dtype=torch.float64) for _ in range(3))
    mask = torch.tensor([[sees(reach, i, j) for j in range(24)] for i in range(24)])
    scores = (q @ k.mT * 0.7).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(reach.attend(q, k, v, dropout=0.0, scale=0.7), scores.softmax(-1) @ v)
    for i in range(24):
        assert torch.arange(24)[reach.visible(i)].tolist() == mask[i].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_no_position_sees_its_own_code_or_a_later_one(kind):
    model, x = lively(**kind), codes()
    before = model.logits(x, told(model)).flatten(1, 3)
    for position in (0, 7, 23):
        changed = x.flatten(1).clone()
        changed[:, position] = (changed[:, position] + 1) % 9
        after = model.logits(changed.unflatten(1, GRID), told(model)).flatten(1, 3)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1])
        if position < 23:
            assert not torch.allclose(after[:, position + 1], before[:, position + 1])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("given", [0, 1])
def test_sampling_with_kept_keys_equals_sampling_without(kind, given):
    model, chance = lively(**kind), torch.Generator().manual_seed(5)
    prompt = codes()[:, :given]
    found = model.sample(prompt, condition=told(model), generator=chance, temperature=0.7)
    chance = torch.Generator().manual_seed(5)
    tokens = torch.zeros(2, 24, dtype=torch.int64)
    tokens[:, : given * 8] = prompt.flatten(1)
    for i in range(given * 8, 24):
        scores = model.logits(tokens.unflatten(1, GRID), told(model)).flatten(1, 3)[:, i] / 0.7
        tokens[:, i] = torch.multinomial(scores.softmax(-1), 1, generator=chance)[:, 0]
    torch.testing.assert_close(found.flatten(1), tokens, rtol=0, atol=0)


@pytest.mark.parametrize("condition", ["previous", "actions"])
def test_what_is_told_changes_what_is_predicted(condition):
    model = lively(condition=condition, condition_width=6)
    logits = [model.logits(codes(), told(model, seed)) for seed in (2, 3)]
    assert not torch.allclose(*logits)
    with pytest.raises(ModelError, match=f"condition is {condition}, and {condition} is absent"):
        model.logits(codes())
    with pytest.raises(ModelError, match="condition is none"):
        lively().logits(codes(), told(model))


def test_buttons_of_a_slice_reach_that_slice_and_later_ones_only():
    model = lively(condition="actions")
    pressed = torch.zeros(2, 3, 2, dtype=torch.float64)
    before = model.logits(codes(), Condition(actions=pressed))
    pressed = pressed.clone()
    pressed[:, 1, 0] = 1.0
    after = model.logits(codes(), Condition(actions=pressed))
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.isclose(after[:, 1:], before[:, 1:]).all(-1).any()


@pytest.mark.parametrize("dim", [6, 7, 18, 31])
def test_rotary_scores_depend_on_distances_alone(dim):
    torch.manual_seed(0)
    grid = (3, 4, 5)
    rotary = Rotary(dim, grid).double()
    q, k = torch.randn(dim, dtype=torch.float64), torch.randn(dim, dtype=torch.float64)
    turned = [rotary(x.expand(1, 1, 60, dim))[0, 0] for x in (q, k)]
    torch.testing.assert_close(turned[0].norm(dim=1), q.norm().expand(60))
    scores = turned[0] @ turned[1].T
    found = {}
    places = list(itertools.product(*(range(n) for n in grid)))
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        found.setdefault(tuple(x - y for x, y in zip(a, b, strict=True)), []).append(float(scores[i, j]))
    assert all(max(same) - min(same) < 1e-5 for same in found.values())
    assert np.ptp([np.mean(same) for same in found.values()]) > 0.1  # and they do depend on them
    one = rotary(q.expand(1, 1, 1, dim), at=17)[0, 0, 0]
    torch.testing.assert_close(one, turned[0][17])


def test_thirds_stand_side_by_side():
    tables = [torch.randn(n, 2) for n in GRID]
    found = thirds(tables).reshape(*GRID, 6)
    for t, h, w in itertools.product(*(range(n) for n in GRID)):
        torch.testing.assert_close(found[t, h, w], torch.cat([tables[0][t], tables[1][h], tables[2][w]]))


def test_norms_are_those_of_torch_and_of_videogpt():
    x = torch.randn(5, 12) * 3 + 1
    torch.testing.assert_close(NORMS["layer"](12)(x), torch.nn.LayerNorm(12)(x))
    torch.testing.assert_close(NORMS["rms"](12)(x), torch.nn.RMSNorm(12, eps=1e-6)(x))
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    torch.testing.assert_close(NORMS["study"](12)(x), (x - mean) * (1e-5 + 1 / var.sqrt()))
    assert NORMS["study"](12)(torch.ones(1, 12)).isnan().all()
    assert not NORMS["layer"](12)(torch.ones(1, 12)).isnan().any()


def test_heads_with_a_width_of_their_own_are_multi_head_attention():
    torch.manual_seed(0)
    layer = CausalSelfAttention(10, 3, 4, reach=Reach(GRID), qk_norm=False, bias=True)
    x = torch.randn(2, 24, 10)
    q, k, v = (x @ part.T for part in layer.qkv.weight.chunk(3))
    heads = [
        functional.scaled_dot_product_attention(*(p[..., 4 * n : 4 * n + 4] for p in (q, k, v)), is_causal=True)
        for n in range(3)
    ]
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


def test_cross_attention_is_multi_head_attention():
    torch.manual_seed(0)
    layer = CrossAttention(8, 2, 4, 6, value_dim=3)
    x, context = torch.randn(2, 5, 8), torch.randn(2, 7, 6)
    heads = []
    for n in range(2):
        q, k = x @ layer.q.weight[4 * n : 4 * n + 4].T, context @ layer.k.weight[4 * n : 4 * n + 4].T
        heads.append((q @ k.mT / 2).softmax(-1) @ (context @ layer.v.weight[3 * n : 3 * n + 3].T))
    torch.testing.assert_close(layer(x, context), layer.out(torch.cat(heads, -1)))


def n_parameters(**settings):
    config = GPTConfig(**{name: getattr(PAPER_GPT, name) for name in PAPER_GPT.__dict__} | settings)
    return sum(p.numel() for p in GPT(config, n_codes=1024, grid=(4, 8, 8), code_dim=128).parameters())


def test_the_papers_gpt_has_the_published_number_of_parameters():
    assert n_parameters() / 1e6 == pytest.approx(40.3, abs=0.05)
    assert n_parameters(n_layers=1) / 1e6 == pytest.approx(7.7, abs=0.05)
    assert n_parameters(hidden=126, head_dim=31) / 1e6 == pytest.approx(5.2, abs=0.05)


@pytest.mark.parametrize("width", [6, 15, 30, 63, 126, 255, 576, 1024])
def test_every_width_takes_every_number_of_heads(width):
    for heads in range(1, 9):
        if width % heads:
            with pytest.raises(ModelError, match="do not divide"):
                GPTConfig(hidden=width, n_heads=heads)
        config = GPTConfig(hidden=width, n_heads=heads, head_dim=max(1, width // heads), n_layers=1)
        model = GPT(config, n_codes=5, grid=(1, 1, 2))
        assert model.blocks[0].attention.qkv.out_features == 3 * heads * config.d_head
        assert math.isfinite(model(torch.ones(1, 1, 1, 2)).item())


def test_presets_are_kept_apart():
    assert preset_of(PAPER_GPT) == "paper"
    assert preset_of(MODERN_GPT) == "modern"
    assert preset_of(GPTConfig(hidden=30, n_heads=2, n_layers=3)) == "modern"
    assert preset_of(GPTConfig(norm="layer")) == "mixed"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hidden": 64, "positions": "thirds"}, "3 divides, not 64"),
        ({"hidden": 30, "n_heads": 6, "positions": "rotary"}, "at least 6 channels, not 5"),
        ({"head_dim": 0}, "positive n_heads and head_dim"),
        ({"n_heads": 0}, "positive n_heads"),
        ({"window": -1}, "window must be at least 0"),
        ({"attention_dropout": 1.0}, "attention_dropout is a share"),
        ({"condition": "previous", "condition_width": 241}, "do not divide a condition_width"),
        ({"condition": "previous", "condition_width": 8, "reader": "study"}, "that 3 divides, not 8"),
        ({"condition": "frames"}, "frames have VideoGPT's readers"),
        ({"embedding": "codebook"}, "need"),
        ({"condition": "actions"}, "needs their names"),
    ],
)
def test_impossible_choices_are_refused(settings, says):
    with pytest.raises((ConfigError, ModelError), match=says):
        GPT(GPTConfig(**settings), n_codes=5, grid=GRID)


def test_a_codebook_of_another_tokenizer_is_refused():
    model = lively(**STUDY)
    with pytest.raises(ModelError, match="another tokenizer"):
        model.set_codebook(torch.randn(9, 6))
