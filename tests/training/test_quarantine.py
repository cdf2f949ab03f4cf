"""Damaged clips that any process met are in the checkpoint, and known again in a world of another size."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ShardError
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.training.checkpoint import load_state
from vidbrain.training.vqvae import VQVAETrainConfig, train_vqvae

SCRIPT = """
import json, os, sys
from pathlib import Path
from vidbrain.config import from_mapping
from vidbrain.training import vqvae

data, out, log, config, steps = sys.argv[1:]

class Stop(Exception):
    pass

class Listener:
    left = int(steps)
    def start(self, stage, total, unit, done=0):
        pass
    def advance(self, amount=1, **numbers):
        self.left -= 1
        if not self.left:
            raise Stop
    def note(self, message):
        pass
    def finish(self):
        pass

class Logged(vqvae.VQVAETask):
    def begin(self, parts):
        self.at_start = self.loader.bad_clips
        super().begin(parts)
    def loss(self, model, batch):
        bad = self.loader.bad_clips
        (Path(log) / os.environ["RANK"]).write_text(json.dumps(bad))
        first = Path(log) / ("first-" + os.environ["RANK"])
        if not first.exists():
            first.write_text(json.dumps(bad))
        return super().loss(model, batch)

vqvae.VQVAETask = Logged
try:
    vqvae.train_vqvae(data, Path(out), from_mapping(vqvae.VQVAETrainConfig, json.loads(config)), progress=Listener())
except Stop:
    # Both leave here: a process that tears a group down alone would wait for the other.
    os._exit(0)
"""


@pytest.fixture
def damaged(shards, tmp_path):
    """Shards of which every fourth segment of the training recordings has a bit turned."""
    root = tmp_path / "data"
    shutil.copytree(shards, root)
    table = open_manifest(root).segments
    for position in np.flatnonzero(table["split"] == "train")[::4]:
        row = table.iloc[position]
        path = shard_path(root, row["shard"])
        data = bytearray(path.read_bytes())
        data[row["offset"] + int(row["parts"][0]) // 2] ^= 8
        path.write_bytes(data)
    return root


def test_quarantine_of_all_processes_survives_in_any_world(damaged, vqvae_config, together, tmp_path):
    config = replace(vqvae_config, bad_share=0.5, steps=8, checkpoint_every=5, eval_every=100, eval_clips=4)
    words = json.dumps(to_mapping(config))
    logs = {size: tmp_path / f"log-{size}" for size in (2, 1)}
    for log in logs.values():
        log.mkdir()
    together(2, SCRIPT, damaged, tmp_path / "out", logs[2], words, 6)
    met = [set(map(int, json.loads((logs[2] / rank).read_text()))) for rank in "01"]
    first = load_state(tmp_path / "out" / "checkpoints" / "step-00000005" / "state.pt")
    saved = set(first["stream"]["quarantine"])
    assert saved & (met[0] - met[1])
    assert saved & (met[1] - met[0])
    assert saved <= met[0] | met[1]
    together(1, SCRIPT, damaged, tmp_path / "out", logs[1], words, 100)
    known = {int(clip): why for clip, why in json.loads((logs[1] / "first-0").read_text()).items()}
    assert saved <= set(known)
    assert {known[clip] for clip in saved} == {"listed in the state"}
    last = load_state(tmp_path / "out" / "checkpoints" / "step-00000008" / "state.pt")
    assert saved <= set(last["stream"]["quarantine"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["bad_clips"] >= len(saved)


def test_by_default_the_first_damaged_clip_stops_a_training_which_goes_on_when_it_may(damaged, vqvae_config, tmp_path):
    config = replace(vqvae_config, steps=5, eval_every=100, eval_clips=4)
    with pytest.raises(ShardError) as caught:
        train_vqvae(damaged, tmp_path / "out", config)
    assert "vidbrain verify" in caught.value.hint
    assert train_vqvae(damaged, tmp_path / "out", replace(config, bad_share=0.5))["bad_clips"] > 0
    with pytest.raises(ConfigError, match="bad_share is a share"):
        VQVAETrainConfig(bad_share=1.0)
