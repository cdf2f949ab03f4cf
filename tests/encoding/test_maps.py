"""Maps, read back with nibabel."""

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis

from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.store import open_bold
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.maps import write_maps
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import ConfigError, EncodingError
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


AXIS = BrainModelAxis.from_surface([0, 2, 3, 7], 9, "CortexLeft") + BrainModelAxis.from_mask(
    np.ones((4, 7, 2), bool), affine=np.diag([2.0, 2.0, 2.0, 1.0]), name="ThalamusLeft"
)


def write_series(folder, run, values, form):
    """A run of 60 columns as a surface of 25 and 35 vertices, as grayordinates, or as an array."""
    folder.mkdir(exist_ok=True)
    if form == "array":
        np.save(folder / f"{run}.npy", values)
    elif form == "cifti":
        image = Cifti2Image(values, (SeriesAxis(0, 1.49, len(values), "SECOND"), AXIS))
        image.to_filename(folder / f"{run}_space-fsLR_den-91k_bold.dtseries.nii")
    else:
        for hemisphere, columns in (("L", slice(25)), ("R", slice(25, 60))):
            arrays = [nibabel.gifti.GiftiDataArray(row[columns].copy()) for row in values]
            name = f"{run}_hemi-{hemisphere}_space-fsaverage_bold.func.gii"
            nibabel.gifti.GiftiImage(darrays=arrays).to_filename(folder / name)


@pytest.mark.parametrize("form", ["surface", "cifti", "array"])
def test_what_is_no_volume_gets_maps_of_its_own_form(tmp_path, form):
    features, bold = toy_world((50, 45, 40))
    for run in bold.runs:
        write_series(tmp_path / "d", run, bold.values[run], form)
    as_it_is = CleanConfig(confounds="none", high_pass="none", detrend=False, standardize="none")
    ingest(tmp_path / "d", tmp_path / "b", IngestConfig(tr_s=1.49, clean=as_it_is))
    result = fit_encoding(features, open_bold(tmp_path / "b"), EncodeConfig(clean=False), tmp_path / "r")
    expected = fit_encoding(features, bold, EncodeConfig(clean=False), tmp_path / "e").dataset["r_mean"].values
    assert np.allclose(result.dataset["r_mean"], expected, atol=1e-6)
    r = result.dataset["r_mean"].values
    paths = write_maps(result, tmp_path / "maps", desc="toy", statistics=["r"])
    names = [path.name for path in paths]
    assert all(path.with_name(path.name.split(".")[0] + ".json").is_file() for path in paths)
    if form == "surface":
        assert names == [f"sub-01_task-toy_hemi-{h}_space-fsaverage_desc-toy_stat-r_statmap.func.gii" for h in "LR"]
        assert np.array_equal(np.concatenate([nibabel.load(path).agg_data() for path in paths]), r)
    elif form == "cifti":
        assert names == ["sub-01_task-toy_space-fsLR_den-91k_desc-toy_stat-r_statmap.dscalar.nii"]
        image = nibabel.load(paths[0])
        assert np.array_equal(image.get_fdata()[0], r)
        assert image.header.get_axis(1) == AXIS
    else:
        table = pd.read_csv(paths[0], sep="\t")
        assert np.allclose(table["r"], r, rtol=1e-6)
        assert len(table) == 60
    with pytest.raises(EncodingError, match="no volume"):
        result.to_volume(r)
