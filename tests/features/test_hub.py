"""V-JEPA 2, VideoMAE and timm with tiny random weights, against the libraries' own states. Nothing is fetched."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vidbrain.cli.app import run
from vidbrain.errors import MissingExtraError, ModelError
from vidbrain.features.extract import ExtractConfig, extract
from vidbrain.features.hub import mend_torchvision, open_hf, open_timm
from vidbrain.features.pooled import Pooled
from vidbrain.features.store import open_features

LOOK = {"frame_size": (32, 32), "fps": 60.0, "sample_hz": 15.0}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TINY = {"patch_size": 8, "tubelet_size": 2, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Here the libraries are imported before an opener does it."""
    mend_torchvision()


def tiny_model(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "videomae":
        config = transformers.VideoMAEConfig(image_size=32, num_frames=4, intermediate_size=16, **TINY)
        return transformers.VideoMAEModel(config).eval()
    small = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    config = transformers.VJEPA2Config(
        crop_size=32, frames_per_clip=4, mlp_ratio=2, pred_num_mask_tokens=1, **small, **TINY
    )
    return transformers.VJEPA2Model(config).eval()


@pytest.fixture(params=["videomae", "vjepa2"])
def saved(request, tmp_path):
    model = tiny_model(request.param)
    model.save_pretrained(tmp_path / request.param)
    return model, tmp_path / request.param


def test_hidden_states_are_the_librarys_own(saved, rng):
    model, folder = saved
    video = rng.integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    pixels = torch.from_numpy((video / 255 - MEAN) / STD).permute(0, 1, 4, 2, 3).float()
    more = {"skip_predictor": True} if folder.name == "vjepa2" else {}
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True, **more).hidden_states
    source = open_hf(folder, **LOOK)
    assert source.name == folder.name
    assert [layer.name for layer in source.layers] == [f"hidden_{k}" for k in range(4)]
    assert {(layer.grid, layer.n_channels) for layer in source.layers} == {((4, 4), 12)}
    found = source.extract(video)
    for k, state in enumerate(states):
        torch.testing.assert_close(found[f"hidden_{k}"], state.reshape(3, 2, 4, 4, 12), rtol=1e-5, atol=1e-5)
    # Any other module is a layer by its path.
    (inner,) = (name for name in dict(model.named_modules()) if name.endswith("encoder.layer.1.attention"))
    assert open_hf(folder, layers=(inner,), **LOOK).extract(video)[inner].shape == (3, 2, 4, 4, 12)


def test_untrained_differs_only_in_its_weights(saved, rng):
    _, folder = saved
    trained, fresh = open_hf(folder, **LOOK), open_hf(folder, untrained=True, seed=3, **LOOK)
    assert (fresh.layers, fresh.window, fresh.settings) == (trained.layers, trained.window, trained.settings)
    ours, theirs = fresh._network.state_dict(), trained._network.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    assert fresh.made_from != trained.made_from
    assert open_hf(folder, untrained=True, seed=3, **LOOK).made_from == fresh.made_from
    video = rng.integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    assert not torch.allclose(fresh.extract(video)["hidden_3"], trained.extract(video)["hidden_3"], atol=0.1)
    again = pickle.loads(pickle.dumps(fresh))
    torch.testing.assert_close(again.extract(video)["hidden_1"], fresh.extract(video)["hidden_1"])


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_real_clips_from_the_command_line(world, tmp_path, capsys, kind):
    tiny_model(kind).save_pretrained(tmp_path / kind)
    arguments = ["features", f"hf:{tmp_path / kind}", "--shards", str(world.data), "--out", str(tmp_path / "out")]
    arguments += ["--layers", "hidden_2", "hidden_3", "--pool", "mean", "--sample-hz", "30", "--json"]
    assert run([*arguments, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["features"] == {"hidden_2": 12, "hidden_3": 12}
    assert run(arguments) == 0
    store = open_features(tmp_path / "out")
    assert store.info["config"]["window"]["step"] == 2
    values = store.read("hidden_3", store.runs[0])
    assert values["features"].values[values["valid"].values].std(0).min() > 1e-4
    capsys.readouterr()
    assert run(["features", f"hf:{tmp_path / kind}", "--shards", str(world.data), "--layers", "hidden_9"]) == 1
    assert "did you mean 'hidden_" in capsys.readouterr().err


def test_folders_that_hold_no_such_model_are_refused(tmp_path):
    tiny_model("videomae").save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match=r"there is no config\.json") as told:
        open_hf(tmp_path / "none", **LOOK)
    assert "hf download" in told.value.hint
    weights = load_file(tmp_path / "m" / "model.safetensors")
    gone = next(name for name in weights if "encoder.layer.1" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="the weights lack 1 tensors of the model: encoder"):
        open_hf(tmp_path / "m", **LOOK)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ModelError, match="'bert' is not a video model that is known here: videomae, vjepa2"):
        open_hf(tmp_path / "m", **LOOK)


def test_timm_is_the_librarys_own_intermediates(world, tmp_path, rng):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'vidbrain[test]'")
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **size).eval()
    timm.models.save_for_hf(model, tmp_path / "vit", model_args=size, safe_serialization=True)
    source = open_timm(tmp_path / "vit", **LOOK)
    assert [layer.name for layer in source.layers] == ["blocks.0", "blocks.1", "blocks.2"]
    assert source.layers[0].grid == (4, 4)
    video = rng.integers(0, 256, (2, 16, 32, 32, 3), np.uint8)
    facts = model.pretrained_cfg
    pixels = torch.from_numpy((video / 255 - facts["mean"]) / facts["std"]).permute(0, 1, 4, 2, 3).float().flatten(0, 1)
    with torch.no_grad():
        states = model.forward_intermediates(pixels, norm=False, output_fmt="NCHW", intermediates_only=True)
    for k, state in enumerate(states):
        expected = state.permute(0, 2, 3, 1).reshape(2, 16, 4, 4, 12)
        torch.testing.assert_close(source.extract(video)[f"blocks.{k}"], expected, rtol=1e-4, atol=1e-5)
    fresh = open_timm(tmp_path / "vit", untrained=True, seed=5, **LOOK)
    assert (fresh.layers, fresh.window, fresh.settings) == (source.layers, source.window, source.settings)
    assert fresh.made_from != source.made_from
    extract(Pooled(source), world.data, tmp_path / "out", ExtractConfig())
    assert open_features(tmp_path / "out").layers == ["blocks.0", "blocks.1", "blocks.2"]


def test_without_timm_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"needs timm and a torchvision of torch \d") as told:
        open_timm(tmp_path, **LOOK)
    assert "vidbrain[timm]" in told.value.hint
