"""Many voxels: adjusted p against SciPy, the maximum against a plain count and a planted family."""

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.inference import null
from vidbrain.encoding.inference.multiple import benjamini_hochberg, benjamini_yekutieli, max_statistic
from vidbrain.testing.brains import ar1


@pytest.mark.parametrize(("adjust", "method"), [(benjamini_hochberg, "bh"), (benjamini_yekutieli, "by")])
def test_q_equals_scipy(adjust, method):
    p = np.random.default_rng(0).random(500) ** 2
    p[10:20] = p[10]  # ties
    p[0], p[1] = 0, 1
    np.testing.assert_allclose(adjust(p), scipy.stats.false_discovery_control(p, method=method))
    assert adjust(np.array([])).shape == (0,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        adjust(np.array([0.5, np.nan]))


def test_max_statistic_counts():
    maxima = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    observed = np.array([0.4, 0.35, 0.05, 0.5], np.float32)
    expected = [(1 + sum(m >= value for m in maxima)) / 5 for value in observed]
    np.testing.assert_array_equal(max_statistic(observed, maxima), expected)
    assert max_statistic(np.array([np.nan], np.float32), maxima) == 1


def test_family_wise_error_holds_and_planted_voxels_are_found():
    rng = np.random.default_rng(0)
    n, t, false_alarm, found = 200, 40, [], []
    drawn = null.draw_shifts([n], 199, seed=0)
    for _ in range(200):
        predicted, measured = ar1(rng, n, t, 0.5), ar1(rng, n, t, 0.5)
        measured[:, 0] += predicted[:, 0]
        p, y = null.unit_series([predicted], [measured])
        test = null.p_values(drawn, null.products(drawn, p, y), spread=1)
        family = max_statistic(test.observed, test.maxima)
        false_alarm.append((family[1:] <= 0.05).any())
        found.append(family[0] <= 0.05)
    assert scipy.stats.binomtest(sum(false_alarm), 200, 0.05, alternative="greater").pvalue > 0.01
    assert np.mean(found) > 0.95
