"""The benchmark of the ridge engine runs, compares equal answers, and counts honestly."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "encode.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_encode", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_small_shape_runs_and_the_answers_agree(bench, capsys):
    figures = bench.measure("tiny", 1, 1, ["himalaya", "scikit-learn"])
    assert figures["same_alpha_share"] == 1
    assert figures["largest_cv_r_difference"] < 1e-5
    assert set(figures["ratio"]) == {"himalaya", "scikit-learn"}
    bench.show(json.loads(json.dumps(figures)))
    assert "share of the GEMM floor" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "p"), [(60, 8), (60, 15)])
def test_operations_are_those_of_the_products_without_zeros(bench, n, p):
    t, r, k = 3, 4, 4
    counted = bench.count_flops(bench.Shape(n, p, t, r, k, {}))
    held = min(n // k, p)
    factor = np.triu(np.ones((held, p)))
    expected = 2 * n * p * t
    expected += k * 2 * p * p * t  # Z
    expected += k * 2 * p * held * t  # W
    expected += k * r * (2 * np.count_nonzero(factor) + 2 * p) * t
    expected += 2 * 2 * p * p * t
    assert counted["all"] == expected


def test_operations_with_more_columns_than_rows_are_those_of_smoothers(bench):
    n, p, t, r, k = 12, 40, 3, 4, 4
    to_z, smoother = np.ones((n - 1, n)), np.ones((n // k, n - 1))
    lift = np.ones((p, n))
    expected = 2 * to_z.size * t + k * r * 2 * smoother.size * t + 2 * (2 * to_z.size + lift.size) * t
    assert bench.count_flops(bench.Shape(n, p, t, r, k, {}))["all"] == expected


def test_an_estimate_from_a_share_is_a_line_through_two_points(bench, monkeypatch):
    monkeypatch.setattr(bench, "timed", lambda work: (work(), None))
    assert bench.seconds_of_all(lambda count: 5.0 + 0.1 * count, 1000, 0.2, 1) == pytest.approx(105.0)
    assert bench.seconds_of_all(lambda count: 5.0 + 0.1 * count, 1000, 1.0, 1) == pytest.approx(105.0)
