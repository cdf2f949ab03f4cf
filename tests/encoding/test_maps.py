"""NIfTI maps, read back with nibabel."""

import json

import nibabel
import numpy as np
import pytest

from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.maps import write_maps
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import ConfigError
from vidbrain.testing.brains import toy_world


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    features, bold = toy_world((50, 45, 40))
    return fit_encoding(features, bold, EncodeConfig(), tmp_path_factory.mktemp("result")), bold


def test_maps_hold_the_values_at_their_voxels(tmp_path, fitted):
    result, bold = fitted
    paths = write_maps(result, tmp_path, desc="toy-set")
    assert [p.name for p in paths] == [
        f"sub-01_task-toy_space-MNI152NLin2009cAsym_desc-toyset_stat-{name}_statmap.nii.gz"
        for name in ("r", "r2", "q", "alpha")
    ]
    image = nibabel.load(paths[0])
    volume = image.get_fdata()
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.affine, bold.affine)
    data = result.dataset
    np.testing.assert_array_equal(volume[data["i"], data["j"], data["k"]], data["r_mean"])
    assert np.isnan(volume).sum() == volume.size - bold.n_voxels


def test_sidecar_says_simulated_and_where_it_comes_from(tmp_path, fitted):
    result, _ = fitted
    path = write_maps(result, tmp_path, desc="toy", statistics=["q"])[0]
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Simulated"] is True
    assert sidecar["Description"].startswith("SIMULATED BOLD")
    assert sidecar["MadeFrom"] == result.info["made_from"]
    assert sidecar["Fingerprint"] == result.info["fingerprint"]


def test_bytes_are_reproducible(tmp_path, fitted):
    result, _ = fitted
    one = write_maps(result, tmp_path / "one", desc="toy")
    two = write_maps(result, tmp_path / "two", desc="toy")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_names_without_letters_and_unknown_statistics_are_refused(tmp_path, fitted):
    with pytest.raises(ConfigError, match="no letter"):
        write_maps(fitted[0], tmp_path, desc="--")
    with pytest.raises(ConfigError, match="unknown statistic 't'"):
        write_maps(fitted[0], tmp_path, desc="toy", statistics=["t"])
