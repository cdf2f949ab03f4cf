"""A few subjects side by side, in one space."""

import dataclasses
import shutil

import nibabel
import numpy as np
import pytest

from vidbrain.cli.app import run
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.group import group_results, subjects_of
from vidbrain.encoding.result import open_result
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, EncodingError
from vidbrain.storage.zarrs import open_dataset
from vidbrain.testing.brains import toy_world

CONFIG = EncodeConfig(delays=(2, 3), n_permutations=200)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Three subjects; voxels 0-29 follow the features in all, 30-59 in the first alone, the rest in none."""
    root = tmp_path_factory.mktemp("subjects")
    for number in range(3):
        signal = 60 if number == 0 else 30
        features, bold = toy_world((140, 150, 145), n_signal=signal, n_noise=120 - signal, seed=number)
        relabel = {label: label.replace("sub-01", f"sub-0{number + 1}") for label in bold.runs}
        bold = dataclasses.replace(bold, values={relabel[k]: v for k, v in bold.values.items()})
        values = {layer: {relabel[k]: v for k, v in runs.items()} for layer, runs in features.values.items()}
        fit_encoding(dataclasses.replace(features, values=values), bold, CONFIG, root / str(number))
    return [open_result(root / str(number)) for number in range(3)]


def test_replication_mean_and_conjunction(subjects, tmp_path):
    named = subjects_of(subjects)
    assert list(named) == ["sub-01", "sub-02", "sub-03"]
    info = group_results(named, tmp_path)
    data = open_dataset(tmp_path / "group.zarr").load()
    assert (info["summary"]["n_voxels"], info["summary"]["smallest_sign_flip_p"]) == (120, 0.125)
    # Voxels of the store stand in the order of the volume.
    order = np.argsort(np.ravel_multi_index([subjects[0].dataset[a].values for a in "ijk"], subjects[0].info["shape"]))
    expected = np.mean([result.dataset["r_mean"].values[order] for result in subjects], axis=0)
    np.testing.assert_allclose(data["mean_r"], expected, atol=1e-6)
    replication = np.empty(120)
    replication[order] = data["replication"].values
    assert np.mean(replication[:30] == 3) > 0.8
    assert np.mean(replication[30:60] == 1) > 0.7
    assert np.mean(replication[60:] == 0) > 0.8
    image = nibabel.load(next((tmp_path / "maps").glob("*meanr*.nii.gz")))
    assert np.nanmax(np.asarray(image.dataobj)) == pytest.approx(expected.max(), abs=1e-6)


def test_the_command_and_its_refusals(subjects, tmp_path, capsys):
    roots = [str(result.root) for result in subjects]
    assert run(["group", *roots, "--out", str(tmp_path / "g")]) == 0
    assert "replicated" in capsys.readouterr().out
    with pytest.raises(EncodingError, match="at least 2"):
        group_results(subjects_of(subjects[:1]), tmp_path / "one")
    moved = dataclasses.replace(subjects[1], info={**subjects[1].info, "affine": np.eye(4).tolist()})
    with pytest.raises(AlignmentError, match="another grid"):
        group_results(subjects_of([subjects[0], moved]), tmp_path / "two")
    shutil.rmtree(tmp_path / "g")
