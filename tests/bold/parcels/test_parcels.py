"""Parcels: nilearn's maskers are the oracle; files as atlases ship them; links between voxels and parcels."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nilearn.image import resample_to_img
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker

from vidbrain.bold.parcels.atlases import Label, both_hemispheres, labels_at, read_names, surface_labels
from vidbrain.bold.parcels.bisection import bisect_voxels
from vidbrain.bold.parcels.parcellation import read_parcels, read_sets
from vidbrain.bold.parcels.placement import add_parcels
from vidbrain.bold.parcels.series import map_series, mean_series, paint, write_parcel_store
from vidbrain.bold.store import open_bold
from vidbrain.bold.voxels import centres_mm
from vidbrain.cli.app import run
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.parcel_maps import write_parcel_maps
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, BoldError, ConfigError, ResumeError, StorageError
from vidbrain.storage.trees import upload_tree
from vidbrain.testing.brains import ToyFeatures

FAST = EncodeConfig(delays=(1,), n_alphas=3, n_permutations=0)


@pytest.fixture
def store(store_root, tmp_path):
    return open_bold(shutil.copytree(store_root, tmp_path / "bold"))


def image_of(store, name, *, labels=7, seed=0):
    """Blobs of labels in the grid of the store; some voxels in none; one label outside the brain alone."""
    rng = np.random.default_rng(seed)
    middle = store.ijk[rng.choice(store.n_voxels, labels, replace=False)]
    grid = np.moveaxis(np.indices(store.shape), 0, -1)
    distance = np.linalg.norm(grid[..., None, :] - middle, axis=-1)
    values = np.where(distance.min(axis=-1) < 4, 10 * (1 + distance.argmin(axis=-1)), 0).astype(np.int16)
    outside = np.ones(store.shape, bool)
    outside[tuple(store.ijk.T)] = False
    values[tuple(np.argwhere(outside)[0])] = 999
    path = store.root.parent / name
    nibabel.save(nibabel.Nifti1Image(values, store.affine), path)
    return path, values


def series_image(store, run):
    volume = np.zeros((*store.shape, store.n_trs(run)), np.float32)
    volume[tuple(store.ijk.T)] = store.read(run).T
    mask = np.zeros(store.shape, np.uint8)
    mask[tuple(store.ijk.T)] = 1
    return nibabel.Nifti1Image(volume, store.affine), nibabel.Nifti1Image(mask, store.affine)


@pytest.mark.filterwarnings("ignore:After applying mask:UserWarning")
def test_series_of_labels_equal_nilearn(store):
    path, values = image_of(store, "atlas-toy_dseg.nii.gz")
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    facts = add_parcels(store, path)
    assert {p: p.read_bytes() for p in before} == before  # nothing was touched
    store = open_bold(store.root)
    parcels = read_parcels(store)
    bold, mask = series_image(store, store.runs[0])
    masker = NiftiLabelsMasker(nibabel.Nifti1Image(values, store.affine), mask_img=mask, standardize=None)
    expected = masker.fit_transform(bold)
    found, dead = mean_series(store, store.runs[0], parcels)
    assert not dead.any()
    present = [label for label in np.unique(values) if label in parcels.label]
    assert parcels.label.tolist() == present == [int(masker.labels_[i]) for i in range(1, len(masker.labels_))]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(parcels.parcel, values[tuple(store.ijk.T)])
    assert facts["n_parcels"] == len(present)
    assert facts["voxels_in_none"] == int((parcels.parcel == 0).sum()) > 0


def test_series_of_maps_equal_nilearn(store):
    rng = np.random.default_rng(1)
    values = np.maximum(rng.normal(size=(*store.shape, 5)) - 0.4, 0).astype(np.float32)
    values[..., 2] = 0  # no voxel at all
    path = store.root.parent / "atlas-soft_probseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, store.affine), path)
    facts = add_parcels(store, path)
    assert (facts["kind"], facts["n_parcels"]) == ("maps", 4)
    store = open_bold(store.root)
    parcels = read_parcels(store)
    bold, mask = series_image(store, store.runs[1])
    kept = nibabel.Nifti1Image(values[..., [0, 1, 3, 4]], store.affine)
    masker = NiftiMapsMasker(kept, mask_img=mask, standardize=None, keep_masked_maps=False)
    found, dead = map_series(store, store.runs[1], parcels)
    assert not dead.any()
    np.testing.assert_allclose(found, masker.fit_transform(bold), atol=1e-5)
    at = values[tuple(store.ijk.T)]
    np.testing.assert_array_equal(parcels.parcel, np.where(at.max(axis=1) > 0, 1 + at.argmax(axis=1), 0))


def test_another_grid_is_refused_or_read_at_the_nearest_voxel_as_nilearn_does(store):
    rng = np.random.default_rng(2)
    shape = (31, 40, 33)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = (-71.3, -104.2, -66.1)
    image = nibabel.Nifti1Image(rng.integers(0, 9, shape).astype(np.int16), affine)
    path = store.root.parent / "fine.nii"
    nibabel.save(image, path)
    with pytest.raises(AlignmentError, match=r"another grid: \(31, 40, 33\) voxels of 5x5x5 mm") as caught:
        add_parcels(store, path)
    assert "--resample nearest" in str(caught.value)
    facts = add_parcels(store, path, resample="nearest")
    assert facts["grid"].startswith("nearest")
    target = nibabel.Nifti1Image(np.zeros(store.shape, np.int16), store.affine)
    expected = resample_to_img(image, target, "nearest", force_resample=True, copy_header=True).get_fdata()
    np.testing.assert_array_equal(read_parcels(open_bold(store.root)).parcel, expected[tuple(store.ijk.T)])
    same = add_parcels(store, image_of(store, "same.nii.gz")[0], resample="nearest")
    assert same["grid"] == "equal"


def test_an_atlas_of_another_space_is_refused_unless_the_user_knows_better(store):
    path, _ = image_of(store, "tpl-MNI152NLin6Asym_res-02_atlas-Toy_dseg.nii.gz")
    with pytest.raises(AlignmentError, match="atlas lies in MNI152NLin6Asym, the BOLD store in MNI152NLin2009cAsym"):
        add_parcels(store, path)
    facts = add_parcels(store, path, space="MNI152NLin2009cAsym")
    assert facts["space"] == "MNI152NLin2009cAsym"


def test_files_that_are_no_atlas_are_refused(store, tmp_path):
    soft = tmp_path / "soft.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full(store.shape, 0.37, np.float32), store.affine), soft)
    with pytest.raises(BoldError, match="values that are no labels"):
        add_parcels(store, soft)
    empty = tmp_path / "empty.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(store.shape, np.int16), store.affine), empty)
    with pytest.raises(BoldError, match="lies in a parcel"):
        add_parcels(store, empty)
    large = tmp_path / "large.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full(store.shape, 2.0**31), store.affine), large)
    with pytest.raises(BoldError, match="the label 2147483648"):
        add_parcels(store, large)
    with pytest.raises(StorageError, match="no such atlas"):
        add_parcels(store, tmp_path / "none.nii.gz")
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(soft.read_bytes()[:200])
    with pytest.raises(BoldError):
        add_parcels(store, cut)
    surface = tmp_path / "hemi-L.label.gii"
    surface.touch()
    with pytest.raises(AlignmentError, match="surface"):
        add_parcels(store, surface)
    with pytest.raises(ConfigError, match="no parcels"):
        read_parcels(store)
    assert store.parcels_in_use is None


def test_names_as_atlases_ship_them(tmp_path):
    bids = tmp_path / "a.tsv"
    bids.write_text(
        "index\tname\tcolor\n1\t7Networks_LH_Vis_1\t#fff\n2\t17Networks_RH_DefaultA_PFC_3\t#eee\n3\tHIP-rh\t\n"
    )
    assert read_names(bids) == {
        1: Label("7Networks_LH_Vis_1", "Vis"), 2: Label("17Networks_RH_DefaultA_PFC_3", "DefaultA"), 3: Label("HIP-rh"),
    }  # fmt: skip
    lut = tmp_path / "order.txt"
    lut.write_text("# made by hand\n1 7Networks_LH_SomMot_1 70 130 180 0\n2  Left-Putamen 236 13 176 0\n")
    assert read_names(lut) == {1: Label("7Networks_LH_SomMot_1", "SomMot"), 2: Label("Left-Putamen")}
    difumo = tmp_path / "labels.csv"
    difumo.write_text("component,difumo_names,yeo_networks7\n1,Lobule,No network found\n2,Cuneus,VisCent\n")
    assert read_names(difumo) == {1: Label("Lobule", "No network found"), 2: Label("Cuneus", "VisCent")}
    bad = tmp_path / "bad.tsv"
    bad.write_text("region\tvolume\nA\tB\n")
    with pytest.raises(BoldError, match="number and a name"):
        read_names(bad)


def test_names_in_another_encoding_are_refused(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_bytes("index\tname\n1\tCunéus\n".encode("latin-1"))
    with pytest.raises(BoldError, match="not UTF-8") as caught:
        read_names(path)
    assert caught.value.where == str(path)


def test_an_atlas_without_a_volume_is_refused(store):
    path = image_of(store, "flat.nii.gz")[0]
    raw = gzip.decompress(path.read_bytes())
    srow_z = slice(312, 328)  # of the NIfTI-1 header
    path.write_bytes(gzip.compress(raw[: srow_z.start] + bytes(16) + raw[srow_z.stop :]))
    with pytest.raises(BoldError, match="one plane"):
        add_parcels(store, path, resample="nearest")


def test_surface_labels_equal_nibabel_on_its_own_file(tmp_path):
    path = Path(nibabel.__file__).parent / "gifti" / "tests" / "data" / "label.gii"
    image = nibabel.load(path)
    labels, table = surface_labels(path)
    expected = image.darrays[0].data
    names = image.labeltable.get_labels_as_dict()
    unknown = [key for key, name in names.items() if name in ("???", "Unknown", "unknown")]
    np.testing.assert_array_equal(labels, np.where(np.isin(expected, unknown), 0, expected))
    assert {key: one.name for key, one in table.items()} == {k: v for k, v in names.items() if k not in unknown}
    left, right = tmp_path / "hemi-L_x.label.gii", tmp_path / "hemi-R_x.label.gii"
    left.touch()
    with pytest.raises(StorageError, match="other hemisphere"):
        both_hemispheres(left)
    right.touch()
    assert both_hemispheres(right) == (left, right)


def label_file(path, labels, names):
    array = nibabel.gifti.GiftiDataArray(labels.astype(np.int32), intent="NIFTI_INTENT_LABEL")
    table = nibabel.gifti.GiftiLabelTable()
    for key, name in names.items():
        label = nibabel.gifti.GiftiLabel(key)
        label.label = name
        table.labels.append(label)
    nibabel.save(nibabel.gifti.GiftiImage(darrays=[array], labeltable=table), path)


def test_vertices_take_the_label_of_their_hemisphere(store, tmp_path, monkeypatch):
    """Both files number their parcels from 1; columns without a vertex are in none."""
    n = store.n_voxels
    rng = np.random.default_rng(3)
    structure, vertex = rng.integers(0, 3, n).astype(np.int16), rng.integers(0, 60, n).astype(np.int32)
    vertex[structure == 2] = -1
    names = ["CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT", "CIFTI_STRUCTURE_BRAIN_STEM"]
    whole = type(store).open

    def surface(self, label):
        data = whole(self, label).assign(structure=("voxel", structure), vertex=("voxel", vertex))
        return data.assign_attrs(structures=names)

    monkeypatch.setattr(type(store), "open", surface)
    left, right = rng.integers(0, 3, 60), rng.integers(0, 4, 60)
    label_file(tmp_path / "lh.toy.label.gii", left, {0: "???", 1: "7Networks_LH_Vis_1", 2: "b"})
    label_file(tmp_path / "rh.toy.label.gii", right, {0: "???", 1: "c", 2: "d", 3: "e"})
    facts = add_parcels(store, tmp_path / "lh.toy.label.gii")
    assert (facts["kind"], facts["n_parcels"], facts["n_networks"]) == ("surface", 5, 1)
    found = read_parcels(open_bold(store.root))
    of_label = dict(zip(found.label.tolist(), found.names, strict=True)) | {0: ""}
    tables = [["", "7Networks_LH_Vis_1", "b"], ["", "c", "d", "e"]]
    for column in range(n):
        code = structure[column]
        expected = "" if code == 2 else tables[code][(left, right)[code][vertex[column]]]
        assert of_label[int(found.parcel[column])] == expected
    vertex[0], structure[0] = 60, 0
    with pytest.raises(AlignmentError, match="60 vertices, the store reaches vertex 60"):
        add_parcels(store, tmp_path / "lh.toy.label.gii")


def test_bisection_is_balanced_compact_and_depends_on_nothing_else():
    rng = np.random.default_rng(4)
    mm = np.argwhere(np.ones((12, 20, 14))) * 3.0 - np.array([16.5, 30.0, 21.0])
    mm = mm[np.linalg.norm(mm / (18, 30, 21), axis=1) < 1]
    for n in (1, 2, 7, 64, 100):
        parcel, names = bisect_voxels(mm, n)
        sizes = np.bincount(parcel)[1:]
        assert len(names) == len(set(names)) == len(sizes) == n
        for side in {name.split("-")[0] for name in names}:  # hemispheres of odd numbers differ in what is left
            mine = sizes[[name.startswith(side) for name in names]]
            assert mine.max() - mine.min() <= 3
        assert sizes.max() < 1.4 * sizes.min()
        shuffled = rng.permutation(len(mm))
        np.testing.assert_array_equal(bisect_voxels(mm[shuffled], n)[0], parcel[shuffled])
    parcel, names = bisect_voxels(mm, 64)
    left = np.array([name.startswith("left") for name in names])
    assert (left[parcel - 1] == (mm[:, 0] < 0)).all()
    spread = np.mean([mm[parcel == p].var(axis=0).sum() for p in range(1, 65)])
    shuffled = rng.permutation(parcel)
    chance = np.mean([mm[shuffled == p].var(axis=0).sum() for p in range(1, 65)])
    assert spread < 0.1 * chance
    with pytest.raises(ConfigError, match="cannot be cut"):
        bisect_voxels(mm[:5], 6)


def test_sets_lie_side_by_side_and_the_last_one_is_in_use(store):
    add_parcels(store, "own", n=20)
    add_parcels(store, image_of(store, "atlas-toy_dseg.nii.gz")[0])
    found = open_bold(store.root)
    assert list(read_sets(found.root)["sets"]) == ["bisection-20", "atlas-toy_dseg"]
    assert found.parcels_in_use == "atlas-toy_dseg"
    assert found.open(found.runs[0])["parcel"].values.max() > 20
    assert read_parcels(found, "bisection-20").n_parcels == 20
    with pytest.raises(ConfigError, match="did you mean 'bisection-20'"):
        read_parcels(found, "bisection-2")
    assert found.info["fingerprint"] == store.info["fingerprint"]
    plain = xr.open_zarr(store.root / "parcels" / "bisection-20.zarr", chunks=None)  # no vidbrain
    assert plain["parcel"].attrs["parcel_names"][0] == "left-001"
    np.testing.assert_array_equal(plain["parcel"], bisect_voxels(centres_mm(store.ijk, store.affine), 20)[0])


def test_parcels_travel_with_the_store_also_to_where_it_is_already(store, tmp_path):
    place = tmp_path / "there"
    upload_tree(store.root, place)
    add_parcels(store, "own", n=9)
    upload_tree(store.root, place)
    found = open_bold(place)
    assert found.open(found.runs[0])["parcel"].values.max() == 9
    assert read_parcels(found).n_parcels == 9


def test_a_store_of_parcels_is_a_store_and_stays_linked(store, tmp_path):
    path, values = image_of(store, "atlas-toy_dseg.nii.gz")
    pd.DataFrame({"index": [10, 20], "name": ["7Networks_LH_Vis_1", "7Networks_RH_Cont_2"]}).to_csv(
        path.with_name("atlas-toy_dseg.tsv"), sep="\t", index=False
    )
    add_parcels(store, path)
    store = open_bold(store.root)
    write_parcel_store(store, tmp_path / "p")
    mine, parcels = open_bold(tmp_path / "p"), read_parcels(store)
    assert mine.n_voxels == parcels.n_parcels
    for label in mine.runs:
        mine.verify(label)
        np.testing.assert_allclose(mine.read(label), mean_series(store, label, parcels)[0], atol=1e-6)
        data, voxels = mine.open(label), store.open(label)
        for name in ("kept", "confounds", "time_s"):
            np.testing.assert_array_equal(data[name], voxels[name])
        inside = np.flatnonzero(data["parcel"].values == 10)[0]
        at = tuple(int(data[axis].values[inside]) for axis in "ijk")
        assert values[at] == 10
        assert data["network"].attrs["network_names"][int(data["network"][inside])] == "Vis"
    painted = paint(mine, np.arange(mine.n_voxels, dtype=float))
    expected = np.full(store.shape, np.nan)
    for position, number in enumerate(parcels.label):
        here = store.ijk[parcels.parcel == number]
        expected[tuple(here.T)] = position
    np.testing.assert_array_equal(painted, expected)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "p").rglob("*")}
    write_parcel_store(store, tmp_path / "p")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "p").rglob("*")} == before
    with pytest.raises(ConfigError, match="folder of its own"):
        write_parcel_store(store, store.root)
    # Killed before its end, it goes on: what is whole stays, the rest comes out equal.
    whole = {p: p.read_bytes() for p in (tmp_path / "p").rglob("*") if p.is_file()}
    (tmp_path / "p" / "info.json").unlink()
    shutil.rmtree(tmp_path / "p" / f"{mine.runs[1]}.zarr")
    write_parcel_store(store, tmp_path / "p")
    assert {p: p.read_bytes() for p in (tmp_path / "p").rglob("*") if p.is_file()} == whole


@pytest.mark.parametrize("name", ["run", "members.zarr"])
def test_a_store_of_parcels_that_lost_a_part_is_made_whole_by_the_same_call(store, tmp_path, name):
    add_parcels(store, "own", n=9)
    store = open_bold(store.root)
    write_parcel_store(store, tmp_path / "p")
    whole = {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()}
    lost = tmp_path / "p" / (f"{store.runs[0]}.zarr" if name == "run" else name)
    shutil.rmtree(lost)
    write_parcel_store(store, tmp_path / "p")
    assert {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()} == whole


def test_a_dead_voxel_does_not_count_and_a_dead_parcel_says_so(store, monkeypatch):
    add_parcels(store, image_of(store, "atlas-toy_dseg.nii.gz")[0])
    store = open_bold(store.root)
    parcels, label = read_parcels(store), store.runs[0]
    dead = np.zeros(store.n_voxels, bool)
    first = np.flatnonzero(parcels.position == 0)
    dead[first] = True
    dead[np.flatnonzero(parcels.position == 1)[::2]] = True
    whole = type(store).open
    monkeypatch.setattr(type(store), "open", lambda self, r: whole(self, r).assign(dead=("voxel", dead)))
    series, gone = mean_series(store, label, parcels)
    assert gone.tolist() == [True] + [False] * (parcels.n_parcels - 1)
    assert (series[:, 0] == 0).all()
    alive = np.flatnonzero((parcels.position == 1) & ~dead)
    np.testing.assert_allclose(series[:, 1], store.read(label)[:, alive].astype(float).mean(axis=1), atol=1e-9)


def test_encoding_shares_alphas_by_parcel_and_keeps_the_names(store, tmp_path):
    rng = np.random.default_rng(5)
    features = ToyFeatures(
        {"toy": {r: rng.standard_normal((store.n_trs(r), 4)).astype(np.float32) for r in store.runs}}, tr_s=store.tr_s
    )
    add_parcels(store, "own", n=6)
    store = open_bold(store.root)
    config = replace(FAST, alpha_per="parcel")
    result = fit_encoding(features, store, config, tmp_path / "r")
    data = result.dataset
    for number in range(1, 7):
        assert len(np.unique(data["fold_alpha"].values[:, data["parcel"].values == number], axis=1).T) == 1
    assert data["parcel"].attrs["parcel_names"][0] == "left-001"
    by_region = data["r_mean"].groupby("parcel").mean()
    assert by_region.sizes["parcel"] == 6
    # Other parcels are other inputs: a finished result of the first is not taken for theirs.
    add_parcels(store, "own", n=8)
    store = open_bold(store.root)
    with pytest.raises(ResumeError, match="parcels was"):
        fit_encoding(features, store, config, tmp_path / "r")
    # Parcels themselves, and their maps: every voxel of a parcel has its value.
    write_parcel_store(store, tmp_path / "p")
    mine = open_bold(tmp_path / "p")
    parcel_result = fit_encoding(features, mine, FAST, tmp_path / "rp")
    (path,) = write_parcel_maps(parcel_result, mine, tmp_path / "maps", desc="toy", statistics=("r",))
    drawn = nibabel.load(path).get_fdata()[tuple(store.ijk.T)]
    np.testing.assert_allclose(drawn, read_parcels(store).expand(parcel_result.dataset["r_mean"].values), atol=1e-6)


def test_the_command_goes_from_flags_to_parcels_and_their_series(store, tmp_path, capsys):
    flags = ["--atlas", "own", "--n", "12", "--series", str(tmp_path / "p"), "--workers", "0", "--json"]
    assert run(["bold", "parcels", str(store.root), *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["n_parcels"], facts["runs"]) == (12, 2)
    assert open_bold(tmp_path / "p").n_voxels == 12
    assert run(["bold", "parcels", str(store.root), "--atlas", str(tmp_path / "x.nii")]) == 1
    assert "no such atlas" in capsys.readouterr().err


def test_big_endian_and_packed_labels_are_read_alike(store, tmp_path):
    path, values = image_of(store, "plain.nii")
    swapped = nibabel.Nifti1Image(values, store.affine).as_reoriented(np.array([[0, 1], [1, 1], [2, 1]]))
    big = nibabel.Nifti1Image(values.astype(">i2"), store.affine, swapped.header.as_byteswapped(">"))
    nibabel.save(big, tmp_path / "big.nii")
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    found = [
        labels_at(p, store.ijk, store.shape, store.affine, "refuse")
        for p in (path, tmp_path / "big.nii", tmp_path / "packed.nii.gz")
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
