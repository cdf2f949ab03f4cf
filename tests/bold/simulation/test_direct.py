"""A store that is simulated without NIfTI files holds what ingesting those files gives; the files are the oracle."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidbrain.bold.ingest import ingest
from vidbrain.bold.simulation.experiment import SimulateConfig
from vidbrain.bold.simulation.simulate import simulate, simulate_features
from vidbrain.bold.store import open_bold
from vidbrain.cluster import client
from vidbrain.errors import BoldError, ConfigError, ResumeError, StorageError
from vidbrain.storage.locks import locked
from vidbrain.testing.brains import ToyFeatures

CONFIG = SimulateConfig(resolution_mm=14, private_share=0.3, seed=2)


def film(n_trs=90):
    rng = np.random.default_rng(0)
    runs = {f"sub-01_task-film_run-{n}": rng.standard_normal((n_trs, 3)).astype(np.float32) for n in (2, 11)}
    return ToyFeatures({"toy": runs}, tr_s=1.37)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assert_same_runs(one, two):
    """All that two stores hold is equal: series but for the last bit of float32, and everything else."""
    assert one.runs == two.runs
    for run in one.runs:
        a, b = one.open(run), two.open(run)
        assert (
            np.abs(a["bold"].values - b["bold"].values).max() <= 2 * np.finfo(np.float32).eps * np.abs(b["bold"]).max()
        )
        assert a["bold"].encoding["shards"] == b["bold"].encoding["shards"]
        for name in (set(a.variables) | set(b.variables)) - {"bold"}:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].attrs == b[name].attrs
        for name in (
            "clean",
            "affine",
            "shape",
            "space",
            "confound_names",
            "slope",
            "source",
            "source_dtype",
            "simulated",
        ):
            assert a.attrs[name] == b.attrs[name], name
        one.verify(run)
    for name in ("tr_s", "n_voxels", "shape", "affine", "space", "source", "simulated", "config"):
        assert one.info[name] == two.info[name], name


def test_game_play_gives_the_store_that_its_files_give(tree, derivatives, store_root, tmp_path):
    config = SimulateConfig(resolution_mm=12, ceiling=0.65, seed=3)  # as the fixtures are made
    simulate(tree, tmp_path / "s", config, store=tmp_path / "b")
    assert_same_runs(open_bold(tmp_path / "b"), open_bold(store_root))
    direct, files = files_of(tmp_path / "s"), files_of(derivatives)
    left_out = {name for name in files if name.endswith("desc-preproc_bold.nii.gz")}
    assert set(direct) == set(files) - left_out
    for name in set(direct):
        if name.endswith("desc-preproc_bold.json"):  # all but the checksum of the file that is not there
            assert json.loads(direct[name]).items() < json.loads(files[name]).items()
        else:
            assert direct[name] == files[name], name
    # The files can still be made: they are those that would have been made at once.
    simulate(tree, tmp_path / "s", config)
    assert files_of(tmp_path / "s") == files
    again = open_bold(tmp_path / "b").info
    simulate(tree, tmp_path / "s", config, store=tmp_path / "c")
    assert files_of(tmp_path / "s") == files
    assert files_of(tmp_path / "c") == files_of(tmp_path / "b")
    assert open_bold(tmp_path / "c").info == again


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_features_give_the_store_that_their_files_give(tmp_path, dtype):
    config = replace(CONFIG, dtype=dtype)
    simulate_features(film(), tmp_path / "s", config, n_subjects=2)
    ingest(tmp_path / "s", tmp_path / "b")
    simulate_features(film(), tmp_path / "t", config, n_subjects=2, store=tmp_path / "c")
    assert_same_runs(open_bold(tmp_path / "c"), open_bold(tmp_path / "b"))
    assert not list((tmp_path / "t").rglob("*_bold.nii.gz"))
    before = files_of(tmp_path / "c")
    simulate_features(film(), tmp_path / "t", config, n_subjects=2, store=tmp_path / "c")
    assert files_of(tmp_path / "c") == before


KILLED = """
import os, signal, sys
import vidbrain.bold.run as worker
columns = worker.write_by_columns
def killed(path, what, parts, finish):
    def last():
        if "run-11" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return finish()
    columns(path, what, parts, last)
worker.write_by_columns = killed
import test_direct
test_direct.simulate_features(test_direct.film(), sys.argv[1], test_direct.CONFIG, store=sys.argv[2])
"""


def test_workers_and_kills_do_not_change_a_byte(tmp_path):
    simulate_features(film(), tmp_path / "s", CONFIG, store=tmp_path / "b")
    with client("local", 2) as two:
        simulate_features(film(), tmp_path / "t", CONFIG, store=tmp_path / "c", client=two)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    words = [sys.executable, "-c", KILLED, str(tmp_path / "u"), str(tmp_path / "d")]
    assert subprocess.run(words, env=environment, check=False).returncode == -signal.SIGKILL
    with pytest.raises(StorageError, match="unfinished"):
        open_bold(tmp_path / "d")
    simulate_features(film(), tmp_path / "u", CONFIG, store=tmp_path / "d")
    for name in "cd":
        assert files_of(tmp_path / name) == files_of(tmp_path / "b")
    for name in "tu":
        assert files_of(tmp_path / name) == files_of(tmp_path / "s")


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a folder of its own"):
        simulate_features(film(), tmp_path / "s", CONFIG, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    with locked(tmp_path / "b"), pytest.raises(StorageError, match="another process"):
        simulate_features(film(), tmp_path / "s", CONFIG, store=tmp_path / "b")
    simulate_features(film(), tmp_path / "s", CONFIG, store=tmp_path / "b")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(ResumeError, match="simulation was"):
        simulate_features(film(), tmp_path / "s", replace(CONFIG, seed=9), store=tmp_path / "b")
    with pytest.raises(BoldError, match="volumes cannot bear"):
        simulate_features(film(20), tmp_path / "short", CONFIG, store=tmp_path / "c")


def test_a_simulated_store_that_lost_a_run_is_made_whole_by_the_same_call(tree, tmp_path):
    config = SimulateConfig(resolution_mm=16, ceiling=0.65, seed=3)
    simulate(tree, tmp_path / "s", config, store=tmp_path / "b")
    whole = files_of(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / f"{open_bold(tmp_path / 'b').runs[0]}.zarr")
    simulate(tree, tmp_path / "s", config, store=tmp_path / "b")
    assert files_of(tmp_path / "b") == whole
