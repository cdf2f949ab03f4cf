"""Voxels, parcels and results stay linked: which set was asked for, and groups of subjects by parcel."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest

from vidbrain.bold.ingest import ingest
from vidbrain.bold.parcels.parcellation import read_parcels
from vidbrain.bold.parcels.placement import add_parcels
from vidbrain.bold.parcels.series import write_parcel_store
from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.group import group_results
from vidbrain.encoding.parcel_maps import write_parcel_maps
from vidbrain.encoding.result import EncodingResult, open_result
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, ConfigError, ResumeError
from vidbrain.features.store import write_run
from vidbrain.storage.info import write_info
from vidbrain.storage.zarrs import open_dataset
from vidbrain.testing.brains import ToyFeatures

FAST = EncodeConfig(delays=(1,), n_alphas=3, n_permutations=0)


def toy_features(store, seed=5):
    rng = np.random.default_rng(seed)
    rows = {label: rng.standard_normal((store.n_trs(label), 4)).astype(np.float32) for label in store.runs}
    return ToyFeatures({"toy": rows}, tr_s=store.tr_s)


def test_a_set_that_was_asked_for_is_shown_shared_and_kept(copied_store, tmp_path):
    root = copied_store.root
    add_parcels(copied_store, "own", n=5)
    add_parcels(copied_store, "own", n=8)
    in_use, asked = open_bold(root), open_bold(root, "bisection-5")
    assert (in_use.parcels_in_use, asked.parcels_in_use) == ("bisection-8", "bisection-5")
    expected = read_parcels(in_use, "bisection-5").parcel
    assert read_parcels(asked).n_parcels == 5
    label = asked.runs[0]
    np.testing.assert_array_equal(asked.open(label)["parcel"], expected)
    assert asked.open(label).attrs["parcels"] == "bisection-5"
    features = toy_features(asked)
    shared = fit_encoding(features, asked, replace(FAST, alpha_per="parcel"), tmp_path / "shared")
    for number in range(1, 6):
        mine = shared.dataset["fold_alpha"].values[:, expected == number]
        assert (mine == mine[:, :1]).all()
    # A result names the set that was asked for; another set is another result, also where it shares no alpha.
    result = fit_encoding(features, asked, FAST, tmp_path / "r")
    assert result.info["parcels"] == "bisection-5"
    np.testing.assert_array_equal(result.dataset["parcel"], expected)
    with pytest.raises(ResumeError, match="parcels was"):
        fit_encoding(features, open_bold(root, "bisection-8"), FAST, tmp_path / "r")
    write_parcel_store(asked, tmp_path / "p")
    assert open_bold(tmp_path / "p").n_voxels == 5
    with pytest.raises(ConfigError, match="did you mean 'bisection-5'"):
        open_bold(root, "bisection-55")
    with pytest.raises(ConfigError, match="has no parcels"):
        open_bold(tmp_path / "p", "bisection-5")


def test_the_commands_take_the_name_of_a_set(copied_store, tmp_path, capsys):
    root = str(copied_store.root)
    add_parcels(copied_store, "own", n=5)
    add_parcels(copied_store, "own", n=8)
    assert run(["bold", "ls", root, "--json"]) == 0
    said = capsys.readouterr()
    assert {row["parcels"] for row in json.loads(said.out)} == {"bisection-8"}
    assert "bisection-5, bisection-8; bisection-8 is in use" in " ".join(said.err.split())
    assert run(["bold", "ls", root, "--parcels", "bisection-5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    parcels = read_parcels(copied_store, "bisection-5")
    assert [row["voxels"] for row in rows] == np.bincount(parcels.parcel)[1:].tolist()
    assert [row["name"] for row in rows] == list(parcels.names)
    toy = toy_features(copied_store)
    for label, values in toy.values["toy"].items():
        write_run(
            tmp_path / "f", "toy", label, features=values, valid=np.ones(len(values), bool),
            attributes={"tr_s": toy.tr_s, "fingerprint": "x"},
        )  # fmt: skip
    config = {"layers": [{"name": "toy"}], "tr_s": toy.tr_s}
    write_info(tmp_path / "f", "features", config=config, made_from={}, facts={"runs": list(toy.runs)})
    words = ["encode", str(tmp_path / "f"), root, "--out", str(tmp_path / "r"), "--n-permutations", "0"]
    words += ["--delays", "1", "--n-alphas", "3", "--workers", "0", "--parcels"]
    assert run([*words, "bisection-9"]) == 1
    assert "it has bisection-5, bisection-8" in " ".join(capsys.readouterr().err.split())
    assert run([*words, "bisection-5"]) == 0
    np.testing.assert_array_equal(open_result(tmp_path / "r").dataset["parcel"], parcels.parcel)


def test_voxels_and_results_can_be_grouped_by_network(copied_store, tmp_path):
    """Names of networks reach every voxel, and a result groups by them as a naive loop does."""
    half = copied_store.shape[0] // 2
    atlas = np.zeros(copied_store.shape, np.int16)
    atlas[:half, ::2], atlas[:half, 1::2], atlas[half:, ::2] = 3, 4, 7
    network = {0: "", 3: "Vis", 4: "Cont", 7: "Vis"}
    nibabel.Nifti1Image(atlas, copied_store.affine).to_filename(tmp_path / "toy_dseg.nii.gz")
    names = ["7Networks_LH_Vis_1", "7Networks_LH_Cont_1", "7Networks_RH_Vis_1"]
    pd.DataFrame({"index": [3, 4, 7], "name": names}).to_csv(tmp_path / "toy_dseg.tsv", sep="\t", index=False)
    add_parcels(copied_store, tmp_path / "toy_dseg.nii.gz")
    store = open_bold(copied_store.root)
    expected = np.array([network[int(number)] for number in atlas[tuple(store.ijk.T)]])
    assert set(expected) == {"", "Vis", "Cont"}
    data = store.open(store.runs[0])
    titles = np.array(data["network"].attrs["network_names"])
    np.testing.assert_array_equal(titles[data["network"].values], expected)
    result = fit_encoding(toy_features(store), store, FAST, tmp_path / "r").dataset
    for code, mean in result["r_mean"].groupby("network").mean().to_series().items():
        assert mean == pytest.approx(result["r_mean"].values[expected == titles[code]].mean(), abs=1e-6)


@pytest.fixture
def subjects(derivatives, tmp_path):
    """Results of two brains with other voxels, in parcels of one atlas; the second brain lacks the first parcel."""
    mask = nibabel.load(next(derivatives.rglob("*brain_mask.nii.gz")))
    inside = np.asarray(mask.dataobj) > 0
    middle = inside.shape[0] // 2
    atlas = np.zeros(inside.shape, np.int16)
    for number, part in enumerate(np.array_split(np.arange(inside.shape[0]), 5), start=1):
        atlas[part] = 10 * number
    nibabel.Nifti1Image(atlas, mask.affine).to_filename(tmp_path / "atlas-slabs_dseg.nii.gz")
    names = pd.DataFrame({"index": [10, 20, 30, 40, 50], "name": ["one", "two", "three", "four", "five"]})
    names.to_csv(tmp_path / "atlas-slabs_dseg.tsv", sep="\t", index=False)
    results = {}
    for name, kept in (("sub-01", np.arange(inside.shape[0]) < middle + 3), ("sub-02", atlas[:, 0, 0] > 10)):
        part = inside & kept[:, None, None]
        nibabel.Nifti1Image(part.astype(np.uint8), mask.affine).to_filename(tmp_path / f"{name}.nii.gz")
        ingest(derivatives, tmp_path / name, mask=tmp_path / f"{name}.nii.gz")
        add_parcels(open_bold(tmp_path / name), tmp_path / "atlas-slabs_dseg.nii.gz")
        write_parcel_store(open_bold(tmp_path / name), tmp_path / f"{name}-parcels")
        store = open_bold(tmp_path / f"{name}-parcels")
        config = replace(FAST, n_permutations=19)
        results[name] = fit_encoding(toy_features(store), store, config, tmp_path / f"{name}-result")
        write_parcel_maps(results[name], store, tmp_path / f"{name}-result" / "maps", desc="toy")
    return results, atlas, inside


def test_groups_meet_parcel_by_parcel(subjects, tmp_path, capsys):
    results, atlas, inside = subjects
    by_number = {
        name: dict(zip(r.dataset["parcel"].values.tolist(), r.dataset["r_mean"].values.tolist(), strict=True))
        for name, r in results.items()
    }
    known = sorted(set(by_number["sub-01"]) | set(by_number["sub-02"]))
    shared = set(by_number["sub-01"]) & set(by_number["sub-02"])
    assert 10 not in by_number["sub-02"]
    assert 50 not in by_number["sub-01"]
    assert len(shared) >= 2
    info = group_results(results, tmp_path / "g")
    data = open_dataset(tmp_path / "g" / "group.zarr").load()
    assert data["parcel"].values.tolist() == known
    mean = [np.mean([r[number] for r in by_number.values() if number in r]) for number in known]
    np.testing.assert_allclose(data["mean_r"], mean, atol=1e-6)
    assert data["n_subjects"].values.tolist() == [1 + (number in shared) for number in known]
    assert np.isnan(data["r"].values[1, 0])
    assert info["summary"]["n_voxels_of_all"] == len(shared)
    table = pd.read_csv(next((tmp_path / "g" / "maps").glob("*.tsv")), sep="\t")
    assert table["index"].tolist() == known
    assert table["name"].tolist() == [["one", "two", "three", "four", "five"][number // 10 - 1] for number in known]
    np.testing.assert_allclose(table["mean_r"], mean, atol=1e-6)
    np.testing.assert_allclose(table["r_sub-01"], [by_number["sub-01"].get(n, np.nan) for n in known], atol=1e-6)
    # Every voxel that some brain has shows the value of its parcel.
    drawn = nibabel.load(next((tmp_path / "g" / "maps").glob("*stat-meanr_statmap.nii.gz"))).get_fdata()
    covered = np.zeros(atlas.shape, bool)
    for name in results:
        covered |= np.asarray(nibabel.load(tmp_path / f"{name}.nii.gz").dataobj) > 0
    expected = np.where(covered & inside, np.array([*mean, 0.0])[np.searchsorted(known, atlas)], np.nan)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    # Without the voxels of one of them there is the table alone; names that clash are refused.
    shutil.rmtree(results["sub-02"].root / "members.zarr")
    roots = [str(result.root) for result in results.values()]
    assert run(["group", *roots, "--out", str(tmp_path / "h"), "--json"]) == 0
    capsys.readouterr()
    assert [path.suffix for path in sorted((tmp_path / "h" / "maps").iterdir())] == [".json", ".tsv"]
    parcel = results["sub-02"].dataset["parcel"]
    renamed = parcel.assign_attrs(names=["another", *parcel.attrs["names"][1:]])
    other = EncodingResult(
        results["sub-02"].root, results["sub-02"].info, results["sub-02"].dataset.assign_coords(parcel=renamed)
    )
    with pytest.raises(AlignmentError, match="parcel 20 is another, not two"):
        group_results({"sub-01": results["sub-01"], "sub-02": other}, tmp_path / "i")


ALONE = """
import sys, xarray
for path in sys.argv[1:]:
    data = xarray.open_zarr(path, chunks=None)
    assert not [name for name in sys.modules if name.startswith("vidbrain")]
    assert not [name for name in data.variables if not data[name].attrs.get("long_name")], path
    if "bold" in data:
        assert {"time_s", "i", "j", "k", "parcel", "network"} <= set(data.coords), path
        assert data["bold"].attrs["units"] == "standard deviations" and data["time_s"].attrs["units"] == "s"
        assert len(data["parcel"].attrs["names"]) == data.sizes["voxel"]
    else:
        assert len(data["parcel"].attrs["parcel_names"]) == data.sizes["parcels"]
"""


def test_parcels_and_their_series_explain_themselves_to_xarray_alone(copied_store, tmp_path):
    soft = np.random.default_rng(0).random((*copied_store.shape, 3)).astype(np.float32)
    nibabel.Nifti1Image(soft, copied_store.affine).to_filename(tmp_path / "soft_probseg.nii.gz")
    add_parcels(copied_store, "own", n=4)
    add_parcels(copied_store, tmp_path / "soft_probseg.nii.gz")
    paths = [copied_store.root / "parcels" / name for name in ("bisection-4.zarr", "soft_probseg.zarr")]
    for name in ("bisection-4", "soft_probseg"):
        write_parcel_store(open_bold(copied_store.root, name), tmp_path / name)
        paths += [tmp_path / name / f"{label}.zarr" for label in copied_store.runs]
    words = [sys.executable, "-W", "error", "-c", ALONE, *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
