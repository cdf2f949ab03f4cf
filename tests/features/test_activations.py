"""Features of tiny networks with random weights."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from vidbrain.cli.app import run
from vidbrain.errors import ConfigError, ModelError, StorageError
from vidbrain.features.activations import ModelSource, open_model
from vidbrain.features.extract import ExtractConfig, extract
from vidbrain.features.pooled import Pooled
from vidbrain.features.pooling import Pooling, default_pooling
from vidbrain.features.store import open_features
from vidbrain.models.digest import weights_fingerprint
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.pretrained import save_pretrained
from vidbrain.models.vqvae import VQVAE, VQVAEConfig
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.info import write_info
from vidbrain.stream.sequential import frames_of
from vidbrain.video.clock import average_into_trs, frame_times

SHAPE = VQVAEConfig(downsample=(4, 8, 8), n_hidden=8, n_res_layers=1, n_codes=32, code_dim=6)
CLIP = {"clip_frames": 16, "clip_step": 4, "frame_size": (32, 32)}
LAYERS = ("vqvae.encoder", "gpt.block_0", "gpt.block_1")


def tiny_networks(grid=(4, 4, 4)):
    torch.manual_seed(1)
    vqvae = VQVAE(SHAPE).eval()
    gpt = GPT(GPTConfig(hidden=12, n_layers=2, n_heads=2), n_codes=32, grid=grid).eval()
    for parameter in gpt.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)  # what starts at zero would make all blocks alike
    return vqvae, gpt


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    vqvae, gpt = tiny_networks()
    save_pretrained(vqvae, root / "vqvae")
    save_pretrained(gpt, root / "gpt")
    clip = {"n_frames": 16, "step": 4, "stride": 4}
    trained = write_info(root / "vqvae", "vqvae", config={"clip": clip}, made_from={})
    write_info(root / "gpt", "gpt", config={}, made_from={"vqvae": trained["fingerprint"]})
    return root


def test_activations_agree_with_the_networks_frame_by_frame(world, runs, tmp_path):
    source = Pooled(open_model("model", vqvae=runs / "vqvae", gpt=runs / "gpt", frame_size=(32, 32)), Pooling(grid=2))
    extract(source, world.data, tmp_path / "model", ExtractConfig(tr_s=0.7))
    store = open_features(tmp_path / "model")
    assert store.layers == list(LAYERS)
    manifest = open_manifest(world.data)
    vqvae, gpt = tiny_networks()
    label = "sub-01_ses-001_task-toy_run-1"
    times, values = [], {layer: [] for layer in LAYERS}
    for key, onset_s, n_frames, duration_s in world.clocks[label]:
        video = np.concatenate([block for _, block in frames_of(manifest, key)])
        found = {layer: np.zeros((n_frames, 4)) for layer in LAYERS}
        cover = np.zeros(n_frames)
        for start in [*range(0, n_frames - 64, 64), n_frames - 64]:
            clip = torch.from_numpy(video[None, start : start + 64 : 4])
            with torch.no_grad():
                tokens = {"vqvae.encoder": vqvae.encode_features(clip)}
                tokens |= gpt.hidden_states(vqvae.encode(clip), LAYERS[1:])
            cover[start : start + 64] += 1
            for layer, array in tokens.items():
                first = array[0, ..., 0].numpy()  # (4, 4, 4): one channel
                cells = first.reshape(4, 2, 2, 2, 2).mean(axis=(2, 4)).reshape(4, 4)
                found[layer][start : start + 64] += np.repeat(cells, 16, axis=0)
        times.append(frame_times(onset_s, duration_s, n_frames))
        for layer in LAYERS:
            values[layer].append(found[layer] / cover[:, None])
    for layer in LAYERS:
        dataset = store.read(layer, label)
        means, counts = average_into_trs(np.concatenate(values[layer]), np.concatenate(times), 0.7, dataset.sizes["tr"])
        n_channels = 6 if layer == "vqvae.encoder" else 12
        mine = dataset["features"].values.reshape(-1, 4, n_channels)[:, :, 0]
        np.testing.assert_array_equal(dataset["valid"], counts > 0)
        np.testing.assert_allclose(mine[counts > 0], means[counts > 0], rtol=1e-3, atol=1e-4)
        assert dataset.attrs["row_s"] == pytest.approx(16 / 60, rel=0.01)
        assert dataset.attrs["window_s"] == pytest.approx((64 + 48) / 60, rel=0.01)


def test_a_batch_is_its_clips(runs, rng):
    source = Pooled(open_model("model", vqvae=runs / "vqvae", gpt=runs / "gpt", frame_size=(32, 32)))
    video = rng.integers(0, 256, (19, 16, 32, 32, 3), np.uint8)
    rows = source.rows(video)
    for layer in source.layers:
        assert rows[layer.name].shape == (19, 4, source.n_features[layer.name])
        one = source.rows(video[17:18])[layer.name]
        np.testing.assert_allclose(rows[layer.name][17:18], one, rtol=1e-4, atol=1e-5)


def test_networks_travel_to_workers_by_name(world, workers, runs, tmp_path):
    folders = {"vqvae": runs / "vqvae", "gpt": runs / "gpt", "frame_size": (32, 32)}
    opened = open_model("untrained", seed=7, layers=("gpt.block_1",), **folders)
    message = pickle.dumps(opened)
    assert len(message) < 2000
    again = pickle.loads(message)
    assert (again.made_from, again.layers, again.settings) == (opened.made_from, opened.layers, opened.settings)
    source = Pooled(opened, Pooling(grid=2))
    assert not source.in_process
    extract(source, world.data, tmp_path / "alone", ExtractConfig())
    extract(source, world.data, tmp_path / "shared", ExtractConfig(), client=workers)
    for label in world.clocks:
        alone, shared = (open_features(tmp_path / name).read("gpt.block_1", label) for name in ("alone", "shared"))
        np.testing.assert_allclose(shared["features"], alone["features"], rtol=1e-4, atol=1e-5)
    kept = ModelSource("model", *tiny_networks(), **CLIP)
    assert kept.in_process
    with pytest.raises(TypeError, match="stay in their process"):
        pickle.dumps(kept)


def test_untrained_differs_from_the_trained_model_only_in_its_weights(runs, rng):
    video = rng.integers(0, 256, (2, 16, 32, 32, 3), np.uint8)
    folders = {"vqvae": runs / "vqvae", "gpt": runs / "gpt", "frame_size": (32, 32)}
    trained = open_model("model", **folders)
    fresh, again, other = (open_model("untrained", seed=seed, **folders) for seed in (3, 3, 4))
    assert (fresh.layers, fresh.window, fresh.settings) == (trained.layers, trained.window, trained.settings)
    for ours, theirs in ((fresh._vqvae, trained._vqvae), (fresh._gpt, trained._gpt)):
        assert (str(ours), ours.config) == (str(theirs), theirs.config)
        assert {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()} == {
            k: (v.shape, v.dtype) for k, v in theirs.state_dict().items()
        }
        assert not any(
            torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True) if a.ndim > 1
        )
    # Units are shared: pixels are standardised alike.
    for name in ("pixel_mean", "pixel_std"):
        torch.testing.assert_close(getattr(fresh._vqvae, name), getattr(trained._vqvae, name))
    assert fresh.made_from == again.made_from
    assert len({s.made_from["vqvae"] for s in (trained, fresh, other)}) == 3
    found, answer = Pooled(fresh).rows(video), Pooled(trained).rows(video)
    for name, values in Pooled(again).rows(video).items():
        np.testing.assert_array_equal(values, found[name])
        assert not np.allclose(values, answer[name])


def test_the_study_reads_out_of_its_fifth_block():
    vqvae, _ = tiny_networks()
    deep = GPT(GPTConfig(hidden=12, n_layers=6, n_heads=2), n_codes=32, grid=(4, 4, 4)).eval()
    for parameter in deep.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    source = ModelSource("model", vqvae, deep, layer_names=("study",), **CLIP)
    assert [layer.name for layer in source.layers] == ["gpt.block_4.mlp"]
    video = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 32, 3), np.uint8)
    caught = []
    handle = deep.blocks[4].down.register_forward_hook(lambda *call: caught.append(call[2]))
    with torch.no_grad():
        deep.logits(vqvae.encode(torch.from_numpy(video)))
    handle.remove()
    found = source.extract(video)["gpt.block_4.mlp"]
    torch.testing.assert_close(found.flatten(1, 3), caught[0])
    with pytest.raises(ModelError, match=r"the study reads out of gpt\.block_4\.mlp"):
        ModelSource("model", *tiny_networks(), layer_names=("study",), **CLIP)


def test_every_module_inside_a_block_is_a_layer():
    vqvae, gpt = tiny_networks()
    names = ("gpt.blocks.1.attention", "gpt.blocks.0.up", "gpt.block_0")
    source = ModelSource("model", vqvae, gpt, layer_names=names, **CLIP)
    assert [(layer.name, layer.n_channels) for layer in source.layers] == [
        ("gpt.block_0", 12), ("gpt.blocks.0.up", 48), ("gpt.blocks.1.attention", 12),
    ]  # fmt: skip
    video = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 32, 3), np.uint8)
    caught = {}
    handles = [
        gpt.get_submodule(name[4:]).register_forward_hook(lambda *call, name=name: caught.update({name: call[2]}))
        for name in names[:2]
    ]
    with torch.no_grad():
        codes = vqvae.encode(torch.from_numpy(video))
        gpt.logits(codes)
        stream = gpt.hidden_states(codes, ["gpt.block_0"])["gpt.block_0"]
    for handle in handles:
        handle.remove()
    found = source.extract(video)
    torch.testing.assert_close(found["gpt.block_0"], stream)
    torch.testing.assert_close(found["gpt.blocks.0.up"].flatten(1, 3), caught["gpt.blocks.0.up"])
    attended = caught["gpt.blocks.1.attention"]
    attended = attended[0] if isinstance(attended, tuple) else attended
    torch.testing.assert_close(found["gpt.blocks.1.attention"].flatten(1, 3), attended)
    with pytest.raises(ModelError, match=r"gpt\.blocks\.0\.dropout is called 2 times"):
        ModelSource("model", vqvae, gpt, layer_names=("gpt.blocks.0.dropout",), **CLIP)


def test_the_pooling_is_chosen_for_equal_sizes():
    assert default_pooling((8, 8), 32) == Pooling(kind="grid", grid=4)
    assert default_pooling((8, 8), 128) == Pooling(kind="grid", grid=2)
    assert default_pooling((3, 8), 32) == Pooling(kind="grid", grid=3)
    assert default_pooling((8, 8), 600).kind == "mean"
    assert default_pooling((4, 8), 16).kind == "all"
    assert default_pooling((197,), 12).kind == "mean"
    assert default_pooling((), 4000).kind == "all"


def test_the_fingerprint_is_of_the_weights():
    vqvae, _ = tiny_networks()
    before = weights_fingerprint(vqvae)
    assert weights_fingerprint(tiny_networks()[0]) == before
    with torch.no_grad():
        vqvae.pixel_mean[0] += 1
    assert weights_fingerprint(vqvae) != before


def test_layers_that_are_not_there_are_named():
    vqvae, gpt = tiny_networks()
    with pytest.raises(ModelError, match=r"no layer 'gpt\.block_2'; did you mean 'gpt\.block_[01]"):
        ModelSource("model", vqvae, gpt, layer_names=("gpt.block_2",), **CLIP)
    with pytest.raises(ModelError, match=r"no layer 'gpt\.block_1'"):
        ModelSource("model", vqvae, None, layer_names=("gpt.block_1",), **CLIP)
    chosen = ModelSource("model", vqvae, gpt, layer_names=("vqvae.encoder",), **CLIP)
    assert set(chosen.made_from) == {"vqvae"}  # a GPT that gives nothing decides nothing


def test_networks_that_do_not_fit_are_refused():
    vqvae, gpt = tiny_networks(grid=(4, 8, 8))
    with pytest.raises(ModelError, match=r"reads clips of \(4, 8, 8\) codes out of 32, the VQ-VAE gives \(4, 4, 4\)"):
        ModelSource("model", vqvae, gpt, **CLIP)
    with pytest.raises(ModelError, match="not multiples of the downsampling"):
        ModelSource("model", vqvae, None, clip_frames=16, clip_step=4, frame_size=(30, 30))
    with pytest.raises(ModelError, match="finer than the 4x4 tokens"):
        Pooled(ModelSource("model", vqvae, None, **CLIP), Pooling(grid=5))
    with pytest.raises(ConfigError, match="leaves frames out"):
        ModelSource("model", vqvae, None, stride=65, **CLIP)


def test_missing_and_mismatched_networks_are_refused(runs, tmp_path):
    with pytest.raises(StorageError, match="the vqvae artefact does not exist"):
        open_model("model", vqvae=tmp_path / "none", gpt=None, frame_size=(32, 32))
    shutil.copytree(runs / "gpt", tmp_path / "gpt")
    write_info(tmp_path / "gpt", "gpt", config={}, made_from={"vqvae": "0123"})
    with pytest.raises(ModelError, match="trained on codes of the VQ-VAE 0123, not of"):
        open_model("model", vqvae=runs / "vqvae", gpt=tmp_path / "gpt", frame_size=(32, 32))
    (tmp_path / "gpt" / "info.json").unlink()
    with pytest.raises(StorageError, match="the gpt artefact is unfinished"):
        open_model("model", vqvae=runs / "vqvae", gpt=tmp_path / "gpt", frame_size=(32, 32))


def test_model_features_from_the_command_line(world, runs, tmp_path, capsys):
    folders = ["--vqvae", str(runs / "vqvae"), "--gpt", str(runs / "gpt"), "--shards", str(world.data)]
    arguments = ["features", "untrained", *folders, "--layers", "gpt.block_1", "vqvae.encoder", "--json"]
    assert run([*arguments, "--out", str(tmp_path / "out"), "--pool", "mean"]) == 0
    assert json.loads(capsys.readouterr().out)["features"] == {"vqvae.encoder": 6, "gpt.block_1": 12}
    assert run(["features", "model", *folders, "--layers", "gpt.blok_1", "--out", str(tmp_path / "x")]) == 1
    assert "did you mean 'gpt.block_1'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
