"""The simulation study of tools/bench at small size: what p, q and families promise, they keep."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "validity.py"
N = 150


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("validity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures(study):
    world = study.World(n_surrogates=240)
    with threadpool_limits(1):
        return study.judge(world, study.gather(world, N, first_seed=5000))


VALID = ["held-out shift", "held-out block", "cross-validated shift", "cross-validated block"]
EXACT = ["held-out shift", "held-out block", "cross-validated surrogates"]

WRONG = ["held-out parametric", "cross-validated parametric", "cross-validated shift, not widened"]


def within(cell, bound):
    return cell["mean"] <= bound + 3 * cell["se"]


@pytest.mark.parametrize("name", [*VALID, "cross-validated surrogates"])
def test_noise_is_called_significant_no_more_often_than_stated(figures, name):
    for level, cell in figures[name]["noise_p_at_or_below"].items():
        assert within(cell, float(level))
    assert figures[name]["ks_p_of_too_small"] > 0.01
    assert within(figures[name]["bh_0.05"]["false_discovery_rate"], 0.05)
    assert figures[name]["by_0.05"]["false_discovery_rate"]["mean"] < 0.02


@pytest.mark.parametrize("name", EXACT)
def test_p_is_uniform_where_nothing_is_bounded(figures, name):
    assert figures[name]["ks_p"] > 0.01
    share = figures[name]["noise_p_at_or_below"]["0.05"]
    assert share["mean"] == pytest.approx(0.05, abs=3 * share["se"])


@pytest.mark.parametrize(
    "name", ["held-out parametric", "cross-validated parametric", "cross-validated shift, not widened"]
)
def test_p_that_forget_autocorrelation_or_shared_folds_are_wrong(figures, name):
    assert figures[name]["noise_p_at_or_below"]["0.05"]["mean"] > 0.09
    assert figures[name]["bh_0.05"]["false_discovery_rate"]["mean"] > 0.09


@pytest.mark.parametrize("name", VALID)
def test_family_wise_error_holds(figures, name):
    assert within(figures[name]["family_wise_error_0.05"], 0.05)


def test_planted_voxels_are_found_with_the_stated_power(figures):
    row = figures["held-out shift"]
    for level, stated in row["stated_planted_p_at_or_below"].items():
        assert row["oracle_planted_p_at_or_below"][level] == pytest.approx(stated, abs=0.05)
        assert row["planted_p_at_or_below"][level]["mean"] > stated - 0.08
    for name, share in (("cross-validated surrogates", 0.95), ("cross-validated shift", 0.93)):
        row = figures[name]
        assert row["bh_0.05"]["power"]["mean"] > share * row["oracle_bh_0.05"]["power"]["mean"]


def test_intervals_cover_nearly_as_often_as_they_aim_at(figures):
    assert 0.83 < figures["held-out interval"]["coverage_of_95"]["percentile"]["mean"] < 0.98


def test_shuffled_trs_inflate_r_of_noise_and_whole_runs_do_not(study):
    with threadpool_limits(1):
        found = study.leak(6, first_seed=0)
    assert found["shuffled TRs"]["mean"] > 0.4
    assert np.abs(found["whole runs"]["mean"]) < 4 * found["whole runs"]["se"] + 0.02
