"""Continuations as films, and of GPTs that are told something."""

import json
from dataclasses import replace

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageSequence

from vidbrain.cli.app import run
from vidbrain.errors import ConfigError, ModelError
from vidbrain.sharding.manifest import open_manifest
from vidbrain.training.film import tile, write_film
from vidbrain.training.gpt import train_gpt
from vidbrain.training.samples import SamplesConfig, write_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("film")
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, (2, 5, 8, 6, 3), dtype=np.uint8) for name in ("original", "sampled")}
    np.savez(root / "samples.npz", **arrays, prompt_frames=np.int64(3))
    return root, arrays


def test_pictures_lie_where_they_should_and_light_up_after_the_prompt(samples):
    _, arrays = samples
    film = tile(arrays, 3, scale=2)
    assert film.shape == (5, 2 * 18 + 2, 2 * 14 + 2, 3)
    np.testing.assert_array_equal(film[:, 2:18:2, 2:14:2], arrays["original"][0])
    np.testing.assert_array_equal(film[:, 21:36:2, 17:28:2], arrays["sampled"][1])
    assert [int(f[0, 14, 0]) for f in film] == [24, 24, 24, 200, 200]
    assert (film[:, 0, 0] == 24).all()


def test_gif_and_mp4_are_read_by_others(samples, tmp_path):
    root, arrays = samples
    film = tile(arrays, 3)
    with Image.open(write_film(root, tmp_path / "a.gif")) as gif:
        pictures = [np.asarray(p.convert("RGB"), np.float64) for p in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] == 70
    assert len(pictures) == 5
    assert np.abs(pictures[0] - film[0]).mean() < 12  # 256 colours a picture
    with av.open(str(write_film(root, tmp_path / "a.mp4"))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 15
    assert np.stack(frames).shape == film.shape
    assert np.abs(np.stack(frames) - film.astype(np.float64)).mean() < 40  # noise in 4:2:0


def test_bad_films_are_refused(samples, tmp_path):
    with pytest.raises(ConfigError, match=r"not '\.avi'"):
        write_film(samples[0], tmp_path / "a.avi")
    with pytest.raises(ModelError, match="no samples"):
        write_film(tmp_path, tmp_path / "a.gif")


@pytest.mark.parametrize("condition", ["previous", "actions"])
def test_a_conditional_gpt_is_told_when_it_samples(shards, vqvae, codes, gpt_config, tmp_path, condition, capsys):
    game = shards.parent / "videos"
    for key, row in open_manifest(shards).recordings.iterrows():
        n = int(row["recording_frames"])
        pd.DataFrame({"frame": np.arange(n), "A": np.arange(n) % 3 == 0}).to_parquet(game / f"{key}.parquet")
    model = replace(gpt_config.model, condition=condition, condition_width=4)
    given = {"game": game if condition == "actions" else None}
    train_gpt(codes, tmp_path / "gpt", replace(gpt_config, steps=2, model=model), **given)
    command = ["sample", str(shards), "--vqvae", str(vqvae), "--gpt", str(tmp_path / "gpt"), "--out", str(tmp_path)]
    command += ["--n-clips", "3", "--json", *(["--game", str(game)] if given["game"] else [])]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["film"] == str(tmp_path / "samples.gif")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as found:
        assert found["sampled"].shape == (3, 8, 32, 32, 3)
        assert condition != "previous" or found["start_frame"].min() >= 16
    if condition == "actions":
        with pytest.raises(ModelError, match="needs the recordings"):
            write_samples(vqvae, tmp_path / "gpt", shards, tmp_path / "other", SamplesConfig(n_clips=1))
