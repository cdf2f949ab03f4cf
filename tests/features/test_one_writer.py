"""A feature set has one writer, whatever its source."""

import numpy as np
import pytest
import xarray as xr

from vidbrain.cli.app import run
from vidbrain.features.store import open_features
from vidbrain.storage.info import write_info
from vidbrain.storage.locks import LOCK
from vidbrain.storage.zarrs import write_dataset


def words_of(source, world, tmp_path, rng):
    """A command that makes features, and the function in which it is held."""
    if source == "pixels":
        return ["pixels", "--shards", str(world.data), "--layers", "pixels.grey"], "extract._extract_run"
    if source == "arrays":
        folder = tmp_path / "arrays"
        folder.mkdir()
        times = np.arange(30) * 1.0
        np.savez(folder / "sub-01_ses-001_task-toy_run-1.npz", features=rng.normal(size=(30, 3)), times_s=times)
        return [f"arrays:{folder}"], "timed._extract_run"
    truth = tmp_path / "truth"
    dataset = {name: (("tr", "driver"), rng.normal(size=(12, 2))) for name in ("drivers", "convolved")}
    write_dataset(truth / "drivers" / "sub-01_task-toy_run-1.zarr", xr.Dataset(dataset))
    facts = {"runs": {"sub-01_task-toy_run-1": 12}, "tr_s": 1.49, "driver_names": ["a", "b"]}
    write_info(truth, "truth", config={}, made_from={}, facts=facts)
    return ["drivers", "--truth", str(truth)], "drivers.write_run"


@pytest.mark.parametrize("source", ["pixels", "arrays", "drivers"])
def test_a_second_process_is_refused(world, tmp_path, rng, holding, capsys, source):
    words, where = words_of(source, world, tmp_path, rng)
    out = tmp_path / "out"
    words = ["features", *words, "--out", str(out)]
    with holding(f"vidbrain.features.{where}", *words):
        assert (out / LOCK).is_file()
        assert run(words) == 1
        assert "another process writes here" in " ".join(capsys.readouterr().err.split())
        assert not (out / "info.json").exists()
    assert open_features(out).runs
    (out / LOCK).touch()  # as a kill after the root record leaves it
    assert run(words) == 0
    assert not (out / LOCK).exists()
