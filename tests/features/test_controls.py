"""Luminance against NumPy, frame by frame, and on real clips."""

from __future__ import annotations

import numpy as np
import pytest

from vidbrain.errors import ModelError
from vidbrain.features.controls import LUMINANCE_LAYERS, LuminanceSource
from vidbrain.features.extract import ExtractConfig, extract
from vidbrain.features.pooled import Pooled
from vidbrain.features.store import open_features
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.sequential import frames_of
from vidbrain.video.clock import average_into_trs, frame_times

RUN = "sub-01_ses-001_task-toy_run-1"


def test_luminance_agrees_with_a_loop_over_frames(world, tmp_path):
    extract(Pooled(LuminanceSource()), world.data, tmp_path / "out", ExtractConfig(tr_s=0.9))
    store = open_features(tmp_path / "out")
    assert store.layers == list(LUMINANCE_LAYERS)
    manifest = open_manifest(world.data)
    times, values = [], []
    for key, onset_s, n_frames, duration_s in world.clocks[RUN]:
        luma = np.concatenate([b for _, b in frames_of(manifest, key)]) @ np.array([0.299, 0.587, 0.114]) / 255
        found, cover = np.zeros((n_frames, 3)), np.zeros((n_frames, 1))
        for start in [*range(0, max(0, n_frames - 256), 256), max(0, n_frames - 256)]:
            for sampled in range(start, start + 256, 4):
                now, before = luma[min(sampled, n_frames - 1)], luma[min(max(sampled - 4, 0), n_frames - 1)]
                found[sampled : sampled + 4] += [now.mean(), now.std(), np.abs(now - before).mean()]
                cover[sampled : sampled + 4] += 1
        values.append(found / cover)
        times.append(frame_times(onset_s, duration_s, n_frames))
    n_trs = store.read("luminance.mean", RUN).sizes["tr"]
    means, counts = average_into_trs(np.concatenate(values), np.concatenate(times), 0.9, n_trs)
    for column, layer in enumerate(LUMINANCE_LAYERS):
        dataset = store.read(layer, RUN)
        np.testing.assert_allclose(dataset["features"][counts > 0, 0], means[counts > 0, column], rtol=1e-4, atol=1e-6)
    assert store.read("luminance.change", RUN).attrs["sees_before_s"] == pytest.approx(4 / 60, rel=0.01)
    assert store.read("luminance.mean", RUN).attrs["sees_before_s"] == 0


def test_layers_that_are_not_there_are_named():
    with pytest.raises(ModelError, match=r"did you mean 'luminance\.contrast'"):
        _ = LuminanceSource(layer_names=("luminance.contrst",)).layers
