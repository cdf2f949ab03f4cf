"""Levels and recordings are left out as a whole, with the neighbourhood of every edge."""

import numpy as np
import pytest

from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.prepare import prepare
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import EncodingError
from vidbrain.testing.brains import ToyFeatures, toy_world

LEVELS = ("1", "4", "5")


class Played(ToyFeatures):
    """Toy features of three recordings a run, a level each, with a pause of 6 TRs between them."""

    def read(self, layer, run):
        data = super().read(layer, run)
        shown = np.minimum(np.arange(data.sizes["tr"]) // 40, 2).astype(np.int32)
        shown[[40, 41, 42, 43, 44, 45]] = -1
        number = self.runs.index(run)
        recordings = [{"key": f"{run}_rec-{n}", "level": LEVELS[(n + number) % 3]} for n in range(3)]
        return data.assign(recording=("tr", shown), valid=("tr", shown >= 0)).assign_attrs(recordings=recordings)


@pytest.fixture(scope="module")
def world():
    features, bold = toy_world((120, 118, 121), n_signal=60, n_noise=60)
    return Played(features.values), bold


def test_levels_are_left_out_across_runs(world):
    features, bold = world
    prepared = prepare(features, bold, EncodeConfig(delays=(2, 3), leave_out="level", purge_trs=5))
    design, layout = prepared.design, prepared.layout
    assert layout.parts == LEVELS
    level_of = np.array(
        [LEVELS[(min((tr - 2) // 40, 2) + run) % 3] for run, tr in zip(design.run, design.tr, strict=True)]
    )
    for fold, level in zip(layout.folds, LEVELS, strict=True):
        (test,) = fold.tests
        assert set(level_of[test]) == {level}
        assert level not in set(level_of[fold.train])
        gaps = [
            np.abs(
                design.tr[fold.train][design.run[fold.train] == run][:, None] - design.tr[test][design.run[test] == run]
            )
            for run in range(3)
        ]
        assert min(gap.min() for gap in gaps if gap.size) == 6


def test_recordings_are_dealt_to_folds_and_fitted(world, tmp_path):
    features, bold = world
    config = EncodeConfig(delays=(2, 3), leave_out="recording", max_folds=3, n_permutations=100)
    result = fit_encoding(features, bold, config, tmp_path)
    assert len(result.info["parts"]) == 3
    assert result.info["parts"][0].startswith(f"{bold.runs[0]}_rec-0")
    assert np.median(result.dataset["r_mean"][:60]) > 0.4
    assert abs(np.median(result.dataset["r_mean"][60:])) < 0.05


def test_features_that_do_not_know_are_refused(tmp_path):
    features, bold = toy_world((60, 55, 50))
    with pytest.raises(EncodingError, match="which level was shown"):
        prepare(features, bold, EncodeConfig(leave_out="level"))
