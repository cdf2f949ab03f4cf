"""Planted drivers as features."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from vidbrain.errors import ModelError, StorageError
from vidbrain.features.drivers import extract_drivers, list_drivers
from vidbrain.features.store import open_features
from vidbrain.storage.info import write_info
from vidbrain.storage.zarrs import write_dataset

RUNS = {"sub-01_ses-001_task-toy_run-1": 12, "sub-01_ses-001_task-toy_run-2": 9}
NAMES = ["luminance_row-0_col-0", "button_B", "event_score"]


@pytest.fixture
def derivatives(tmp_path, rng):
    """What `vidbrain bold simulate` leaves of its truth."""
    truth = tmp_path / "simulated" / "truth"
    for run, n_trs in RUNS.items():
        values = {name: (("tr", "driver"), rng.normal(size=(n_trs, 3))) for name in ("drivers", "convolved")}
        write_dataset(truth / "drivers" / f"{run}.zarr", xr.Dataset(values))
    write_info(truth, "truth", config={}, made_from={}, facts={"runs": RUNS, "tr_s": 1.49, "driver_names": NAMES})
    return tmp_path / "simulated"


def test_drivers_arrive_as_they_were_planted(derivatives, tmp_path):
    names = ("drivers.convolved", "drivers.raw")
    extract_drivers(derivatives, tmp_path / "out", layers=names)
    store = open_features(tmp_path / "out")
    assert (store.layers, store.runs, store.tr_s) == (list(names), list(RUNS), 1.49)
    for run, n_trs in RUNS.items():
        planted = xr.open_zarr(derivatives / "truth" / "drivers" / f"{run}.zarr", chunks=None)
        for layer, variable in zip(names, ("convolved", "drivers"), strict=True):
            found = store.read(layer, run)
            np.testing.assert_array_equal(found["features"], planted[variable].astype(np.float32))
            assert found["valid"].values.all()
            assert found.attrs["driver_names"] == NAMES
            assert found.attrs["simulated"]
            np.testing.assert_allclose(found["time_s"], (np.arange(n_trs) + 0.5) * 1.49)


def test_a_second_call_and_the_truth_folder_itself_are_the_same(derivatives, tmp_path):
    record = extract_drivers(derivatives, tmp_path / "out")
    assert extract_drivers(derivatives / "truth", tmp_path / "out") == record
    assert list_drivers(derivatives)["volumes"] == 21


def test_bad_truth_is_refused(derivatives, tmp_path):
    with pytest.raises(ModelError, match=r"no layer 'drivers\.convoluted'; did you mean 'drivers\.convolved'"):
        extract_drivers(derivatives, tmp_path / "out", layers=("drivers.convoluted",))
    with pytest.raises(StorageError, match="does not exist"):
        extract_drivers(tmp_path / "nowhere", tmp_path / "out")
    run = next(iter(RUNS))
    write_dataset(
        derivatives / "truth" / "drivers" / f"{run}.zarr",
        xr.Dataset({"convolved": (("tr", "driver"), np.ones((12, 2)))}),
    )
    with pytest.raises(StorageError, match=r"shape \(12, 2\), its record says \(12, 3\)"):
        extract_drivers(derivatives, tmp_path / "out")
    assert not (tmp_path / "out" / "info.json").exists()
