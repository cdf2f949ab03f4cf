"""Shards and codes of a toy game, small enough to train on in seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from vidbrain.models.gpt import GPTConfig
from vidbrain.models.vqvae import VQVAEConfig
from vidbrain.records import ClipSpec
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.training.gpt import GPTTrainConfig
from vidbrain.training.tokenize import TokenizeConfig, tokenize
from vidbrain.training.vqvae import VQVAETrainConfig, train_vqvae

SMALL = {
    "model": VQVAEConfig(
        downsample=(2, 8, 8), patch=(2, 8, 8), n_hidden=16, n_res_layers=1, n_codes=16, code_dim=8, codebook_decay=0.9
    ),
    "clip": ClipSpec(8, 2, 4),
    "steps": 12,
    "batch_size": 8,
    "warmup": 2,
    "log_every": 4,
    "eval_every": 6,
    "eval_clips": 16,
    "checkpoint_every": 3,
}


class Stop(Exception):  # noqa: N818 -- not an error
    """Raised by a listener, to stop a training where no clean-up can run."""


class StopAt:
    """A listener that raises when it has heard of so many steps."""

    def __init__(self, steps):
        self.left = steps

    def start(self, stage, total, unit, done=0):
        self.found = done

    def advance(self, amount=1, **numbers):
        self.left -= amount
        if self.left <= 0:
            raise Stop

    def note(self, message):
        pass

    def finish(self):
        pass


@pytest.fixture
def stop_at():
    return StopAt


@pytest.fixture
def stop():
    return Stop


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    for i, n in enumerate((150, 90, 231, 120)):
        write_video(root / "videos" / f"play-{i}.mp4", toy_frames(n, seed=i))
    config = ShardConfig(frame_size=32, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2, val_share=0.2)
    write_shards(root / "videos", root / "data", config)
    return root / "data"


@pytest.fixture(scope="session")
def vqvae_config():
    return VQVAETrainConfig(**SMALL)


@pytest.fixture(scope="session")
def vqvae(shards, vqvae_config):
    root = shards.parent / "vqvae"
    train_vqvae(shards, root, vqvae_config)
    return root


@pytest.fixture(scope="session")
def codes(shards, vqvae):
    tokenize(shards, vqvae, shards.parent / "codes", TokenizeConfig(stride=4, batch_size=16))
    return shards.parent / "codes"


@pytest.fixture(scope="session")
def gpt_config():
    return GPTTrainConfig(
        model=GPTConfig(hidden=16, n_layers=1, n_heads=2, dropout=0.1),
        steps=30,
        batch_size=8,
        lr=1e-2,
        warmup=3,
        log_every=5,
        eval_every=10,
        checkpoint_every=8,
    )


@pytest.fixture
def weights():
    from safetensors.numpy import load_file

    def same(a, b):
        first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
        assert first.keys() == second.keys()
        for name, value in first.items():
            np.testing.assert_array_equal(value, second[name], err_msg=name)

    return same


@pytest.fixture
def together():
    """Run a script in so many training processes, as torchrun starts them, to a good end."""

    def run(size, script, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]
        ends = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0] * size, ends
        return [out for out, _ in ends]

    return run
