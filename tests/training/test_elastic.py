"""torchrun, a rank killed at a random moment, and a restart in a world of another size: the batches go on exactly."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from vidbrain.config import to_mapping
from vidbrain.stream.loader import stream

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys
from pathlib import Path
from vidbrain.config import from_mapping
from vidbrain.training import vqvae

data, out, log, config = sys.argv[1:]

class Logged(vqvae.VQVAETask):
    def loss(self, model, batch):
        with open(Path(log) / os.environ["RANK"], "a") as handle:
            print(json.dumps([os.getpid(), batch.epoch, batch.number, batch.index.tolist()]), file=handle)
        return super().loss(model, batch)

vqvae.VQVAETask = Logged
vqvae.train_vqvae(Path(data), Path(out), from_mapping(vqvae.VQVAETrainConfig, json.loads(config)))
"""


def torchrun(size, script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), str(script)]
        + [str(argument) for argument in arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )


def rows_of(log, size):
    """What each rank trained on: (pid, epoch, number, clips), a line that a kill cut left out."""
    lines = [(log / str(rank)).read_text().splitlines(keepends=True) for rank in range(size)]
    return [[json.loads(line) for line in each if line.endswith("\n")] for each in lines]


@pytest.fixture(scope="module")
def config(vqvae_config):
    return replace(vqvae_config, steps=14, eval_every=1000, eval_clips=8, checkpoint_every=2)


@pytest.fixture(scope="module")
def undisturbed(shards, config):
    """Epoch, number and clips of the batches of all steps."""
    loader = stream(shards, clip=config.clip, batch_size=config.batch_size, seed=config.seed, split="train")
    batches = []
    while len(batches) < config.steps:
        batches += [[batch.epoch, batch.number, batch.index.tolist()] for batch in loader]
    return batches[: config.steps]


@pytest.fixture(scope="module")
def killed(shards, config, undisturbed, tmp_path_factory):
    """A training by two ranks of which one was killed."""
    root = tmp_path_factory.mktemp("killed")
    (root / "script.py").write_text(SCRIPT)
    (root / "log").mkdir()
    run = torchrun(2, root / "script.py", shards, root / "out", root / "log", json.dumps(to_mapping(config)))
    victim, at = str(random.randrange(2)), random.randrange(4, 10)
    until = time.monotonic() + 300
    while time.monotonic() < until and run.poll() is None:
        path = root / "log" / victim
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if len(lines) >= at and lines[-1].endswith("\n"):
            os.kill(json.loads(lines[-1])[0], signal.SIGKILL)
            break
        time.sleep(0.005)
    _, err = run.communicate(timeout=300)
    assert run.returncode != 0
    assert "SIGKILL" in err
    for ranks, expected in zip(zip(*rows_of(root / "log", 2), strict=False), undisturbed, strict=False):
        assert [*ranks[0][1:3], ranks[0][3] + ranks[1][3]] == expected
    return root


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_killed_world_goes_on_as_another(shards, config, undisturbed, killed, tmp_path, size):
    shutil.copytree(killed / "out", tmp_path / "out")
    (tmp_path / "log").mkdir()
    saved = max(int(path.name.split("-")[1]) for path in (tmp_path / "out" / "checkpoints").glob("step-*[0-9]"))
    run = torchrun(
        size, killed / "script.py", shards, tmp_path / "out", tmp_path / "log", json.dumps(to_mapping(config))
    )
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    found = [
        [*ranks[0][1:3], [clip for row in ranks for clip in row[3]]]
        for ranks in zip(*rows_of(tmp_path / "log", size), strict=True)
    ]
    assert 2 <= saved < config.steps
    assert found == undisturbed[saved:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["processes"], summary["steps"]) == (size, config.steps)
