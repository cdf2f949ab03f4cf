"""A few subjects side by side, in one space."""

import dataclasses
import shutil

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis

from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.group import group_results, subjects_of
from vidbrain.encoding.result import open_result
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, EncodingError
from vidbrain.storage.zarrs import open_dataset
from vidbrain.testing.brains import TR_S, toy_world

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


def in_files(root, form, number):
    """A toy brain as GIFTI, CIFTI or plain arrays, ingested and encoded."""
    features, bold = toy_world((50, 45, 40), n_signal=30, n_noise=30, seed=number)
    axis = BrainModelAxis.from_surface(np.arange(3, 33), 40, "CortexLeft")
    axis += BrainModelAxis.from_mask(np.ones((2, 3, 5), bool), affine=np.eye(4), name="ThalamusLeft")
    (root / "raw").mkdir(parents=True)
    for run_label, series in bold.values.items():
        stem = root / "raw" / run_label
        if form == "surface":
            for letter, half in (("L", series[:, :25]), ("R", series[:, 25:])):
                arrays = [nibabel.gifti.GiftiDataArray(row.copy(), datatype="NIFTI_TYPE_FLOAT32") for row in half]
                path = f"{stem}_hemi-{letter}_space-fsaverage4_bold.func.gii"
                nibabel.gifti.GiftiImage(darrays=arrays).to_filename(path)
        elif form == "grayordinates":
            time = SeriesAxis(0, TR_S, len(series), "SECOND")
            Cifti2Image(series, (time, axis)).to_filename(f"{stem}_space-fsLR_den-91k_bold.dtseries.nii")
        else:
            np.save(f"{stem}.npy", series)
    clean = CleanConfig(confounds="none", high_pass="none", detrend=False, standardize="none")
    ingest(root / "raw", root / "bold", IngestConfig(tr_s=TR_S, clean=clean))
    return fit_encoding(features, open_bold(root / "bold"), dataclasses.replace(CONFIG, n_permutations=19), root / "r")


@pytest.mark.parametrize("form", ["surface", "grayordinates"])
def test_meshes_are_grouped_and_written_in_their_own_form(tmp_path, form):
    results = [in_files(tmp_path / str(number), form, number) for number in range(2)]
    group_results({"a": results[0], "b": results[1]}, tmp_path / "g")
    mean = np.mean([result.dataset["r_mean"].values for result in results], axis=0)
    np.testing.assert_allclose(open_dataset(tmp_path / "g" / "group.zarr")["mean_r"], mean, atol=1e-6)
    paths = sorted((tmp_path / "g" / "maps").glob("*stat-meanr*i"))
    if form == "surface":
        assert [path.name.split("_desc")[0] for path in paths] == [f"hemi-{h}_space-fsaverage4" for h in "LR"]
        found = np.concatenate([nibabel.load(path).agg_data() for path in paths])
    else:
        (path,) = paths
        found = nibabel.load(path).get_fdata()[0]
    np.testing.assert_allclose(found, mean, atol=1e-6)
    small = results[1].dataset.isel(voxel=slice(0, 50))
    with pytest.raises(AlignmentError, match="50 columns"):
        group_results({"a": results[0], "b": dataclasses.replace(results[1], dataset=small)}, tmp_path / "h")


def test_columns_of_which_nothing_is_known_meet_nobody(tmp_path, subjects):
    results = [in_files(tmp_path / str(number), "columns", number) for number in range(2)]
    with pytest.raises(AlignmentError, match="nobody knows what the columns of a are"):
        group_results({"a": results[0], "b": results[1]}, tmp_path / "g")
    with pytest.raises(AlignmentError, match="a columns layout, not a volume one"):
        group_results({"a": subjects[0], "b": results[1]}, tmp_path / "g")
