"""Maps, read back with nibabel and pandas."""

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
from vidbrain.testing.brains import TR_S, toy_world

AS_IT_IS = CleanConfig(confounds="none", high_pass="none", detrend=False, standardize="none")
FAST = EncodeConfig(n_permutations=0)


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


def encoded(root, write):
    """Put a toy brain into files by `write`, ingest them, and fit."""
    features, bold = toy_world((50, 45, 40), n_signal=30, n_noise=30)
    for run in bold.runs:
        folder = root / "raw" / "sub-01" / run.split("_")[1] / "func"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, run, bold.values[run])
    ingest(root / "raw", root / "bold", IngestConfig(tr_s=TR_S, clean=AS_IT_IS))
    return fit_encoding(features, open_bold(root / "bold"), FAST, root / "result")


def test_surfaces_become_a_mesh_a_hemisphere(tmp_path):
    def write(folder, run, series):
        for letter, half in (("L", series[:, :25]), ("R", series[:, 25:])):
            arrays = [nibabel.gifti.GiftiDataArray(row.copy(), datatype="NIFTI_TYPE_FLOAT32") for row in half]
            path = folder / f"{run}_hemi-{letter}_space-fsaverage4_bold.func.gii"
            nibabel.gifti.GiftiImage(darrays=arrays).to_filename(path)

    result = encoded(tmp_path, write)
    paths = write_maps(result, tmp_path / "maps", desc="toy", statistics=["r", "r2"])
    assert [path.name for path in paths] == [
        f"sub-01_task-toy_hemi-{letter}_space-fsaverage4_desc-toy_stat-{name}_statmap.shape.gii"
        for name in ("r", "r2")
        for letter in "LR"
    ]
    left, right = (nibabel.load(path) for path in paths[:2])
    assert (left.meta["AnatomicalStructurePrimary"], right.meta["AnatomicalStructurePrimary"]) == (
        "CortexLeft",
        "CortexRight",
    )
    assert np.array_equal(np.concatenate([left.agg_data(), right.agg_data()]), result.dataset["r_mean"])
    assert np.median(left.agg_data()) > 0.3
    with pytest.raises(EncodingError, match="no volume"):
        result.to_volume(result.dataset["r_mean"])
    assert json.loads((tmp_path / "maps" / (paths[0].name.split(".")[0] + ".json")).read_text())["FeatureSet"] == "toy"


def test_grayordinates_keep_their_places(tmp_path):
    cortex = BrainModelAxis.from_surface(np.arange(3, 33), 40, "CortexLeft")
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 1:4, :5] = True
    axis = cortex + BrainModelAxis.from_mask(mask, affine=np.diag([2.0, 2.0, 2.0, 1.0]), name="ThalamusLeft")

    def write(folder, run, series):
        time = SeriesAxis(0, TR_S, len(series), "SECOND")
        Cifti2Image(series, (time, axis)).to_filename(folder / f"{run}_space-fsLR_den-91k_bold.dtseries.nii")

    result = encoded(tmp_path, write)
    (path,) = write_maps(result, tmp_path / "maps", desc="toy", statistics=["r"])
    assert path.name == "sub-01_task-toy_space-fsLR_den-91k_desc-toy_stat-r_statmap.dscalar.nii"
    image = nibabel.load(path)
    assert image.header.get_axis(1) == axis
    assert image.header.get_axis(0).name.tolist() == ["r"]
    assert np.array_equal(image.get_fdata()[0].astype(np.float32), result.dataset["r_mean"])


def test_columns_without_a_place_become_a_table(tmp_path):
    def write(folder, run, series):
        np.save(folder / f"{run}_bold.npy", series)

    result = encoded(tmp_path, write)
    (path,) = write_maps(result, tmp_path / "maps", desc="toy", statistics=["r", "alpha"])
    assert path.name == "sub-01_task-toy_desc-toy_statmap.tsv"
    table = pd.read_csv(path, sep="\t")
    assert table["index"].tolist() == [*range(1, 61)]
    np.testing.assert_allclose(table["r"], result.dataset["r_mean"], rtol=1e-6)
    described = json.loads(path.with_suffix(".json").read_text())
    assert "Ridge penalty" in described["alpha"]["Description"]
