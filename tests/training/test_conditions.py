"""What a conditional GPT is told, from real files; and that it learns from it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from vidbrain.errors import ModelError
from vidbrain.models.gpt import GPT, Condition, GPTConfig
from vidbrain.models.pretrained import load_gpt, load_vqvae
from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.batch import ClipBatch
from vidbrain.stream.codes import CodesTable, load_codes
from vidbrain.training.conditions import Buttons, pairs, read_buttons
from vidbrain.training.gpt import train_gpt
from vidbrain.training.samples import _told as condition_of_samples

STUDY = GPTConfig(
    hidden=12, n_layers=1, n_heads=2, block="study", norm="study", positions="thirds", embedding="codebook",
    condition="previous", condition_width=6, reader="study", dropout=0.2, attention_dropout=0.3,
)  # fmt: skip


@pytest.fixture
def small(gpt_config):
    return replace(gpt_config, steps=4, checkpoint_every=3, log_every=2, eval_every=4)


def table_of(places, clip):
    n = len(places)
    return CodesTable(
        codes=np.arange(n, dtype=np.uint16)[:, None, None, None],
        recording=np.array([name for name, _ in places]),
        start_frame=np.array([start for _, start in places]),
        clips_per_shard=np.array([3, n - 3]),
        clip=clip,
        fingerprint="x/train",
        info={},
    )


def test_the_clip_before_ends_where_a_clip_begins():
    places = [("a", 0), ("a", 8), ("a", 16), ("a", 24), ("b", 0), ("b", 16), ("b", 32)]
    found = pairs(table_of(places, ClipSpec(8, 2, 8)))
    kept = zip(found.table.recording.tolist(), found.table.start_frame.tolist(), strict=True)
    assert list(kept) == [("a", 16), ("a", 24), ("b", 16), ("b", 32)]
    assert [places[row] for row in found.before] == [("a", 0), ("a", 8), ("b", 0), ("b", 16)]
    assert found.table.clips_per_shard.tolist() == [1, 3]
    np.testing.assert_array_equal(found.table.codes.ravel(), [2, 3, 5, 6])


def test_a_stride_that_gives_no_pairs_is_refused():
    with pytest.raises(ModelError, match="no clip of 16 source frames"):
        pairs(table_of([("a", s) for s in range(0, 60, 12)], ClipSpec(8, 2, 12)))


def test_shares_of_pressed_buttons_are_means_over_slices(tmp_path):
    rng = np.random.default_rng(0)
    pressed = rng.random((50, 2)) < 0.4
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(pressed, 0)])
    found = Buttons(("A", "B"), {"a": sums}).during(["a", "a"], np.array([3, 30]), ClipSpec(8, 2, 4), 4)
    for i, start in enumerate((3, 30)):
        for k in range(4):
            own = np.zeros((4, 2))
            part = pressed[start + 4 * k : start + 4 * k + 4]
            own[: len(part)] = part
            np.testing.assert_allclose(found[i, k], own.mean(0))


@pytest.fixture
def game(shards):
    """Tables of buttons beside the videos, as a replay leaves them."""
    manifest = open_manifest(shards)
    rng = np.random.default_rng(0)
    for key, row in manifest.recordings.iterrows():
        n = int(row["recording_frames"])
        columns = {"frame": np.arange(n), "A": rng.random(n) < 0.5, "score": np.arange(n)}
        if key.endswith("1"):
            columns["B"] = rng.random(n) < 0.5
        pd.DataFrame(columns).to_parquet(shards.parent / "videos" / f"{key}.parquet")
    return shards.parent / "videos"


def test_buttons_are_read_beside_the_videos(game, codes):
    keys = open_manifest(codes, kind="codes").recordings.index.tolist()
    found = read_buttons(game, keys)
    assert found.names == ("A", "B")
    table = pd.read_parquet(game / f"{keys[0]}.parquet")
    np.testing.assert_array_equal(np.diff(found.held[keys[0]][:, 0]), table["A"])
    assert not found.held["play-0"][:, 1].any()
    with pytest.raises(ModelError, match="nowhere among them"):
        read_buttons(game, [*keys, "nowhere"])


@pytest.mark.parametrize("condition", ["previous", "actions", "study"])
def test_conditional_gpts_train_and_resume(codes, vqvae, game, small, condition, tmp_path, weights, stop_at, stop):
    model = STUDY if condition == "study" else replace(small.model, condition=condition, condition_width=8)
    config = replace(small, model=model)
    given = {"vqvae": vqvae if condition == "study" else None, "game": game if condition == "actions" else None}
    whole = train_gpt(codes, tmp_path / "whole", config, **given)
    with pytest.raises(stop):
        train_gpt(codes, tmp_path / "parts", config, progress=stop_at(4), **given)
    train_gpt(codes, tmp_path / "parts", config, **given)
    weights(tmp_path / "whole", tmp_path / "parts")
    assert whole["preset"] == ("paper" if condition == "study" else "mixed")
    loaded = load_gpt(tmp_path / "whole")
    assert loaded.config == model
    if condition == "study":
        torch.testing.assert_close(loaded.codebook, load_vqvae(vqvae).codebook.embeddings)
    if condition == "actions":
        assert loaded.actions == ("A", "B")


def test_a_gpt_learns_what_only_the_clip_before_knows():
    """A world in which a clip repeats the random clip before it, and nothing else can be known."""
    torch.manual_seed(0)
    losses = {}
    for kind in ("none", "previous"):
        model = GPT(GPTConfig(hidden=32, n_layers=1, n_heads=2, condition=kind, condition_width=16),
                    n_codes=8, grid=(1, 1, 2)).train()  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(120):
            clip = torch.randint(8, (16, 1, 1, 2))
            loss = model(clip, Condition(previous=clip) if kind == "previous" else None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[kind] = float(loss.detach())
    assert losses["none"] > 0.9 * np.log(8)
    assert losses["previous"] < 0.6 * np.log(8)


def test_samples_are_told_the_first_frames_of_their_clips(shards):
    settings = {"hidden": 6, "n_layers": 1, "n_heads": 1, "condition": "frames", "reader": "videogpt"}
    gpt = GPT(GPTConfig(**settings, condition_width=3), n_codes=4, grid=(1, 2, 2), frames=(2, 32, 32)).eval()
    manifest = open_manifest(shards)
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    batch = ClipBatch(video=video, index=np.arange(2), segment=np.arange(2), start_frame=np.zeros(2, np.int64))
    found = condition_of_samples(gpt, None, manifest, batch, ClipSpec(8, 2, 4), None)
    np.testing.assert_array_equal(found.frames, video[:, :2])
    drawn = gpt.sample(torch.zeros(2, 0, 2, 2, dtype=torch.int64), condition=found)
    assert drawn.shape == (2, 1, 2, 2)


def test_what_a_condition_needs_is_asked_for(codes, shards, vqvae, small, tmp_path):
    with pytest.raises(ModelError, match="needs the recordings"):
        train_gpt(codes, tmp_path / "a", replace(small, model=replace(small.model, condition="actions")))
    with pytest.raises(ModelError, match="needs the tokenizer"):
        train_gpt(codes, tmp_path / "a", replace(small, model=STUDY))
    frames = replace(small.model, condition="frames", reader="study")
    with pytest.raises(ModelError, match="needs their number and size"):
        train_gpt(codes, tmp_path / "a", replace(small, model=frames))
    assert load_codes(codes).clip.stride == 4


def test_codes_of_another_tokenizer_are_refused(codes, shards, vqvae_config, small, tmp_path):
    from vidbrain.training.vqvae import train_vqvae

    train_vqvae(shards, tmp_path / "other", replace(vqvae_config, seed=5, steps=1))
    with pytest.raises(ModelError, match="belongs to a VQ-VAE of weights"):
        train_gpt(codes, tmp_path / "gpt", replace(small, model=STUDY), vqvae=tmp_path / "other")
