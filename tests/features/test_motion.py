"""Motion energy: direction, speed, place and phase, against gratings and a direct three-dimensional sum."""

from __future__ import annotations

import numpy as np
import pytest

from vidbrain.errors import ConfigError
from vidbrain.features.controls import MotionSource
from vidbrain.features.extract import ExtractConfig, extract
from vidbrain.features.motion import (
    GREY_LEVEL,
    MotionConfig,
    motion_energy,
    reach,
    spatial_filters,
    temporal_filter,
    to_grey,
)
from vidbrain.features.pooled import Pooled
from vidbrain.features.store import open_features
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.sequential import frames_of
from vidbrain.video.clock import average_into_trs, frame_times

RATE_HZ = 15.0
CONFIG = MotionConfig(cycles=(4.0,), centres=(4,), cells=(4,), temporal_hz=(0.0, 4.0))


def drifting_grating(towards_deg, *, cycles=4.0, hz=4.0, phase=0.0, n_frames=21, size=32, amplitude=0.5):
    """Clip (1, T, size, size) of a grating that drifts towards an angle, counted from rightwards to upwards."""
    axis = (np.arange(size) + 0.5) / size
    right, down = np.meshgrid(axis, axis)
    along = right * np.cos(np.radians(towards_deg)) - down * np.sin(np.radians(towards_deg))
    times_s = np.arange(n_frames)[:, None, None] / RATE_HZ
    wave = np.cos(2 * np.pi * (cycles * along - hz * times_s) + phase)
    return (0.5 + amplitude * wave).astype(np.float32)[None]


def amplitudes(grey, config=CONFIG):
    """By drift (still, towards, away), orientation and place, mean over time."""
    found = np.exp(motion_energy(grey, RATE_HZ, config)) - GREY_LEVEL
    return found[0].mean(0).reshape(3, config.n_orientations, 4, 4)


@pytest.mark.parametrize("angle", [0, 45, 90, 135, 180, 225, 270, 315])
def test_the_right_direction_wins(angle):
    found = amplitudes(drifting_grating(angle)).mean(axis=(2, 3))
    orientation, sign = angle % 180 // 45, 1 + angle // 180
    assert np.unravel_index(found.argmax(), found.shape) == (sign, orientation)
    assert found[sign, orientation] > 10 * found[3 - sign, orientation]  # the opposite direction
    np.testing.assert_allclose(found[sign, orientation], 0.5, atol=0.03)  # the grating's own amplitude


def test_energy_does_not_depend_on_phase():
    at_phases = [amplitudes(drifting_grating(0, phase=phase))[1, 0] for phase in np.linspace(0, np.pi, 5)]
    np.testing.assert_allclose(at_phases, np.broadcast_to(at_phases[0], (5, 4, 4)), rtol=0.03)


def test_energy_grows_with_contrast_and_prefers_its_speed_and_scale():
    strong, weak = amplitudes(drifting_grating(0)), amplitudes(drifting_grating(0, amplitude=0.25))
    np.testing.assert_allclose(weak[1, 0], strong[1, 0] / 2, rtol=1e-3)
    assert amplitudes(drifting_grating(0, hz=1.0))[1, 0].mean() < 0.5 * strong[1, 0].mean()
    assert amplitudes(drifting_grating(0, cycles=10.0))[1, 0].mean() < 0.1 * strong[1, 0].mean()
    still = amplitudes(drifting_grating(0, hz=0.0))
    assert still[0, 0].mean() > 0.4
    assert still[1:].max() < 1e-3


@pytest.mark.parametrize(("angle", "hz"), [(0, 1.0), (90, 2.0), (135, 4.0), (180, 2.0), (270, 6.0)])
def test_direction_and_speed_of_a_grating_are_found(angle, hz):
    """Speed is temporal by spatial frequency: the loudest filter names both, and the direction."""
    speeds_hz = (1.0, 2.0, 4.0, 6.0)
    config = MotionConfig(
        cycles=(2.0, 4.0, 8.0), centres=(4, 4, 4), cells=(4, 4, 4), temporal_hz=speeds_hz, envelope_s=0.35, reach_s=1.0
    )
    for cycles in config.cycles:
        grey = drifting_grating(angle, cycles=cycles, hz=hz, n_frames=45)
        found = np.exp(motion_energy(grey, RATE_HZ, config))[0].mean(0).reshape(3, 4, 2, 4, 16).mean(-1)
        loudest = np.unravel_index(found.argmax(), found.shape)
        scale, speed, sign, orientation = (int(index) for index in loudest)
        assert (config.cycles[scale], speeds_hz[speed]) == (cycles, hz)
        assert (sign, orientation) == (angle // 180, angle % 180 // 45)


def test_energy_is_local():
    grey = np.full((1, 21, 32, 32), 0.5, np.float32)
    grey[..., :16, :16] = drifting_grating(90)[..., :16, :16]  # above, on the left
    found = amplitudes(grey)[1, 2]
    assert found[:2, :2].min() > 5 * found[2:, 2:].max()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_video_has_no_energy_anywhere(level):
    flat = np.full((1, 15, 32, 32), level, np.float32)
    assert amplitudes(flat).max() < 1e-5


def test_separable_filters_agree_with_a_direct_sum_over_space_and_time():
    rng = np.random.default_rng(3)
    grey = rng.random((1, 13, 32, 32), np.float32)
    n_reach = reach(CONFIG, RATE_HZ)
    gabors = spatial_filters(32, 4.0, 4, 4, 0.6).reshape(32, 32, 4, 4, 4)
    kernel = temporal_filter(4.0, RATE_HZ, CONFIG.envelope_s, n_reach)
    for sign, in_time in ((1, kernel.conj()), (2, kernel)):
        for orientation, row, column in ((0, 1, 2), (3, 0, 0)):
            even_odd = in_time[:, None, None] * gabors[:, :, orientation, row, column]
            direct = [
                np.hypot(
                    (grey[0, t : t + 2 * n_reach + 1] * even_odd.real).sum(),
                    (grey[0, t : t + 2 * n_reach + 1] * even_odd.imag).sum(),
                )
                for t in range(13 - 2 * n_reach)
            ]
            found = np.exp(motion_energy(grey, RATE_HZ, CONFIG)[0]) - GREY_LEVEL
            found = found.reshape(-1, 3, 4, 4, 4)[:, sign, orientation, row, column]
            np.testing.assert_allclose(found, direct, rtol=1e-3, atol=1e-5)


def test_real_clips_have_the_energy_of_a_direct_sum(world, tmp_path):
    extract(Pooled(MotionSource(fps=60.0, config=CONFIG)), world.data, tmp_path / "out", ExtractConfig(tr_s=0.7))
    store, label = open_features(tmp_path / "out"), "sub-01_ses-001_task-toy_run-2"
    n_reach = reach(CONFIG, RATE_HZ)
    even_odd = (
        temporal_filter(4.0, RATE_HZ, CONFIG.envelope_s, n_reach)[:, None, None]
        * (spatial_filters(32, 4.0, 4, 4, 0.6).reshape(32, 32, 4, 4, 4)[:, :, 0, 1, 2])
    )
    times, values = [], []
    for key, onset_s, n_frames, duration_s in world.clocks[label]:
        frames = np.concatenate([block for _, block in frames_of(open_manifest(world.data), key)])
        grey = frames @ np.array([0.299, 0.587, 0.114]) / 255  # as large as the filters
        energy = np.zeros(n_frames)
        for frame in range(n_frames):  # shorter than a clip, so that clips begin at 0
            around = np.clip(frame // 4 * 4 + 4 * np.arange(-n_reach, n_reach + 1), 0, n_frames - 1)
            energy[frame] = np.abs((grey[around] * even_odd).sum())
        values.append(np.log(energy + GREY_LEVEL))
        times.append(frame_times(onset_s, duration_s, n_frames))
    found = store.read("motion.energy", label)
    means, counts = average_into_trs(np.concatenate(values)[:, None], np.concatenate(times), 0.7, found.sizes["tr"])
    mine = found["features"].values.reshape(-1, 3, 4, 4, 4)[:, 2, 0, 1, 2]
    np.testing.assert_allclose(mine[counts > 0], means[counts > 0, 0], rtol=1e-3, atol=1e-3)
    assert mine[counts > 0].std() > 0.01


def test_cells_average_energy_over_their_filters():
    grey = np.random.default_rng(4).random((2, 13, 32, 32), np.float32)
    fine = MotionConfig(cycles=(8.0,), centres=(8,), cells=(8,), temporal_hz=(4.0,))
    coarse = MotionConfig(cycles=(8.0,), centres=(8,), cells=(2,), temporal_hz=(4.0,))
    energy = (np.exp(motion_energy(grey, RATE_HZ, fine)) - GREY_LEVEL) ** 2
    expected = np.sqrt(energy.reshape(2, 3, 2, 4, 2, 4, 2, 4).mean(axis=(5, 7)).reshape(2, 3, -1))
    np.testing.assert_allclose(
        np.exp(motion_energy(grey, RATE_HZ, coarse)) - GREY_LEVEL, expected, rtol=2e-3, atol=1e-5
    )
    assert coarse.n_features == expected.shape[-1]


def test_grey_is_the_luma_of_area_means():
    video = np.random.default_rng(5).integers(0, 256, (2, 3, 64, 96, 3), np.uint8)
    expected = (video @ np.array([0.299, 0.587, 0.114]) / 255).reshape(2, 3, 32, 2, 32, 3).mean(axis=(3, 5))
    np.testing.assert_allclose(to_grey(video, 32), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cycles": (2.0,)},
        {"cycles": (2.0, 4.0, 20.0)},
        {"cells": (2, 3, 4)},
        {"temporal_hz": ()},
        {"temporal_hz": (-1.0,)},
    ],
)
def test_impossible_filters_are_refused(wrong):
    with pytest.raises(ConfigError):
        MotionConfig(**wrong)
