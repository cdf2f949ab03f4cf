"""Trainings from object storage are those from a folder: the same steps, the same weights."""

from dataclasses import replace

import pytest

from vidbrain.storage.trees import upload_tree
from vidbrain.testing.servers import moto_server
from vidbrain.training.gpt import train_gpt
from vidbrain.training.vqvae import train_vqvae


@pytest.fixture(scope="module")
def server():
    with moto_server("bucket") as found:
        yield found


def test_both_models_train_from_urls(shards, codes, vqvae_config, gpt_config, server, tmp_path, monkeypatch, weights):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    cases = (
        ("vqvae", train_vqvae, shards, replace(vqvae_config, steps=3)),
        ("gpt", train_gpt, codes, replace(gpt_config, steps=3)),
    )
    for name, train, folder, config in cases:
        upload_tree(folder, f"s3://bucket/{name}")
        here = train(folder, tmp_path / name / "here", config)
        there = train(f"s3://bucket/{name}", tmp_path / name / "there", config)
        weights(tmp_path / name / "here", tmp_path / name / "there")
        assert there["held_out"] == here["held_out"]
        assert 0 <= there["stall_share"] < 1
