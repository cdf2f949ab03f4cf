import numpy as np
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix

from vidbrain.bold.simulation.noise import (
    ar1,
    cosine_drifts,
    edge_maps,
    framewise_displacement,
    motion_traces,
    smooth_noise,
)


def test_memory_is_what_was_asked_for():
    rng = np.random.default_rng(0)
    whole = ar1(rng.standard_normal((400, 2000)), 0.3)
    lagged = np.mean(whole[1:] * whole[:-1]) / np.mean(whole**2)
    assert lagged == pytest.approx(0.3, abs=0.005)
    assert whole.std() == pytest.approx(1.0, abs=0.005)
    assert whole[0].std() == pytest.approx(1.0, abs=0.05)  # stationary from the first volume


def test_memory_goes_on_across_blocks():
    fresh = np.random.default_rng(1).standard_normal((10, 5)).astype(np.float32)
    whole = ar1(fresh, 0.4)
    first = ar1(fresh[:4], 0.4)
    assert np.array_equal(np.concatenate([first, ar1(fresh[4:], 0.4, first[-1])]), whole)


@pytest.mark.parametrize("sigma", [0.3, 0.64, 1.5])
def test_smooth_noise_has_unit_variance_and_a_gaussian_correlation(sigma):
    noise = smooth_noise(np.random.default_rng(2), 60, (20, 22, 24), sigma).astype(float)
    assert noise.std() == pytest.approx(1.0, abs=0.02)
    x = np.arange(-8, 9)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    expected = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
    lagged = np.mean(noise * np.roll(noise, 1, axis=1)) / np.mean(noise**2)
    assert lagged == pytest.approx(expected, abs=0.01)


def test_cosines_span_what_nilearn_makes():
    n, tr = 200, 1.49
    mine = cosine_drifts(n, tr)
    design = make_first_level_design_matrix(np.arange(n) * tr, drift_model="cosine", high_pass=1 / 128)
    theirs = design.filter(like="drift").to_numpy()
    assert mine.shape == theirs.shape == (n, 4)
    assert np.allclose(mine / mine[0], theirs / theirs[0])
    assert cosine_drifts(20, tr).shape == (20, 0)


def test_framewise_displacement_equals_a_naive_loop():
    traces = motion_traces(np.random.default_rng(3), 50)
    found = framewise_displacement(traces)
    assert np.isnan(found[0])
    for t in range(1, 50):
        step = np.abs(traces[t] - traces[t - 1])
        assert found[t] == pytest.approx(step[:3].sum() + 50 * step[3:].sum())
    assert 0.01 < np.nanmean(found) < 0.5  # millimetres: as people move


def test_edges_are_the_change_of_a_displaced_image():
    x, y, z = np.indices((16, 17, 18), float) - 8
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -32.0

    def image(dx: float, turn: float) -> np.ndarray:
        # The head at +dx shows what was dx before; turned about z by `turn`.
        u, v = 4 * x, 4 * y
        a = np.cos(turn) * u - np.sin(turn) * v + dx
        b = np.sin(turn) * u + np.cos(turn) * v
        return 1000.0 * np.exp(-((a - 5) ** 2 + (b + 3) ** 2 + (4 * z) ** 2) / 3000)

    maps = edge_maps(image(0, 0), affine, 1.0)
    inside = np.s_[3:-3, 3:-3, 3:-3]
    for column, (moved, size) in {0: (image(1e-3, 0), 1e-3), 5: (image(0, 1e-5), 1e-5)}.items():
        expected = (moved - image(0, 0)) / size / np.maximum(image(0, 0), 0.05 * image(0, 0).max())
        assert np.corrcoef(maps[column][inside].ravel(), expected[inside].ravel())[0, 1] > 0.99
        assert np.abs(maps[column][inside] - expected[inside]).max() < 0.1 * np.abs(expected[inside]).max()
