import gzip
from dataclasses import replace
from pathlib import Path

import nilearn.interfaces.fmriprep as fmriprep
import numpy as np
import pandas as pd
import pytest
from nilearn.signal import clean

from vidbrain.bold.bids import RunFiles, find_runs
from vidbrain.bold.clean import CleanConfig, clean_series, dead_series, read_confounds, refuse_unsolvable
from vidbrain.errors import BoldError, ConfigError
from vidbrain.records import RunKey

TR_S = 1.49


@pytest.fixture
def files(derivatives: Path) -> RunFiles:
    return find_runs(derivatives)[0]


def n_rows(files: RunFiles) -> int:
    return len(pd.read_csv(files.confounds, sep="\t"))


def toy_series(n: int, columns: int = 7) -> np.ndarray:
    rng = np.random.default_rng(4)
    return 800 + np.cumsum(rng.normal(size=(n, columns)), axis=0)


def copied(files: RunFiles, folder: Path, table: pd.DataFrame) -> RunFiles:
    bold = folder / files.bold.name
    bold.write_bytes(gzip.compress(b""))
    confounds = folder / files.confounds.name
    table.to_csv(confounds, sep="\t", index=False, na_rep="n/a")
    return replace(files, bold=bold, confounds=confounds)


@pytest.mark.parametrize("config", [CleanConfig(), CleanConfig(confounds="simple-gsr"), CleanConfig(confounds="none")])
def test_cleaning_equals_nilearn_with_its_own_strategy(files, config):
    n = n_rows(files)
    series = toy_series(n)
    if config.confounds == "none":
        table, _ = fmriprep.load_confounds(str(files.bold), strategy=["high_pass"])
    else:
        gsr = {"global_signal": "basic"} if config.confounds == "simple-gsr" else {}
        table, _ = fmriprep.load_confounds_strategy(str(files.bold), denoise_strategy="simple", **gsr)
        assert table.shape[1] == 24 + 2 + len(gsr) + sum("cosine" in name for name in table)
    expected = clean(series, confounds=table, filter=False, standardize="zscore_sample", detrend=True)
    found = clean_series(series, read_confounds(files, n, TR_S, config), config, TR_S)
    assert np.abs(found - expected).max() < 1e-9
    assert np.allclose(found.std(axis=0, ddof=1), 1.0)


def test_a_butterworth_filter_takes_the_place_of_cosines(files):
    n = n_rows(files)
    series = toy_series(n)
    config = CleanConfig(high_pass="butterworth", high_pass_s=100.0)
    confounds = read_confounds(files, n, TR_S, config)
    assert not any("cosine" in name for name in confounds.names)
    table, _ = fmriprep.load_confounds(str(files.bold), strategy=["motion", "wm_csf"])
    expected = clean(series, confounds=table, high_pass=0.01, t_r=TR_S, standardize="zscore_sample")
    assert np.abs(clean_series(series, confounds, config, TR_S) - expected).max() < 1e-6


def test_percent_signal_change_and_no_scale(files):
    n = n_rows(files)
    series = toy_series(n)
    for standardize in ("psc", "none"):
        config = CleanConfig(high_pass="none", standardize=standardize)
        table, _ = fmriprep.load_confounds(str(files.bold), strategy=["motion", "wm_csf"])
        expected = clean(series, confounds=table, filter=False, standardize=None if standardize == "none" else "psc")
        found = clean_series(series, read_confounds(files, n, TR_S, config), config, TR_S)
        assert np.abs(found - expected).max() < 1e-8


def test_dead_voxels_become_zeros_and_others_do_not_change(files):
    n = n_rows(files)
    series = toy_series(n)
    confounds = read_confounds(files, n, TR_S, CleanConfig())
    expected = clean_series(series, confounds, CleanConfig(), TR_S)
    series[:, 2] = 5.0
    series[3, 4] = np.nan
    series[:, 5] = np.inf
    assert np.flatnonzero(dead_series(series)).tolist() == [2, 4, 5]
    found = clean_series(series, confounds, CleanConfig(), TR_S)
    assert (found[:, [2, 4, 5]] == 0).all()
    assert np.allclose(found[:, [0, 1, 3, 6]], expected[:, [0, 1, 3, 6]])
    assert (clean_series(series[:, 2:3], confounds, CleanConfig(), TR_S) == 0).all()


def test_volumes_before_the_steady_state_are_left_out(files, tmp_path):
    table = pd.read_csv(files.confounds, sep="\t")
    for k in (0, 1):
        table[f"non_steady_state_outlier{k:02d}"] = (np.arange(len(table)) == k).astype(float)
    mine = copied(files, tmp_path, table)
    confounds = read_confounds(mine, len(table), TR_S, CleanConfig())
    assert np.flatnonzero(~confounds.kept).tolist() == [0, 1]
    series = toy_series(len(table))
    series[:2] += 1000
    theirs, kept = fmriprep.load_confounds_strategy(str(mine.bold), denoise_strategy="simple")
    expected = clean(series, confounds=theirs, sample_mask=kept, filter=False, standardize="zscore_sample")
    found = clean_series(series, confounds, CleanConfig(), TR_S)
    assert np.abs(found[2:] - expected).max() < 1e-9
    assert (found[:2] == 0).all()


def test_old_confounds_of_fmriprep_are_read(tmp_path):
    data = Path(fmriprep.__file__).parent / "data"
    stem = "sub-01_task-toy_run-1"
    (tmp_path / f"{stem}_desc-confounds_regressors.tsv").write_bytes(
        (data / "test_desc-confounds_regressors.tsv").read_bytes()
    )
    (tmp_path / f"{stem}_desc-confounds_regressors.json").write_bytes(
        (data / "test_desc-confounds_regressors.json").read_bytes()
    )
    bold = tmp_path / f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    bold.write_bytes(b"")
    tsv = tmp_path / f"{stem}_desc-confounds_regressors.tsv"
    files = RunFiles(run=RunKey("01", None, "toy", 1), space="x", bold=bold, mask=None, confounds=tsv, sidecar=None)
    n = len(pd.read_csv(tsv, sep="\t"))
    found = read_confounds(files, n, 2.0, CleanConfig())
    expected, kept = fmriprep.load_confounds_strategy(str(bold), denoise_strategy="simple")
    assert np.allclose(found.values, expected[list(found.names)])
    assert found.kept.sum() == len(kept)
    plain = replace(files, bold=tmp_path / bold.name[:-3])
    assert np.array_equal(read_confounds(plain, n, 2.0, CleanConfig()).values, found.values)


def test_names_come_in_the_same_order_in_every_process(files):
    names = read_confounds(files, n_rows(files), TR_S, CleanConfig()).names
    assert list(names) == sorted(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["trans_x_power2"]), "trans_x_power2"),
        (lambda t: t.drop(columns=["csf", "white_matter"]), "wm_csf"),
        (lambda t: t.iloc[:-3], "rows of confounds for"),
        (lambda t: t.drop(columns=[c for c in t if "cosine" in c]), "no cosine columns"),
        (lambda t: t.assign(csf=t["csf"].where(t.index != 5)), "gaps or infinities in csf"),
        (lambda t: t.rename(columns={"csf": "WhiteMatter"}), "camel case"),
    ],
)
def test_tables_that_do_not_serve_are_refused(files, tmp_path, change, message):
    table = pd.read_csv(files.confounds, sep="\t")
    mine = copied(files, tmp_path, change(table))
    with pytest.raises(BoldError, match=message) as caught:
        read_confounds(mine, len(table), TR_S, CleanConfig())
    assert caught.value.where == str(mine.confounds)


def test_a_run_shorter_than_its_confounds_is_refused(files):
    confounds = read_confounds(files, n_rows(files), TR_S, CleanConfig())
    few = replace(confounds, kept=np.arange(len(confounds.kept)) < 20)
    with pytest.raises(BoldError, match="20 volumes cannot bear"):
        refuse_unsolvable(few, files.bold)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="high_pass_s"):
        CleanConfig(high_pass_s=0)
    for wrong in (np.nan, np.inf, -1.0):
        with pytest.raises(ConfigError, match="high_pass_s"):
            CleanConfig(high_pass_s=wrong)
        with pytest.raises(ConfigError, match="fwhm_mm"):
            CleanConfig(fwhm_mm=wrong)
    with pytest.raises(ConfigError, match="fwhm_mm must lie between 0 and 100 mm"):
        CleanConfig(fwhm_mm=1e9)
