"""Every preset of confounds, run by run through ingest, against nilearn's own loading, masking and cleaning."""

import json
import shutil
import warnings
from pathlib import Path

import nibabel
import nilearn.interfaces.fmriprep as fmriprep
import numpy as np
import pandas as pd
import pytest
from nilearn.maskers import NiftiMasker
from nilearn.signal import clean

from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.store import open_bold
from vidbrain.errors import BoldError, ConfigError

SHIPPED = Path(fmriprep.__file__).parent / "data"
"""Confounds that fMRIPrep wrote and nilearn ships: 30 volumes, fewer than most presets have regressors."""
TR_S = 1.49
SHAPE = (7, 8, 6)
AFFINE = np.diag([3.0, 3.0, 4.0, 1.0])


def longer_table(shipped: pd.DataFrame, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """The columns of a real table with drawn values, its first derivatives missing, its cosines cosines."""
    table = pd.DataFrame(rng.standard_normal((n, shipped.shape[1])).cumsum(axis=0), columns=shipped.columns)
    for k, name in enumerate(column for column in table if column.startswith("cosine")):
        table[name] = np.cos(np.pi * (np.arange(n) + 0.5) * (k + 1) / n)
    for name in (column for column in table if "non_steady" in column or "motion_outlier" in column):
        table[name] = 0.0
    table["non_steady_state_outlier00"] = (np.arange(n) == 0).astype(float)
    table["framewise_displacement"] = np.where(np.isin(np.arange(n), [40, 41, 120]), 0.9, 0.1)
    table["std_dvars"] = 1.0
    table.loc[0, [c for c in table if "derivative1" in c or c in ("framewise_displacement", "std_dvars")]] = np.nan
    return table


@pytest.fixture(scope="module")
def derivatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of other lengths with the columns of a real fMRIPrep table, as plain and as AROMA's volumes."""
    rng = np.random.default_rng(8)
    root = tmp_path_factory.mktemp("presets") / "fmriprep"
    folder = root / "sub-01" / "func"
    folder.mkdir(parents=True)
    shipped = pd.read_csv(SHIPPED / "test_desc-confounds_regressors.tsv", sep="\t")
    for run, n in ((1, 150), (2, 170)):
        stem = f"sub-01_task-x_run-{run}"
        longer_table(shipped, n, rng).to_csv(
            folder / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a"
        )
        shutil.copy(SHIPPED / "test_desc-confounds_regressors.json", folder / f"{stem}_desc-confounds_timeseries.json")
        for desc in ("preproc", "smoothAROMAnonaggr"):
            walk = rng.standard_normal((*SHAPE, n), dtype=np.float32).cumsum(axis=-1)
            image = nibabel.Nifti1Image((900 + 4 * walk).astype(np.float32), AFFINE)
            image.header.set_xyzt_units("mm", "sec")
            image.header["pixdim"][4] = TR_S
            image.to_filename(folder / f"{stem}_space-MNI_desc-{desc}_bold.nii.gz")
        mask = rng.random(SHAPE) < 0.8
        nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE).to_filename(
            folder / f"{stem}_space-MNI_desc-brain_mask.nii.gz"
        )
    return root


PRESETS = {
    "simple": {"denoise_strategy": "simple"},
    "simple-gsr": {"denoise_strategy": "simple", "global_signal": "basic"},
    "scrubbing": {"denoise_strategy": "scrubbing", "fd_threshold": 0.5, "std_dvars_threshold": 1.5},
    "scrubbing-gsr": {
        "denoise_strategy": "scrubbing",
        "fd_threshold": 0.5,
        "std_dvars_threshold": 1.5,
        "global_signal": "basic",
    },
    "compcor": {"denoise_strategy": "compcor"},
    "ica_aroma": {"denoise_strategy": "ica_aroma"},
}


def series_of(derivatives: Path, desc: str, run: int) -> Path:
    return derivatives / "sub-01" / "func" / f"sub-01_task-x_run-{run}_space-MNI_desc-{desc}_bold.nii.gz"


def in_order(store, image) -> np.ndarray:
    return image.get_fdata()[tuple(store.ijk.T)].T


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_equals_nilearn_run_by_run(derivatives, tmp_path, preset):
    config = CleanConfig(confounds=preset)
    ingest(derivatives, tmp_path / "b", IngestConfig(clean=config))
    store = open_bold(tmp_path / "b")
    for run, label in enumerate(store.runs, start=1):
        path = series_of(derivatives, config.desc, run)
        table, kept = fmriprep.load_confounds_strategy(str(path), **PRESETS[preset])
        data = store.open(label)
        assert sorted(table.columns) == list(data.attrs["confound_names"])
        assert np.flatnonzero(data["kept"]).tolist() == kept.tolist()
        expected = clean(
            in_order(store, nibabel.load(path)),
            confounds=table,
            sample_mask=kept,
            filter=False,
            detrend=True,
            standardize="zscore_sample",
        )
        found = store.read(label)
        assert np.abs(found[kept] - expected).max() < 1e-5
        left_out = np.setdiff1d(np.arange(len(found)), kept)
        assert 0 in left_out
        assert len(left_out) == (4 if preset.startswith("scrubbing") else 1)
        assert (found[left_out] == 0).all()


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({"detrend": False}, "simple"),
        ({"high_pass": "butterworth", "confounds": "scrubbing"}, "scrubbing"),
        ({"high_pass": "butterworth", "confounds": "simple", "standardize": "psc"}, "simple"),
        ({"high_pass": "none", "confounds": "scrubbing", "standardize": "none"}, "scrubbing"),
    ],
)
def test_other_choices_equal_nilearn_too(derivatives, tmp_path, options, strategy):
    """Volumes are left out after the filter, which fills them in, as nilearn does."""
    config = CleanConfig(**options)
    ingest(derivatives, tmp_path / "b", IngestConfig(clean=config))
    store = open_bold(tmp_path / "b")
    for run, label in enumerate(store.runs, start=1):
        path = series_of(derivatives, "preproc", run)
        table, kept = fmriprep.load_confounds_strategy(str(path), **PRESETS[strategy])
        if config.high_pass != "cosines":
            table = table[[name for name in table if "cosine" not in name]]
        butterworth = config.high_pass == "butterworth"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice about detrending, and what a sample mask does
            expected = clean(
                in_order(store, nibabel.load(path)),
                confounds=table,
                sample_mask=kept,
                filter="butterworth" if butterworth else False,
                high_pass=1 / 128 if butterworth else None,
                t_r=TR_S,
                detrend=config.detrend,
                standardize=None if config.standardize == "none" else config.standardize,
                extrapolate=False,
            )
        found = store.read(label)
        assert np.flatnonzero(store.open(label)["kept"]).tolist() == kept.tolist()
        assert np.abs(found[kept] - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


def test_voxels_are_those_inside_every_runs_mask(derivatives, tmp_path):
    ingest(derivatives, tmp_path / "b")
    masks = [nibabel.load(path).get_fdata() > 0 for path in derivatives.rglob("*brain_mask.nii.gz")]
    assert len(masks) == 2
    assert (masks[0] != masks[1]).any()
    store = open_bold(tmp_path / "b")
    assert np.array_equal(store.to_volume(np.ones(store.n_voxels)) > 0, masks[0] & masks[1])
    other = Path(shutil.copytree(derivatives, tmp_path / "apart"))
    path = next(other.rglob("*run-2*brain_mask.nii.gz"))
    nibabel.Nifti1Image((~(masks[0] | masks[1])).astype(np.uint8), AFFINE).to_filename(path)
    one = next(other.rglob("*run-1*brain_mask.nii.gz"))
    nibabel.Nifti1Image((masks[0] | masks[1]).astype(np.uint8), AFFINE).to_filename(one)
    with pytest.raises(BoldError, match="no voxel lies inside all 2 masks"):
        ingest(other, tmp_path / "c")


@pytest.mark.parametrize("standardize", ["zscore_sample", "psc"])
def test_smoothing_comes_first_as_in_nilearns_masker(derivatives, tmp_path, standardize):
    ingest(derivatives, tmp_path / "b", IngestConfig(clean=CleanConfig(fwhm_mm=6.0, standardize=standardize)))
    store = open_bold(tmp_path / "b")
    mask = nibabel.Nifti1Image(store.to_volume(np.ones(store.n_voxels, np.uint8)), AFFINE)
    path = series_of(derivatives, "preproc", 2)
    table, kept = fmriprep.load_confounds_strategy(str(path), denoise_strategy="simple")
    masker = NiftiMasker(mask, smoothing_fwhm=6.0, detrend=True, standardize=standardize, dtype="float64")
    # nilearn smooths in the type that it is given: double precision, as here.
    double = nibabel.Nifti1Image(nibabel.load(path).get_fdata(), AFFINE)
    expected = masker.fit_transform(double, confounds=table, sample_mask=kept)
    volumes = np.stack([store.to_volume(row) for row in store.read(store.runs[1])[kept]])
    inside = mask.get_fdata() > 0
    assert np.abs(volumes[:, inside] - expected).max() < 1e-5


def test_real_confounds_of_30_volumes_serve_where_they_can(derivatives, tmp_path):
    folder = tmp_path / "fmriprep" / "sub-01" / "func"
    folder.mkdir(parents=True)
    stem = "sub-01_task-x_run-1"
    for end in ("tsv", "json"):
        shutil.copy(
            SHIPPED / f"test-v21_desc-confounds_timeseries.{end}", folder / f"{stem}_desc-confounds_timeseries.{end}"
        )
    for desc in ("preproc", "smoothAROMAnonaggr"):
        image = nibabel.load(series_of(derivatives, desc, 1))
        image.slicer[..., :30].to_filename(folder / f"{stem}_space-MNI_desc-{desc}_bold.nii.gz")
    shutil.copy(
        derivatives / "sub-01" / "func" / f"{stem}_space-MNI_desc-brain_mask.nii.gz",
        folder / f"{stem}_space-MNI_desc-brain_mask.nii.gz",
    )
    ingest(tmp_path / "fmriprep", tmp_path / "b", IngestConfig(clean=CleanConfig(confounds="ica_aroma")))
    store = open_bold(tmp_path / "b")
    path = folder / f"{stem}_space-MNI_desc-smoothAROMAnonaggr_bold.nii.gz"
    table, kept = fmriprep.load_confounds_strategy(str(path), denoise_strategy="ica_aroma")
    expected = clean(in_order(store, nibabel.load(path)), confounds=table, sample_mask=kept, filter=False)
    assert np.abs(store.read(store.runs[0])[kept] - expected).max() < 1e-5
    with pytest.raises(BoldError, match="27 volumes cannot bear 29 regressors"):
        ingest(tmp_path / "fmriprep", tmp_path / "c")


def test_slow_drift_goes_once(derivatives, tmp_path):
    butterworth = CleanConfig(high_pass="butterworth")
    ingest(derivatives, tmp_path / "b", IngestConfig(clean=butterworth))
    for label in open_bold(tmp_path / "b").runs:
        names = open_bold(tmp_path / "b").open(label).attrs["confound_names"]
        assert not [name for name in names if name.startswith("cosine")]
    with pytest.raises(ConfigError, match="compcor goes with"):
        CleanConfig(confounds="compcor", high_pass="butterworth")
    with pytest.raises(ConfigError, match="fwhm_mm"):
        CleanConfig(fwhm_mm=-1.0)


def test_every_choice_is_recorded(derivatives, tmp_path):
    config = IngestConfig(voxels="brain", clean=CleanConfig(confounds="scrubbing", fwhm_mm=5.0))
    ingest(derivatives, tmp_path / "b", config)
    record = json.loads((tmp_path / "b" / "info.json").read_text())
    assert record["config"]["clean"] == {
        "confounds": "scrubbing",
        "high_pass": "cosines",
        "high_pass_s": 128.0,
        "fwhm_mm": 5.0,
        "detrend": True,
        "standardize": "zscore_sample",
    }
    assert record["mask"] == "inside every run's brain mask"
    assert open_bold(tmp_path / "b").open("sub-01_task-x_run-1").attrs["clean"] == record["config"]["clean"]


def test_grey_matter_is_taken_from_the_anatomy_of_each_subject(derivatives, tmp_path):
    mine = Path(shutil.copytree(derivatives, tmp_path / "fmriprep"))
    config = IngestConfig(voxels="grey", grey_above=0.3)
    with pytest.raises(BoldError, match=r"no grey matter probability .* of sub-01 in space MNI"):
        ingest(mine, tmp_path / "b", config)
    rng = np.random.default_rng(9)
    fine = rng.random(tuple(2 * n for n in SHAPE)).astype(np.float32)
    fine_affine = np.diag([1.5, 1.5, 2.0, 1.0])
    (mine / "sub-01" / "anat").mkdir()
    probability = nibabel.Nifti1Image(fine, fine_affine)
    probability.to_filename(mine / "sub-01" / "anat" / "sub-01_space-MNI_label-GM_probseg.nii.gz")
    nibabel.Nifti1Image(fine * 0, fine_affine).to_filename(
        mine / "sub-01" / "anat" / "sub-01_space-MNI_res-9_label-GM_probseg.nii.gz"
    )
    ingest(mine, tmp_path / "b", config)
    store = open_bold(tmp_path / "b")
    # The coarse grid's centres are centres of the fine one: every second voxel, nothing between.
    expected = fine[::2, ::2, ::2] > 0.3
    for path in (mine / "sub-01" / "func").glob("*brain_mask.nii.gz"):
        expected &= nibabel.load(path).get_fdata() > 0
    assert np.array_equal(store.to_volume(np.ones(store.n_voxels)) > 0, expected)
    assert "grey matter probability above 0.3" in store.info["mask"]
    with pytest.raises(BoldError, match="no voxel of the mask has a grey matter probability above"):
        ingest(mine, tmp_path / "c", IngestConfig(voxels="grey", grey_above=0.999999))
