"""A simulation is what was asked for: estimates that know nothing of the simulator find its settings again."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask
from scipy.linalg import solve_toeplitz
from scipy.ndimage import gaussian_filter

from vidbrain.bold.clean import CleanConfig
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.simulation.drivers import BINS_PER_TR, canonical_hrf
from vidbrain.bold.simulation.experiment import SimulateConfig, repeated
from vidbrain.bold.simulation.grids import brain_grid
from vidbrain.bold.simulation.noise import without_drift
from vidbrain.bold.simulation.planted import plant_mixtures
from vidbrain.bold.simulation.simulate import simulate, simulate_features
from vidbrain.bold.simulation.truth import correlation, measured_ceiling, open_truth
from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run
from vidbrain.encoding.inference.ceiling import from_repeats, from_split_halves, from_subjects
from vidbrain.errors import AlignmentError, BoldError, ConfigError, ResumeError
from vidbrain.features.store import open_features, write_run
from vidbrain.storage.info import write_info
from vidbrain.testing.brains import ToyFeatures

TR_S = 1.0
QUIET = SimulateConfig(resolution_mm=10, drift=0.0, physiology=0.0, motion=0.0, fwhm_mm=0.0, seed=5)
RAW = IngestConfig(clean=CleanConfig(confounds="none"))


def white_features(n_runs=2, n_trs=300, n_features=3, *, subject="01", seed=0):
    rng = np.random.default_rng(seed)
    runs = [f"sub-{subject}_task-film_run-{1 + n}" for n in range(n_runs)]
    values = {r: 7.0 + 3.0 * rng.standard_normal((n_trs, n_features)).astype(np.float32) for r in runs}
    return ToyFeatures({"toy": values}, tr_s=TR_S)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Two subjects see one run four times; no drift, no motion, white drivers."""
    out = tmp_path_factory.mktemp("film") / "simulated"
    config = replace(QUIET, n_repeats=4, private_share=0.4, hrf_peak_s=6.0, ar1=0.45, ceiling=0.6, noise_share=0.4)
    simulate_features(white_features(1, 300), out, config, n_subjects=2)
    ingest(out, out.parent / "bold", RAW)
    return open_truth(out), open_bold(out.parent / "bold"), config


def series_of(store, subject):
    """Repeats of one subject, (n_repeats, n_trs, n_voxels) float64, without drift."""
    runs = [label for label in store.runs if label.startswith(f"sub-{subject}")]
    return np.stack([without_drift(store.read(label).astype(float), store.tr_s) for label in runs])


def test_the_response_peaks_when_it_was_told_to(film):
    """Finite impulse responses by least squares, of the data and nothing but the drivers before the response."""
    truth, store, config = film
    label = store.runs[0]
    drivers, data = truth.drivers(label, convolved=False), without_drift(store.read(label).astype(float), TR_S)
    n_lags, best = 14, np.flatnonzero(truth.aligned(store).ceiling > 0.5)
    lagged = np.zeros((len(drivers), n_lags * drivers.shape[1]))
    for lag in range(n_lags):
        lagged[lag:, lag * drivers.shape[1] : (lag + 1) * drivers.shape[1]] = drivers[: len(drivers) - lag]
    found = np.linalg.lstsq(without_drift(lagged, TR_S), data[:, best], rcond=None)[0]
    found = found.reshape(n_lags, drivers.shape[1], -1)
    # The common time course of all responses, up to its sign: their first singular vector.
    course = np.linalg.svd(found.reshape(n_lags, -1), full_matrices=False)[0][:, 0]
    course *= np.sign(course[np.argmax(np.abs(course))])
    top = int(np.argmax(course))
    a, b, c = course[top - 1 : top + 2]
    peak_s = TR_S * (top + 0.5 * (a - c) / (a - 2 * b + c))  # a parabola through the three highest
    assert peak_s == pytest.approx(config.hrf_peak_s, abs=0.4)


def test_the_noise_remembers_as_much_as_it_was_told_to(film):
    """Yule-Walker of order 2 in voxels without signal."""
    truth, store, config = film
    silent = truth.aligned(store).kind == 0
    noise = series_of(store, "01")[:, :, silent]
    lags = [np.mean((noise[:, lag:] * noise[:, : noise.shape[1] - lag]).sum(axis=1) / 300) for lag in range(3)]
    first, second = solve_toeplitz(lags[:2], lags[1:])
    assert first == pytest.approx(config.ar1, abs=0.03)
    assert second == pytest.approx(0.0, abs=0.03)


def test_ceilings_from_repeats_are_those_that_were_planted(film):
    truth, store, config = film
    mine = truth.aligned(store)
    planted = mine.kind == 1
    for subject in ("01", "02"):
        responses = series_of(store, subject)
        for found in (from_repeats(responses, "single"), from_split_halves(responses, "single")):
            assert np.nanmedian(found.r[planted]) == pytest.approx(config.ceiling, abs=0.03)
            assert np.corrcoef(found.r[planted], mine.ceiling[planted])[0, 1] > 0.8
    known = measured_ceiling(truth, store)
    assert np.median(known[planted]) == pytest.approx(config.ceiling, abs=0.03)


def test_the_share_of_noise_voxels_is_what_was_asked_for(film):
    """In noise the correlation of two halves is as often below 0 as above; in signal hardly ever."""
    truth, store, config = film
    responses = series_of(store, "02")
    r = correlation(responses[:2].mean(axis=0), responses[2:].mean(axis=0))
    assert 2 * np.mean(r < 0) == pytest.approx(config.noise_share, abs=0.06)
    kinds = truth.info["n_by_kind"]
    assert kinds["noise"] / truth.n_voxels == pytest.approx(config.noise_share, abs=1 / truth.n_voxels)


def test_subjects_share_what_they_were_told_to(film):
    truth, store, config = film
    planted = np.flatnonzero(truth.kind == 1)
    scans = [label for label in truth.runs if truth.info["shown"][label] == "sub-01_task-film_run-1"]
    one, two = (next(label for label in scans if label.startswith(s)) for s in ("sub-01", "sub-02"))
    signal = {label: without_drift(truth.signal(label, planted), TR_S) for label in (one, two)}
    between = correlation(signal[one], signal[two])
    assert np.mean(between) == pytest.approx(1 - config.private_share, abs=0.08)
    assert np.allclose(truth.signal(one, planted), truth.signal(scans[2], planted))  # a repeat has the same signal
    # In the data: the means over repeats correlate by no more than what is shared, and by no less.
    means = np.stack([series_of(store, s).mean(axis=0) for s in ("01", "02")])
    reliable = np.median([from_repeats(series_of(store, s), "mean").r for s in ("01", "02")], axis=0)
    order = truth.aligned(store)
    good = (order.kind == 1) & (reliable > 0.5)
    shared = from_subjects(means).r[0][good] / reliable[good] ** 2
    assert np.nanmedian(shared) == pytest.approx(1 - config.private_share, abs=0.12)


def test_a_store_of_fewer_voxels_finds_its_own_in_the_truth(film, tmp_path):
    truth, store, _ = film
    half = np.zeros(truth.shape, np.uint8)
    chosen = truth.ijk[np.random.default_rng(0).permutation(truth.n_voxels)[:200]]
    half[tuple(chosen.T)] = 1
    nibabel.save(nibabel.Nifti1Image(half, truth.affine), tmp_path / "half.nii.gz")
    ingest(truth.root.parent, tmp_path / "b", RAW, mask=tmp_path / "half.nii.gz")
    small = open_bold(tmp_path / "b")
    mine, label = truth.aligned(small), store.runs[0]
    places = [int(np.flatnonzero((truth.ijk == voxel).all(axis=1))[0]) for voxel in small.ijk]
    np.testing.assert_allclose(mine.signal(label), truth.signal(label)[:, places], atol=1e-10)
    np.testing.assert_allclose(measured_ceiling(truth, small), measured_ceiling(truth, store)[places], atol=1e-6)


def test_noise_differs_between_scans_and_is_smooth_as_told(tmp_path):
    config = replace(QUIET, resolution_mm=8, fwhm_mm=16.0, noise_share=0.99, n_repeats=2)
    simulate_features(white_features(1, 60), tmp_path / "s", config)
    first, second = (nibabel.load(p).get_fdata() for p in sorted((tmp_path / "s").rglob("*_bold.nii.gz")))
    inside = np.asarray(nibabel.load(next((tmp_path / "s").rglob("*brain_mask.nii.gz"))).dataobj) > 0

    def changes(volume):
        return (volume - volume.mean(axis=-1, keepdims=True)) / volume.std(axis=-1, keepdims=True).clip(1e-9)

    a, b = changes(first), changes(second)
    assert abs(np.mean(a[inside] * b[inside])) < 0.03
    pairs = inside[1:] & inside[:-1]
    found = np.mean(a[1:][pairs] * a[:-1][pairs])
    impulse = np.zeros(81)
    impulse[40] = 1
    kernel = gaussian_filter(impulse, 16 / 2.3548 / 8)
    assert found == pytest.approx((kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum(), abs=0.03)


def test_drift_and_motion_are_as_strong_as_asked(tmp_path):
    spread = {}
    for drift, motion in ((0.0, 0.0), (2.0, 0.0), (0.0, 6.0)):
        out = tmp_path / f"{drift}{motion}"
        simulate_features(white_features(1, 120), out, replace(QUIET, noise_share=0.9, drift=drift, motion=motion))
        data = nibabel.load(next(out.rglob("*_bold.nii.gz"))).get_fdata()
        inside = np.asarray(nibabel.load(next(out.rglob("*brain_mask.nii.gz"))).dataobj) > 0
        series = data[inside].T
        slow = series - without_drift(series, TR_S)
        percent = 100 / series.mean(axis=0)
        spread[drift, motion] = np.median(slow.std(axis=0) * percent), series.std(axis=0) * percent
    assert spread[2.0, 0.0][0] > 3 * spread[0.0, 0.0][0]
    quiet, moved = spread[0.0, 0.0][1], spread[0.0, 6.0][1]
    assert np.median(quiet) == pytest.approx(QUIET.noise_percent, rel=0.1)
    # Motion is seen at the edge of the brain, and hardly inside.
    assert np.percentile(moved, 95) > 1.3 * np.percentile(quiet, 95)
    assert np.median(moved) < 1.1 * np.median(quiet)


@pytest.mark.parametrize("peak_s", [3.5, 5.0, 6.5])
def test_a_stretched_response_is_spms_at_another_pace(peak_s):
    response = canonical_hrf(0.8, peak_s)
    times = np.arange(len(response)) * 0.8 / BINS_PER_TR
    assert times[np.argmax(response)] == pytest.approx(peak_s, abs=0.1)
    assert response.sum() == pytest.approx(1.0)
    plain = canonical_hrf(0.8)
    stretched = np.interp(times * 5.0 / peak_s, np.arange(len(plain)) * 0.8 / BINS_PER_TR, plain, right=0)
    assert np.corrcoef(stretched, response)[0, 1] > 0.999


def test_many_features_drive_through_mixtures_that_they_explain(tmp_path):
    features = white_features(2, 120, 90)
    simulate_features(features, tmp_path / "s", replace(QUIET, max_drivers=5))
    truth = open_truth(tmp_path / "s")
    assert truth.driver_names == ("mixture_00", "mixture_01", "mixture_02", "mixture_03", "mixture_04")
    label = truth.runs[0]
    assert truth.n_trs(label) == 120 + 6  # the scan goes on while the response does
    x = features.values["toy"][label].astype(float)
    drivers = truth.drivers(label, convolved=False)[:120]
    residual = (
        drivers
        - np.column_stack([x, np.ones(120)])
        @ np.linalg.lstsq(np.column_stack([x, np.ones(120)]), drivers, rcond=None)[0]
    )
    assert np.abs(residual).max() < 1e-4 * np.abs(drivers).max()
    assert (truth.drivers(label, convolved=False)[120:] == 0).all()


def test_volumes_without_video_are_rest(tmp_path):
    features = white_features(1, 80)
    label = features.runs[0]
    valid = np.ones(80, bool)
    valid[30:50] = False
    features.values["toy"][label][30:50] = np.nan  # what is not valid may hold anything
    features = replace(features, valid={label: valid})
    simulate_features(features, tmp_path / "s", QUIET)
    drivers = open_truth(tmp_path / "s").drivers(label, convolved=False)
    assert (drivers[30:50] == 0).all()
    assert np.abs(drivers[:30]).min() > 0
    features.values["toy"][label][3] = np.inf
    with pytest.raises(BoldError, match="not finite"):
        simulate_features(features, tmp_path / "t", QUIET)


def test_any_mask_and_blocks_of_any_size_give_the_same_brain(tmp_path, monkeypatch):
    affine = np.diag([-9.0, 9.0, 9.0, 1.0])
    affine[:3, 3] = (60, -90, -50)
    inside = np.zeros((13, 16, 12), np.uint8)
    inside[2:-2, 2:-2, 2:-2] = 1
    mask = tmp_path / "space-MNI152NLin6Asym_mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(inside, affine), mask)
    config = replace(QUIET, dtype="float32")
    simulate_features(white_features(1, 50), tmp_path / "a", config, mask=mask)
    image = nibabel.load(next((tmp_path / "a").rglob("*space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, affine)
    np.testing.assert_array_equal(image.get_fdata().std(axis=-1) > 0, inside > 0)
    monkeypatch.setattr("vidbrain.bold.simulation.scan._BLOCK_VALUES", inside.size * 3)
    simulate_features(white_features(1, 50), tmp_path / "b", config, mask=mask)
    other = nibabel.load(next((tmp_path / "b").rglob("*_bold.nii.gz")))
    np.testing.assert_allclose(other.get_fdata(), image.get_fdata(), rtol=1e-6)
    turned = affine.copy()
    turned[0, 1] = 3.0
    nibabel.save(nibabel.Nifti1Image(inside, turned), tmp_path / "oblique.nii.gz")
    with pytest.raises(BoldError, match="turned"):
        simulate_features(white_features(1, 50), tmp_path / "c", config, mask=tmp_path / "oblique.nii.gz")
    nibabel.save(nibabel.Nifti1Image(0 * inside, affine), tmp_path / "empty.nii.gz")
    with pytest.raises(BoldError, match="no voxel lies inside"):
        simulate_features(white_features(1, 50), tmp_path / "c", config, mask=tmp_path / "empty.nii.gz")


def test_maps_are_smooth_in_space_and_noise_is_where_it_was_asked_for():
    grid = brain_grid(8)
    brain = plant_mixtures(
        grid.ijk, grid.affine, live=np.ones(4, bool), noise_share=0.3, ceiling=0.7, ceiling_sd=0.1, seed=1
    )
    assert np.mean(brain.kind == 0) == pytest.approx(0.3, abs=1e-3)
    volume = np.full(grid.shape, np.nan)
    for values in (brain.kind.astype(float), brain.weights[:, 2]):
        volume[tuple(grid.ijk.T)] = values
        a, b = volume[1:].ravel(), volume[:-1].ravel()
        both = np.isfinite(a) & np.isfinite(b)
        assert np.corrcoef(a[both], b[both])[0, 1] > 0.5
    assert np.median(brain.ceiling[brain.kind == 1]) == pytest.approx(0.7, abs=0.01)


def test_a_whole_brain_at_2_mm_is_nilearns_mask():
    grid = brain_grid(2)
    mask = load_mni152_brain_mask(resolution=2)
    assert len(grid.ijk) == 235_375 == int((mask.get_fdata() > 0).sum())
    mm = grid.ijk @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    theirs = nibabel.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0))
    assert np.array_equal(np.sort(mm, axis=0), np.sort(theirs, axis=0))


def test_names_of_repeats_do_not_collide():
    assert repeated(["sub-01_task-x_run-2", "sub-01_task-y"], 2) == {
        "sub-01_task-x_run-2": "sub-01_task-x_run-2",
        "sub-01_task-x_run-102": "sub-01_task-x_run-2",
        "sub-01_task-y": "sub-01_task-y",
        "sub-01_task-y_run-100": "sub-01_task-y",
    }
    with pytest.raises(BoldError, match="another run"):
        repeated(["sub-01_task-x_run-1", "sub-01_task-x_run-101"], 2)
    both = ToyFeatures({"toy": {f"sub-0{s}_task-x_run-1": np.ones((30, 2), np.float32) for s in (1, 2)}}, tr_s=TR_S)
    with pytest.raises(BoldError, match="one name"):
        simulate_features(both, "nowhere", QUIET, n_subjects=2)


def test_layers_are_chosen_and_other_inputs_refused(tmp_path):
    values = {f"sub-01_task-x_run-{n}": np.random.default_rng(n).normal(size=(40, 2)).astype("f4") for n in (1, 2)}
    features = ToyFeatures({"a": values, "b": values}, tr_s=TR_S)
    with pytest.raises(AlignmentError, match="2 layers"):
        simulate_features(features, tmp_path / "s", QUIET)
    with pytest.raises(AlignmentError, match="'c' is none of them"):
        simulate_features(features, tmp_path / "s", QUIET, layer="c")
    simulate_features(features, tmp_path / "s", QUIET, layer="a")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    simulate_features(features, tmp_path / "s", QUIET, layer="a")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before
    with pytest.raises(ResumeError, match="layer was 'a', is 'b'"):
        simulate_features(features, tmp_path / "s", QUIET, layer="b")


def test_game_play_is_scanned_again_and_by_subjects_of_their_own(tree, tmp_path):
    config = SimulateConfig(resolution_mm=12, n_repeats=2, private_share=0.5, seed=3)
    simulate(tree, tmp_path / "s", config)
    truth = open_truth(tmp_path / "s")
    assert sorted(truth.info["runs"]) == sorted(f"sub-01_ses-001_task-toy_run-{n}" for n in (1, 2, 101, 102))
    label = "sub-01_ses-001_task-toy_run-1"
    planted = np.flatnonzero(truth.kind > 0)
    np.testing.assert_array_equal(truth.drivers(label), truth.drivers("sub-01_ses-001_task-toy_run-101"))
    shared = truth.drivers(label) @ truth.weights[planted].T.astype(float)
    assert np.median(correlation(without_drift(shared, 1.49), without_drift(truth.signal(label, planted), 1.49))) > 0.5
    assert np.allclose((truth.weights_of(label)[truth.kind == 0]), 0)


def feature_set(root: Path) -> Path:
    toy = white_features(2, 60)
    for label, values in toy.values["toy"].items():
        write_run(
            root, "toy", label, features=values, valid=np.ones(60, bool), attributes={"tr_s": TR_S, "fingerprint": "x"}
        )
    config = {"layers": [{"name": "toy"}], "tr_s": TR_S}
    write_info(root, "features", config=config, made_from={}, facts={"runs": list(toy.runs)})
    return root


def test_the_command_goes_from_features_to_a_store(tmp_path, capsys):
    features = feature_set(tmp_path / "f")
    flags = ["--resolution-mm", "14", "--n-subjects", "2", "--private-share", "0.3", "--workers", "0", "--json"]
    places = ["--features", str(features), "--out", str(tmp_path / "s"), "--store", str(tmp_path / "b")]
    assert run(["bold", "simulate", *places, *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["subjects"], facts["runs"], facts["tr_s"]) == (2, 4, TR_S)
    assert open_bold(tmp_path / "b").simulated
    assert open_features(features).runs == ["sub-01_task-film_run-1", "sub-01_task-film_run-2"]
    assert run(["bold", "simulate", str(tmp_path), "--features", str(features)]) == 1
    assert "not by both" in capsys.readouterr().err
    assert run(["bold", "simulate", "--layer", "toy"]) == 1


MEASURE = """
import resource, sys
import numpy as np
from vidbrain.bold.simulation.simulate import simulate_features
from vidbrain.bold.simulation.experiment import SimulateConfig
from vidbrain.testing.brains import ToyFeatures
n = int(sys.argv[2])
values = np.random.default_rng(0).standard_normal((n, 2)).astype("f4")
config = SimulateConfig(resolution_mm=4, noise_share=0.9, physiology=0.0)
simulate_features(ToyFeatures({"toy": {"sub-01_task-x_run-1": values}}, tr_s=2.0), sys.argv[1], config)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path):
    peaks = []
    for n in (40, 120):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / str(n)), str(n)], check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout))
    # 80 more volumes of 29,398 voxels would be 9 MB in float32, 72 MB as volumes in float64.
    assert peaks[1] - peaks[0] < 25e6


@pytest.mark.parametrize("wrong", [{"private_share": 1.2}, {"hrf_peak_s": 1.0}, {"n_repeats": 0}, {"drift": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SimulateConfig(**wrong)
