"""GPTs with a condition on real clips: each row against a direct pass with what the GPT was told in training."""

from __future__ import annotations

import json
import pickle
import shutil
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch

from vidbrain.cli.app import run
from vidbrain.errors import AlignmentError, ModelError, ResumeError
from vidbrain.features import extract as extract_module
from vidbrain.features.activations import ModelSource, open_model
from vidbrain.features.extract import ExtractConfig, extract, frames_without_rows
from vidbrain.features.pooled import Pooled
from vidbrain.features.pooling import Pooling
from vidbrain.features.runs import RecordingPlan, RunPlan
from vidbrain.features.sources import receptive_field_s
from vidbrain.features.store import open_features
from vidbrain.features.windows import Window
from vidbrain.models.gpt import GPT, Condition, GPTConfig
from vidbrain.models.presets import preset_of
from vidbrain.models.pretrained import load_gpt, load_vqvae, save_pretrained
from vidbrain.models.vqvae import VQVAE, VQVAEConfig
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.info import write_info
from vidbrain.stream.sequential import frames_of
from vidbrain.video.clock import average_into_trs, frame_times

STUDY = {"hidden": 12, "n_layers": 5, "n_heads": 2, "block": "study", "norm": "study", "positions": "thirds",
         "embedding": "codebook", "condition_width": 12, "reader": "study"}  # fmt: skip
UNTRAINED = ("untrained",)
BUTTONS = ("UP", "A", "B")
"""As the toy's tables name them, but for A, which they lack."""
TR = ExtractConfig(tr_s=0.7)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tokenizer, and a GPT over its codes for each condition."""
    root = tmp_path_factory.mktemp("told")
    torch.manual_seed(1)
    vqvae = VQVAE(VQVAEConfig(downsample=(4, 8, 8), n_hidden=8, n_res_layers=1, n_codes=32, code_dim=6)).eval()
    save_pretrained(vqvae, root / "vqvae")
    clip = {"n_frames": 16, "step": 4, "stride": 64}
    trained = write_info(root / "vqvae", "vqvae", config={"clip": clip}, made_from={})
    for kind in ("previous", "actions"):
        gpt = GPT(GPTConfig(condition=kind, **STUDY), n_codes=32, grid=(4, 4, 4), code_dim=6,
                  actions=BUTTONS if kind == "actions" else ())  # fmt: skip
        for weight in gpt.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        gpt.set_codebook(vqvae.codebook.vectors())
        save_pretrained(gpt, root / kind)
        write_info(root / kind, "gpt", config={}, made_from={"vqvae": trained["fingerprint"]})
    return root


def opened(runs, world, kind, name="model", **settings):
    settings = {"layers": ("study", "gpt.blocks.4.down"), "game": world.game, "shards": world.data} | settings
    return open_model(name, vqvae=runs / "vqvae", gpt=runs / kind, frame_size=(32, 32), **settings)


class Listener:
    """Hears what a user would see."""

    def __init__(self):
        self.frames, self.notes = 0, []

    def start(self, stage, total, unit, done=0):
        self.frames += done

    def advance(self, amount=1, **numbers):
        self.frames += amount

    def note(self, message):
        self.notes.append(message)

    def finish(self):
        pass


def direct(world, runs, kind, key, n_frames):
    """Mean over positions of the study's layer for every frame, by hand; and which frames have any."""
    vqvae, gpt = load_vqvae(runs / "vqvae"), load_gpt(runs / kind)
    video = np.concatenate([block for _, block in frames_of(open_manifest(world.data), key)])
    first = 64 if kind == "previous" else 0
    starts = [*range(first, max(first, n_frames - 64), 64), max(first, n_frames - 64)] if n_frames > first else []
    sums, cover = np.zeros((n_frames, 12)), np.zeros(n_frames)

    def codes(start):
        numbers = np.minimum(np.arange(start, start + 64, 4), n_frames - 1)
        return vqvae.encode(torch.from_numpy(video[None, numbers]))

    for start in starts:
        with torch.no_grad():
            if kind == "previous":
                told = Condition(previous=codes(start - 64))
            else:
                table = pd.read_parquet(next(world.game.rglob(f"{key}.parquet")))
                held = np.zeros((64, 3))
                part = table[["UP", "B"]].to_numpy(float)[start : start + 64]
                held[: len(part), [0, 2]] = part
                told = Condition(actions=torch.from_numpy(held.reshape(1, 4, 16, 3).mean(2)).float())
            state = gpt.hidden_states(codes(start), ["gpt.block_4.mlp"], told)["gpt.block_4.mlp"]
        rows = np.repeat(state[0].mean((1, 2)).numpy(), 16, axis=0)[: n_frames - start]
        sums[start : start + 64] += rows
        cover[start : start + 64] += 1
    return sums / np.maximum(cover, 1)[:, None], cover > 0


@pytest.mark.parametrize("kind", ["previous", "actions"])
def test_rows_agree_with_a_direct_pass_of_every_clip(world, runs, kind, tmp_path):
    source, heard = Pooled(opened(runs, world, kind), Pooling(kind="mean")), Listener()
    record = extract(source, world.data, tmp_path / "out", TR, progress=heard)
    store = open_features(tmp_path / "out")
    assert store.layers == ["gpt.block_4.mlp", "gpt.blocks.4.down"]
    lacking = 0
    for label, recordings in world.clocks.items():
        found = store.read("gpt.block_4.mlp", label)
        values, times = [], []
        for key, onset_s, n_frames, duration_s in recordings:
            rows, has = direct(world, runs, kind, key, n_frames)
            lacking += int((~has).sum())
            values.append(rows[has])
            times.append(frame_times(onset_s, duration_s, n_frames)[has])
        means, counts = average_into_trs(np.concatenate(values), np.concatenate(times), 0.7, found.sizes["tr"])
        np.testing.assert_array_equal(found["n_frames"], counts)
        np.testing.assert_array_equal(found["valid"], counts > 0)
        np.testing.assert_allclose(found["features"][counts > 0], means[counts > 0], rtol=1e-3, atol=1e-4)
        assert found["features"].values[counts > 0].std(0).min() > 1e-3
        # Dropout does nothing at read-out: the module before it gives the same.
        np.testing.assert_array_equal(store.read("gpt.blocks.4.down", label)["features"], found["features"])
        assert found.attrs["sees_before_s"] == pytest.approx((48 + (64 if kind == "previous" else 0)) / 60, rel=0.01)
    # The clip before is missing for 64 frames of three recordings, and the fourth has but 50.
    assert record["n_frames_without_row"] == lacking == (3 * 64 + 50 if kind == "previous" else 0)
    assert heard.frames == record["n_frames"] == 691
    said = ["242 of 691 frames have no clip before theirs, which model is told: they have no row"]
    assert heard.notes == (said if kind == "previous" else [])


def test_the_clip_before_counts_and_nothing_else_before(world, runs, rng):
    source = opened(runs, world, "previous", layers=("study",))
    video = rng.integers(0, 256, (2, 32, 32, 32, 3), np.uint8)
    before = source.extract(video)["gpt.block_4.mlp"]
    video[1, :16] = rng.integers(0, 256, (16, 32, 32, 3))
    after = source.extract(video)["gpt.block_4.mlp"]
    torch.testing.assert_close(after[0], before[0])
    assert not torch.isclose(after[1], before[1]).all(-1).any()


PARTS = ("attention_norm", "attention", "attention.qkv", "attention.out", "mlp_norm", "up", "down")


@pytest.mark.parametrize("kind", ["previous", "actions"])
def test_the_untrained_control_differs_only_in_its_weights(world, runs, kind):
    parts = [*PARTS, *(("cross_norm", "cross", "cross.q", "cross.out") if kind == "previous" else ())]
    blocks = [f"gpt.block_{k}{part}" for k in range(5) for part in ("", ".mlp")]
    layers = ("vqvae.encoder", *blocks, *(f"gpt.blocks.{k}.{part}" for k in range(5) for part in parts))
    trained, fresh, again = (
        opened(runs, world, kind, *more, layers=layers, seed=3) for more in ((), UNTRAINED, UNTRAINED)
    )
    assert {layer.name for layer in fresh.layers} == set(layers)
    assert (fresh.layers, fresh.window, fresh.settings) == (trained.layers, trained.window, trained.settings)
    fields = [[receptive_field_s(layer, s.window, 60.0) for layer in s.layers] for s in (fresh, trained)]
    assert fields[0] == fields[1]
    assert {k for k, digits in fresh.made_from.items() if digits != trained.made_from[k]} == {"vqvae", "gpt"}
    assert fresh.made_from == again.made_from
    torch.testing.assert_close(fresh._gpt.codebook, fresh._vqvae.codebook.embeddings)
    names = [[Pooled(source).fingerprint(layer) for layer in source.layers] for source in (trained, fresh)]
    assert not set(names[0]) & set(names[1])
    # With the same weights and the same name of the source, the cache would hold them for equal.
    fresh.name, fresh.made_from = trained.name, trained.made_from
    assert [Pooled(fresh).fingerprint(layer) for layer in fresh.layers] == names[0]


def test_other_weights_make_their_own_layers_again(world, runs, tmp_path, monkeypatch):
    def pooled(gpt, *layers):
        return Pooled(opened(gpt, world, "previous", layers=layers), Pooling(kind="mean"))

    layers, out, other = ("vqvae.encoder", "gpt.block_0"), tmp_path / "out", tmp_path / "other"
    extract(pooled(runs, *layers), world.data, out, TR)
    shutil.copytree(runs, other)
    changed = load_gpt(runs / "previous")
    torch.nn.init.normal_(changed.blocks[0].down.bias)
    save_pretrained(changed, other / "previous")
    with pytest.raises(ResumeError, match="gpt was"):
        extract(pooled(other, *layers), world.data, out, TR)
    (out / "info.json").unlink()
    made, write_run = [], extract_module.write_run
    monkeypatch.setattr(extract_module, "write_run", lambda *a, **k: made.append(a[1]) or write_run(*a, **k))
    extract(pooled(other, *layers), world.data, out, TR)
    assert made == ["gpt.block_0", "gpt.block_0"]


def test_workers_are_told_the_same(world, workers, runs, tmp_path):
    source = Pooled(opened(runs, world, "actions"), Pooling(kind="mean"))
    assert len(pickle.dumps(source)) < 3000
    extract(source, world.data, tmp_path / "alone", TR)
    extract(source, world.data, tmp_path / "shared", TR, client=workers)
    for label in world.clocks:
        alone, shared = (open_features(tmp_path / name).read("gpt.block_4.mlp", label) for name in ("alone", "shared"))
        np.testing.assert_array_equal(shared["valid"], alone["valid"])
        np.testing.assert_allclose(shared["features"], alone["features"], rtol=1e-4, atol=1e-5)


def test_a_run_is_made_again_when_its_own_buttons_change(world, runs, tmp_path):
    game = tmp_path / "game"
    shutil.copytree(world.game, game)
    before = opened(runs, world, "actions", game=game)
    (key, *_), (other, *_) = world.clocks["sub-01_ses-001_task-toy_run-1"]
    told = {name: before.told([name]) for name in (key, other)}
    path = next(game.rglob(f"{key}.parquet"))
    table = pd.read_parquet(path)
    pd.concat([table[:5].assign(UP=~table["UP"][:5]), table[5:]]).to_parquet(path)
    after = opened(runs, world, "actions", game=game)
    assert after.told([key]) != told[key]
    assert after.told([other]) == told[other]
    assert after.made_from["actions"] != before.made_from["actions"]
    assert opened(runs, world, "previous").told([key]) == ""


def test_rows_at_the_end_of_clips_are_told_as_well(world, runs, tmp_path):
    source = Pooled(opened(runs, world, "previous", layers=("study", "vqvae.encoder"), stride=10), None, "end")
    encoder, study = source.layers
    assert (encoder.sees_before, study.sees_before) == (54, 54 + 64)
    record = extract(source, world.data, tmp_path / "out", TR)
    # The first clip of a recording ends at frame 128, and its row stands for the ten before.
    assert record["n_frames_without_row"] == 3 * 118 + 50


def test_first_frames_are_those_of_the_clip(runs, rng):
    torch.manual_seed(2)
    config = GPTConfig(condition="frames", **STUDY | {"reader": "videogpt", "n_layers": 1})
    gpt = GPT(config, n_codes=32, grid=(4, 4, 4), code_dim=6, frames=(1, 32, 32)).eval()
    torch.nn.init.normal_(gpt.blocks[0].cross.out.weight)
    vqvae = load_vqvae(runs / "vqvae")
    gpt.set_codebook(vqvae.codebook.vectors())
    source = ModelSource("model", vqvae, gpt, clip_frames=16, clip_step=4, frame_size=(32, 32))
    video = rng.integers(0, 256, (2, 16, 32, 32, 3), np.uint8)
    clips = torch.from_numpy(video)
    with torch.no_grad():
        told = Condition(frames=clips[:, :1])
        expected = gpt.hidden_states(vqvae.encode(clips), ["gpt.block_0"], told)["gpt.block_0"]
    torch.testing.assert_close(source.extract(video)["gpt.block_0"], expected)
    with pytest.raises(ModelError, match=r"told the first 1 frames of \(32, 32\), clips have 16 of \(64, 64\)"):
        ModelSource("model", vqvae, gpt, clip_frames=16, clip_step=4, frame_size=(64, 64))


def test_buttons_from_the_command_line(world, runs, tmp_path, capsys):
    arguments = ["features", "model", "--shards", str(world.data), "--vqvae", str(runs / "vqvae"), "--gpt",
                 str(runs / "actions"), "--layers", "study", "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    assert run([*arguments, "--game", str(tmp_path / "nowhere")]) == 1
    assert "there is no such file" in capsys.readouterr().err
    assert run([*arguments, "--game", str(world.game)]) == 0
    assert json.loads(capsys.readouterr().out)["features"] == {"gpt.block_4.mlp": 192}
    assert "actions" in open_features(tmp_path / "out").info["made_from"]


def test_what_cannot_be_told_is_refused(world, runs, rng):
    with pytest.raises(ModelError, match="needs the recordings with their buttons"):
        opened(runs, world, "actions", game=None)
    # A GPT that gives nothing needs nothing.
    assert opened(runs, world, "actions", game=None, layers=("vqvae.encoder",)).window.before == 0
    source = opened(runs, world, "actions")
    with pytest.raises(ModelError, match="which clips it looks at"):
        source.extract(rng.integers(0, 256, (1, 16, 32, 32, 3), np.uint8))
    short = RunPlan("a", (RecordingPlan("b", 60, 0.0, 1.0),), 1)
    with pytest.raises(AlignmentError, match="no recording has a clip of 64 frames after the 64"):
        frames_without_rows(Window(before=16), [short])
    assert opened(runs, world, "previous", layers=("gpt.blocks.0.cross.q",)).layers[0].n_channels == 12
    with pytest.raises(ModelError, match=r"no layer 'gpt\.blocks\.0\.cross\.k'"):
        opened(runs, world, "previous", layers=("gpt.blocks.0.cross.k",))


def test_the_papers_recipe_from_training_to_features(world, tmp_path, capsys):
    """Its own commands and recipe, at sizes of a toy; every other choice is the study's."""
    recipe = str(files("vidbrain") / "recipes" / "paper.toml")
    vqvae, gpt, codes = (str(tmp_path / name) for name in ("vqvae", "gpt", "codes"))
    shards, short = str(world.data), ["--steps", "1", "--batch-size", "2", "--precision", "fp32", "--json"]

    def call(*arguments):
        assert run([*arguments, "--config", recipe]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    sizes = ["--model.n-hidden", "12", "--model.n-res-layers", "1", "--model.n-codes", "32", "--model.code-dim", "6"]
    call("train", "vqvae", shards, "--out", vqvae, *short, *sizes)
    call("tokenize", shards, "--vqvae", vqvae, "--out", codes, "--json")
    sizes = ["--model.hidden", "12", "--model.condition-width", "12"]
    call("train", "gpt", codes, "--vqvae", vqvae, "--out", gpt, *short, *sizes)
    assert preset_of(load_gpt(gpt).config) == "paper"
    folders = ["--shards", shards, "--vqvae", vqvae, "--gpt", gpt, "--json"]
    plan = call("features", "model", *folders, "--dry-run", "--out", str(tmp_path / "model"))
    assert plan["frames_without_row"] == 3 * 64 + 50
    for source in ("model", "untrained"):
        out = tmp_path / source
        found = call("features", source, *folders, "--out", str(out))
        assert list(found["features"]) == ["gpt.block_4.mlp"]
        values = open_features(out).read("gpt.block_4.mlp", next(iter(world.clocks)))
        assert np.isfinite(values["features"]).all()
        assert values["valid"].values.sum() > 1
