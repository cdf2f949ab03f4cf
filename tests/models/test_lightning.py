"""Parity with VideoGPT's formulas on random weights, and its checkpoints read without running code."""

import importlib.util
from pathlib import Path

import pytest
import torch

from vidbrain.errors import ModelError
from vidbrain.models.gpt import Condition
from vidbrain.models.lightning import gpt_of, vqvae_of, vqvae_part
from vidbrain.models.vqvae import to_float

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "original.py"
DOWNSAMPLE = (2, 4, 4)


@pytest.fixture(scope="module")
def original():
    spec = importlib.util.spec_from_file_location("original", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomised(model, seed=0):
    """Random weights and statistics everywhere, also where training starts from zero; a GPT's tokenizer stays."""
    torch.manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.startswith("vqvae."):
            continue
        if name.endswith("running_var"):
            value.data.uniform_(0.5, 2.0)
        elif value.is_floating_point() and not name.endswith("mask"):
            value.data.normal_(std=0.5 if value.ndim < 2 else max(0.02, value[0].numel() ** -0.5))
    return model.eval()


def video(seed=0):
    return torch.randint(256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tokenizer(original, downsample):
    """A random VQ-VAE whose codes lie where its encoder's output does, so that many are used."""
    model = randomised(original.OriginalVQVAE(12, 2, downsample, 40, 6))
    with torch.no_grad():
        z = torch.cat([model.pre_vq_conv(model.encoder(to_float(video(seed)))) for seed in range(9, 12)])
        flat = z.movedim(1, -1).flatten(0, -2)
        model.codebook.embeddings.copy_(flat[torch.randint(len(flat), (40,))] + 0.1 * flat.std() * torch.randn(40, 6))
    return model


@pytest.fixture(scope="module")
def theirs(original):
    return tokenizer(original, DOWNSAMPLE)


@pytest.mark.parametrize("downsample", [(2, 4, 4), (4, 8, 8), (1, 2, 4), (2, 2, 2)])
def test_vqvae_gives_the_same_codes_and_pixels(original, downsample):
    theirs = tokenizer(original, downsample)
    ours = vqvae_of(theirs.state_dict(), downsample)
    clips = video()
    with torch.no_grad():
        vectors, codes = theirs.encode(to_float(clips))
        assert len(codes.unique()) > 3
        torch.testing.assert_close(ours.encode(clips), codes, rtol=0, atol=0)
        torch.testing.assert_close(ours.codebook.lookup(codes).movedim(-1, 1), vectors)
        pixels = theirs.decode(codes)
        found = ours.decoder(ours.codebook.lookup(codes).movedim(-1, 1))
        assert float((found - pixels).abs().max()) < 1e-4
        loss = theirs(to_float(clips))
        torch.testing.assert_close(ours(clips).loss, loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "heads"), [(12, 4), (18, 4), (6, 1), (30, 8)])
def test_gpt_gives_the_same_logits(original, theirs, width, heads):
    grid = (2, 4, 4)
    gpt = randomised(original.OriginalGPT(theirs, width, 3, heads, grid), seed=1)
    ours = gpt_of(gpt.state_dict(), heads)
    assert ours.grid == grid
    assert ours.config.head_dim == width // heads  # 18 with 4 heads: 4 each, two channels of 18 lost, as there
    clips = video(1)
    with torch.no_grad():
        vectors, codes = theirs.encode(to_float(clips))
        assert len(codes.unique()) > 3
        expected = gpt.logits(vectors.movedim(1, -1))
        assert float(expected.std()) > 0.1
        assert float((ours.logits(codes) - expected).abs().max()) < 1e-4
        torch.testing.assert_close(ours(codes), gpt(to_float(clips)), rtol=1e-4, atol=1e-5)


CONDITIONED = {
    "the study's: the clip before": {"emb_cond": True, "cond_norm": "ChannelNorm"},
    "the clip before, batch norm": {"emb_cond": True},
    "VideoGPT's: first frames": {"cond_frames": (2, 16, 16), "learned_start": False},
    "classes": {"n_classes": 5},
    "classes and the clip before": {"n_classes": 5, "emb_cond": True, "cond_width": 24},
}


@pytest.mark.parametrize("kind", CONDITIONED)
def test_a_gpt_that_is_told_more_gives_the_same_logits(original, theirs, kind):
    settings = dict(CONDITIONED[kind])
    if "cond_norm" in settings:
        settings["cond_norm"] = getattr(original, settings["cond_norm"])
    gpt = randomised(original.OriginalGPT(theirs, 12, 2, 4, (2, 4, 4), **settings), seed=2)
    for name, weight in gpt.named_parameters():
        if "enc_attn" in name:
            weight.data.mul_(3)  # sharp attention, so that what is read counts
    label = 3 if "n_classes" in settings else None
    for module in gpt.modules():
        if isinstance(module, original.ClassNorm):
            module.label = label
    ours = gpt_of(gpt.state_dict(), 4, class_label=label)
    clips, before = video(1), video(2)
    with torch.no_grad():
        vectors, codes = theirs.encode(to_float(clips))
        context = gpt.told(to_float(before), to_float(clips))
        assert len(codes.unique()) > 3
        expected = gpt.logits(vectors.movedim(1, -1), context)
        assert ours.frames == settings.get("cond_frames")
        told = Condition(
            previous=codes_of(theirs, before) if "emb_cond" in settings else None,
            frames=clips[:, : ours.frames[0]] if ours.frames else None,
        )
        found = ours.logits(codes, told)
    assert float(expected.std()) > 0.1
    assert float((found - expected).abs().max()) < 1e-4
    if context is not None:
        with torch.no_grad():
            other = gpt.logits(vectors.movedim(1, -1), gpt.told(to_float(video(4)), to_float(video(4))))
        assert float((other - expected).abs().max()) > 1e-3
    if label is not None:
        with pytest.raises(ModelError, match="told one of 5 classes"):
            gpt_of(gpt.state_dict(), 4)
        with pytest.raises(ModelError, match="which 5 is not"):
            gpt_of(gpt.state_dict(), 4, class_label=5)
        second = gpt_of(gpt.state_dict(), 4, class_label=0).norm.weight
        assert not torch.allclose(ours.norm.weight, second)


def codes_of(theirs, clips):
    return theirs.encode(to_float(clips))[1]


def test_a_gpts_checkpoint_holds_its_vqvae(original, theirs):
    gpt = original.OriginalGPT(theirs, 12, 1, 2, (2, 4, 4))
    part = vqvae_part(gpt.state_dict())
    torch.testing.assert_close(vqvae_of(part, DOWNSAMPLE).encode(video()), theirs.encode(to_float(video()))[1])
    assert vqvae_part({"fc_in.weight": torch.zeros(2)}) is None


def test_what_is_not_videogpts_is_refused(original, theirs):
    state = dict(theirs.state_dict())
    with pytest.raises(ModelError, match="halves 2 times"):
        vqvae_of(state, (2, 8, 8))
    with pytest.raises(ModelError, match="extra"):
        vqvae_of(state | {"extra": torch.zeros(1)}, DOWNSAMPLE)
    state.pop("codebook.N")
    with pytest.raises(ModelError, match=r"lacks codebook.N"):
        vqvae_of(state, DOWNSAMPLE)
    gpt = dict(original.OriginalGPT(theirs, 12, 1, 2, (2, 4, 4)).state_dict())
    with pytest.raises(ModelError, match="5 heads do not divide 12"):
        gpt_of(gpt, 5)
    with pytest.raises(ModelError, match=r"1 entries that are not VideoGPT's, attn_stack\.attn_nets\.0\.enc_attn"):
        gpt_of(gpt | {"attn_stack.attn_nets.0.enc_attn.fc.bias": torch.zeros(3)}, 2)
    with pytest.raises(ModelError, match="no causal mask"):
        gpt_of({k: v for k, v in gpt.items() if not k.endswith("mask")}, 2)
    with pytest.raises(ModelError, match="lacks the code vectors"):
        gpt_of({k: v for k, v in gpt.items() if not k.startswith("vqvae.")}, 2)
