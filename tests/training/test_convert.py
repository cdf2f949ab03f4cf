"""Checkpoints of VideoGPT as files: written as Lightning wrote them, read without running code."""

import argparse
import importlib.util
import json
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from vidbrain.cli.app import run
from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.gpt import Condition
from vidbrain.models.presets import preset_of
from vidbrain.models.pretrained import load_gpt, load_vqvae
from vidbrain.models.vqvae import to_float
from vidbrain.stream.codes import load_codes
from vidbrain.training.convert import ConvertConfig, convert
from vidbrain.training.tokenize import tokenize

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "original.py"


@pytest.fixture(scope="module")
def models():
    spec = importlib.util.spec_from_file_location("original", TOOL)
    original = sys.modules["original"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    torch.manual_seed(0)
    vqvae = original.OriginalVQVAE(12, 1, (2, 8, 8), 16, 6).eval()
    yield vqvae, original.OriginalGPT(vqvae, 12, 2, 2, (4, 4, 4)).eval()
    del sys.modules["original"]


def write(path, model, monkeypatch, **settings):
    """Write as Lightning 1.3 did, its classes among the keys."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "1.3.3",
        "state_dict": model.state_dict(),
        "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(2.29)}},
        "hyper_parameters": {"args": argparse.Namespace(**settings)},
    }
    torch.save(content, path)
    monkeypatch.undo()
    return path


SAID = {"downsample": (2, 8, 8), "sequence_length": 8, "heads": 2, "dropout": 0.2, "attn_dropout": 0.3}


def test_a_gpt_and_its_vqvae_become_folders_that_others_read(models, shards, tmp_path, monkeypatch, capsys):
    vqvae, gpt = models
    path = write(tmp_path / "gpt.ckpt", gpt, monkeypatch, **SAID)
    out = tmp_path / "out"
    for _ in range(2):  # a second call finds it done
        assert run(["convert", str(path), "--out", str(out), "--step", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    ours = load_vqvae(out / "vqvae")
    assert found["vqvae_parameters"] == sum(p.numel() for p in vqvae.parameters())
    clips = torch.randint(256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        vectors, codes = vqvae.encode(to_float(clips))
        torch.testing.assert_close(ours.encode(clips), codes)
        logits = load_gpt(out / "gpt").logits(codes)
        torch.testing.assert_close(logits, gpt.logits(vectors.movedim(1, -1)), rtol=0, atol=1e-4)
    assert load_gpt(out / "gpt").config.attention_dropout == 0.3
    tokenize(shards, out / "vqvae", tmp_path / "codes")
    assert load_codes(tmp_path / "codes").codes.shape[1:] == (4, 4, 4)


def test_the_studys_gpt_with_its_condition_and_classes(models, tmp_path, monkeypatch, capsys):
    vqvae, _ = models
    original = sys.modules[type(vqvae).__module__]
    torch.manual_seed(1)
    gpt = original.OriginalGPT(
        vqvae, 12, 2, 2, (4, 4, 4), emb_cond=True, cond_width=12, cond_norm=original.ChannelNorm, n_classes=3
    ).eval()
    for name, weight in gpt.named_parameters():
        if not name.startswith("vqvae."):
            torch.nn.init.normal_(weight, std=0.5)
    path = write(tmp_path / "gpt.ckpt", gpt, monkeypatch, **SAID, emb_cond=True, class_cond=True)
    arguments = ["convert", str(path), "--out", str(tmp_path / "out"), "--json"]
    assert run(arguments) == 1
    assert "--class-label 0 to 2" in capsys.readouterr().err
    assert run([*arguments, "--class-label", "2"]) == 0
    ours = load_gpt(tmp_path / "out" / "gpt")
    assert preset_of(ours.config) == "paper"
    for module in gpt.modules():
        if isinstance(module, original.ClassNorm):
            module.label = 2
    clips, before = torch.randint(256, (2, 2, 8, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        vectors, codes = vqvae.encode(to_float(clips))
        told = Condition(previous=vqvae.encode(to_float(before))[1])
        expected = gpt.logits(vectors.movedim(1, -1), gpt.told(to_float(before)))
        torch.testing.assert_close(ours.logits(codes, told), expected, rtol=0, atol=1e-4)
    assert run([*arguments, "--class-label", "1"]) == 1
    assert "class_label was 2, is 1" in capsys.readouterr().err


def test_what_a_checkpoint_does_not_say_is_asked_for(models, tmp_path, monkeypatch):
    path = write(tmp_path / "vqvae.ckpt", models[0], monkeypatch)
    with pytest.raises(ConfigError, match="do not say downsample"):
        convert(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="do not say sequence_length"):
        convert(path, tmp_path / "out", ConvertConfig(downsample=(2, 8, 8)))
    convert(path, tmp_path / "out", ConvertConfig(downsample=(2, 8, 8), n_frames=8))
    assert load_vqvae(tmp_path / "out" / "vqvae").config.downsample == (2, 8, 8)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_a_checkpoint_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "x": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(ModelError, match="more than tensors"):
        convert(tmp_path / "hostile.ckpt", tmp_path / "out")
    assert not (tmp_path / "harm").exists()
    (tmp_path / "noise.ckpt").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match=r"refused|cannot be read"):
        convert(tmp_path / "noise.ckpt", tmp_path / "out")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match="no state_dict"):
        convert(tmp_path / "other.ckpt", tmp_path / "out")
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match="holds no VQ-VAE"):
        convert(tmp_path / "other.ckpt", tmp_path / "out")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises(ModelError, match=r"refused|cannot be read"):  # and no warning, which would be an error here
        convert(tmp_path / "raw.ckpt", tmp_path / "out")
    assert not (tmp_path / "harm").exists()


SETTINGS = [
    ("heads", 0),
    ("heads", "x"),
    ("heads", None),
    ("heads", 5),
    ("dropout", "x"),
    ("dropout", None),
    ("attn_dropout", float("nan")),
    ("sequence_length", "x"),
    ("sequence_length", None),
    ("sequence_length", float("inf")),
    ("sequence_length", 16),
    ("sequence_length", 7),
    ("downsample", (float("inf"), 8, 8)),
    ("downsample", 8),
    ("downsample", (8, 8, 2)),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=str)
def test_nonsense_settings_of_a_checkpoint_are_named(models, tmp_path, monkeypatch, name, value):
    path = write(tmp_path / "gpt.ckpt", models[1], monkeypatch, **SAID | {name: value})
    with pytest.raises((ConfigError, ModelError), match=r"heads|dropout|sequence_length|frames|downsampl"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


GIVEN = [
    {"n_frames": 7},
    {"n_frames": 16},
    {"downsample": (8, 8, 2)},
    {"downsample": (4, 4, 8)},
    {"n_heads": 3},
    {"class_label": 3},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_what_contradicts_the_checkpoint_is_refused_before_anything_is_written(models, tmp_path, monkeypatch, given):
    path = write(tmp_path / "gpt.ckpt", models[1], monkeypatch, **SAID)
    with pytest.raises((ConfigError, ModelError)) as caught:
        convert(path, tmp_path / "out", ConvertConfig(**given))
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


ENTRIES = [
    ("attn_stack.attn_nets.0.attn.w_qs.weight", None),
    ("fc_in.weight", "text"),
    ("fc_in.weight", torch.zeros(())),
    ("fc_out.weight", torch.zeros(2, 2, 2)),
    ("attn_stack.pos_embd.emb.d_0", torch.zeros(4)),
    ("attn_stack.attn_nets.1.attn.w_ks.weight", torch.zeros(12, 11)),
    ("attn_stack.attn_nets.0.attn.w_qs.weight", torch.zeros(())),
    ("vqvae.codebook.embeddings", torch.zeros(())),
    ("vqvae.pre_vq_conv.conv.weight", torch.zeros(6)),
    ("fc_in.weight", torch.zeros(12, 6).to_sparse()),
    (5, torch.zeros(2)),
]


@pytest.mark.parametrize(("name", "value"), ENTRIES, ids=lambda x: str(x)[:40])
def test_nonsense_entries_of_a_checkpoint_are_named(models, tmp_path, name, value):
    state = dict(models[1].state_dict()) | {name: value}
    torch.save({"state_dict": state, "hyper_parameters": SAID}, tmp_path / "gpt.ckpt")
    with pytest.raises(ModelError) as caught:
        convert(tmp_path / "gpt.ckpt", tmp_path / "out")
    end = str(name).removeprefix("vqvae.")
    assert end in str(caught.value) or end.rsplit(".", 2)[0] in str(caught.value) or "head.weight" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_an_entry_or_with_settings_of_no_name_is_refused(models, tmp_path):
    state = dict(models[1].state_dict())
    for said in ("abc", [1, 2], {"args": 5}):
        torch.save({"state_dict": state, "hyper_parameters": said}, tmp_path / "gpt.ckpt")
        with pytest.raises(ModelError, match="hyper_parameters are a"):
            convert(tmp_path / "gpt.ckpt", tmp_path / "out")
    state.pop("attn_stack.attn_nets.0.attn.w_qs.weight")
    torch.save({"state_dict": state, "hyper_parameters": SAID}, tmp_path / "gpt.ckpt")
    with pytest.raises(ModelError, match=r"attn_nets\.0\.attn\.w_qs"):
        convert(tmp_path / "gpt.ckpt", tmp_path / "out")
