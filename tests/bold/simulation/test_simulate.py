import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds, load_confounds_strategy

from vidbrain.bold.bids import find_runs
from vidbrain.bold.clean import CleanConfig, clean_series, read_confounds
from vidbrain.bold.simulation.drivers import BINS_PER_TR, KINDS
from vidbrain.bold.simulation.experiment import SimulateConfig
from vidbrain.bold.simulation.measure import read_fine
from vidbrain.bold.simulation.noise import without_drift
from vidbrain.bold.simulation.planted import receptive_fields
from vidbrain.bold.simulation.simulate import simulate
from vidbrain.bold.simulation.truth import correlation, measured_ceiling, open_truth
from vidbrain.bold.store import open_bold
from vidbrain.cluster import client
from vidbrain.errors import AlignmentError, BoldError, ConfigError, ResumeError, StorageError
from vidbrain.storage.atomic import PART

CONFIG = SimulateConfig(resolution_mm=12, ceiling=0.65, seed=3)
RUN = "sub-01_ses-001_task-toy_run-1"


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_files_are_what_nibabel_and_nilearn_expect(derivatives):
    folder = derivatives / "sub-01" / "ses-001" / "func"
    bold = folder / f"{RUN}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    image = nibabel.load(bold)
    n_trs = open_truth(derivatives).n_trs(RUN)
    assert n_trs == int(np.ceil((76.4 + 72.5 + 6.0) / 1.49))
    assert image.shape[3] == n_trs
    assert image.get_data_dtype() == np.int16
    assert image.dataobj.slope == pytest.approx(0.2)
    assert image.header.get_zooms() == pytest.approx((12.0, 12.0, 12.0, 1.49))
    mask = nibabel.load(folder / f"{RUN}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
    data = image.get_fdata()
    assert (data[np.asarray(mask.dataobj) == 0] == 0).all()
    assert (data[np.asarray(mask.dataobj) == 1].mean(axis=1) > 100).all()

    table, kept = load_confounds_strategy(str(bold), denoise_strategy="simple")
    assert kept is None
    motion, _ = load_confounds(str(bold), strategy=["motion"], motion="full")
    assert motion.shape == (n_trs, 24)
    assert {"csf", "white_matter", "cosine00", "cosine01"} <= set(table)
    raw = pd.read_csv(next(folder.glob("*run-1*.tsv")), sep="\t", keep_default_na=False, dtype=str)
    assert (raw.filter(like="derivative1").iloc[0] == "n/a").all()
    assert raw["framewise_displacement"][0] == "n/a"
    global_signal = pd.read_csv(next(folder.glob("*run-1*.tsv")), sep="\t")["global_signal"]
    assert np.allclose(global_signal, data[np.asarray(mask.dataobj) == 1].mean(axis=0), rtol=1e-6)
    said = json.loads((derivatives / "dataset_description.json").read_text())
    assert said["Name"].startswith("SIMULATED")


def test_the_truth_says_what_the_voxels_carry(derivatives):
    truth = open_truth(derivatives / "truth")
    kinds = [int((truth.kind == code).sum()) for code in range(len(KINDS))]
    assert kinds[0] / truth.n_voxels == pytest.approx(CONFIG.noise_share, abs=1 / truth.n_voxels)
    assert min(kinds) > 0
    assert (truth.weights[truth.kind == 0] == 0).all()
    assert (truth.ceiling[truth.kind == 0] == 0).all()
    for code in (1, 2, 3):
        mine = truth.weights[truth.kind == code]
        assert (mine[:, truth.driver_kinds != code] == 0).all()
        assert (mine.sum(axis=1) > 0).all()
    live = np.array(truth.info["driver_live"])
    names = np.array(truth.driver_names)
    assert set(names[live & (truth.driver_kinds > 1)]) == {
        "button_B", "button_LEFT", "event_score", "event_lives_lost",
    }  # fmt: skip
    assert np.median(truth.ceiling[truth.kind > 0]) == pytest.approx(0.65, abs=0.01)
    # Contiguous: most neighbours of a visual voxel are visual.
    volume = np.full(truth.shape, -1)
    volume[tuple(truth.ijk.T)] = truth.kind
    pairs = (volume[:-1] == 1) & (volume[1:] >= 0)
    assert np.mean(volume[1:][pairs] == 1) > 0.85
    mm = truth.ijk @ truth.affine[:3, :3].T + truth.affine[:3, 3]
    assert mm[truth.kind == 1, 1].max() < mm[truth.kind == 0, 1].mean()


def test_neighbours_see_neighbouring_places():
    rng = np.random.default_rng(0)
    mm = rng.uniform((-60, -105, -20), (60, -60, 40), size=(500, 3))
    fields = receptive_fields(mm, 4)
    assert np.allclose(fields.sum(axis=1), 1.0)
    centre = fields @ np.stack(np.divmod(np.arange(16), 4), axis=1)
    left = mm[:, 0] < 0
    assert centre[left, 1].mean() > 2 > 1 > centre[~left, 1].mean()  # each half of the brain sees the other side
    assert np.corrcoef(mm[:, 2], centre[:, 0])[0, 1] > 0.9  # above in the brain is below on the screen


def test_drivers_are_standardised_averages_through_the_response(derivatives):
    truth = open_truth(derivatives)
    convolved = [without_drift(truth.drivers(run), truth.tr_s) for run in truth.runs]
    power = np.mean(np.concatenate(convolved) ** 2, axis=0)
    live = np.array(truth.info["driver_live"])
    assert np.allclose(power[live & (truth.driver_kinds > 1)], 1.0)
    assert power[live].max() == pytest.approx(1.0)
    assert (power[~live] == 0).all()
    fine = read_fine(truth.root, RUN)
    plain = truth.drivers(RUN, convolved=False)
    button = truth.driver_names.index("button_B")
    per_volume = np.nan_to_num(fine[:, button]).reshape(-1, BINS_PER_TR).mean(axis=1)
    assert np.corrcoef(plain[:, button], per_volume)[0, 1] == pytest.approx(1.0)
    gap = slice(int(np.ceil(70.5 / 1.49)), int(76.4 / 1.49))
    assert (plain[gap] == 0).all()
    assert (plain[int(150 / 1.49) :] == 0).all()


def test_ceilings_come_out_as_they_were_asked_for(derivatives, store_root):
    truth, store = open_truth(derivatives), open_bold(store_root)
    found = measured_ceiling(truth, store, block=100)
    mine = truth.aligned(store)
    assert (found[mine.kind == 0] == 0).all()
    for code in (1, 2, 3):
        assert np.median(found[mine.kind == code]) == pytest.approx(0.62, abs=0.08)
    assert np.corrcoef(found[mine.kind > 0], mine.ceiling[mine.kind > 0])[0, 1] > 0.5
    # The definition, voxel by voxel, without the shortcut over drivers.
    naive = np.zeros(store.n_voxels)
    for run, files in zip(store.runs, find_runs(derivatives), strict=True):
        confounds = read_confounds(files, store.n_trs(run), store.tr_s, CleanConfig())
        naive += correlation(clean_series(mine.signal(run), confounds, CleanConfig(), store.tr_s), store.read(run)) / 2
    assert np.allclose(found, naive, atol=1e-5)


def test_noise_voxels_carry_nothing_and_have_the_memory_asked_for(derivatives, store_root):
    truth, store = open_truth(derivatives), open_bold(store_root)
    silent = truth.aligned(store).kind == 0
    r, lagged = [], []
    for run in store.runs:
        noise = store.read(run)[:, silent].astype(float)
        drivers = store.clean_like(run, truth.drivers(run)[:, np.array(truth.info["driver_live"])])
        r.append([correlation(noise, np.repeat(d[:, None], noise.shape[1], 1)).mean() for d in drivers.T])
        lagged.append(np.mean(noise[1:] * noise[:-1]) / np.mean(noise**2))
    assert np.abs(np.mean(r)) < 0.02
    # Regressing 30 confounds out of 100 volumes takes some of the memory with it.
    assert 0.05 < np.mean(lagged) < CONFIG.ar1


def test_planted_signal_is_the_same_in_every_run(derivatives, store_root):
    truth, store = open_truth(derivatives), open_bold(store_root)
    mine = truth.aligned(store)
    visual = np.flatnonzero(mine.kind == 1)
    signals = [store.clean_like(run, mine.signal(run, visual)) for run in store.runs]
    gains = [
        (s * store.read(run)[:, visual]).sum(axis=0) / (s**2).sum(axis=0)
        for s, run in zip(signals, store.runs, strict=True)
    ]
    assert np.median(gains[0]) == pytest.approx(np.median(gains[1]), abs=0.1)


def test_workers_do_not_change_a_byte(tree, derivatives, tmp_path):
    with client("local", 2) as two:
        simulate(tree, tmp_path / "s", CONFIG, client=two)
    assert files_of(tmp_path / "s") == files_of(derivatives)


def test_a_finished_simulation_is_left_alone_and_other_settings_are_refused(tree, derivatives):
    before = {path: path.stat().st_mtime_ns for path in derivatives.rglob("*")}
    simulate(tree, config=CONFIG)
    assert {path: path.stat().st_mtime_ns for path in derivatives.rglob("*")} == before
    with pytest.raises(ResumeError, match="seed was 3, is 4"):
        simulate(tree, config=replace(CONFIG, seed=4))


KILLED = """
import json, os, signal, sys
import vidbrain.bold.simulation.scan as scan
import vidbrain.bold.simulation.simulate as stage
import vidbrain.bold.simulation.experiment as simulation
place, left = sys.argv[4], int(sys.argv[5])
def killer(whole):
    def killed(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)
    return killed
if place == "measure":
    stage.measure_run = killer(stage.measure_run)
elif place == "truth":
    simulation.write_truth = killer(simulation.write_truth)
else:
    scan.SeriesWriter.put = killer(scan.SeriesWriter.put)
stage.simulate(sys.argv[1], sys.argv[2], stage.SimulateConfig(**json.loads(sys.argv[3])))
"""


@pytest.mark.parametrize(("place", "after"), [("measure", 1), ("truth", 0), ("write", 5)])
def test_killed_and_started_again_it_is_the_same(tree, derivatives, tmp_path, place, after):
    out = tmp_path / "s"
    arguments = [tree, out, json.dumps(asdict(CONFIG)), place, str(after)]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode == -9
    assert not list(out.rglob("*run-2_space*_bold.nii.gz"))
    if place == "write":
        assert any(PART in path.name for path in out.rglob("*"))
    simulate(tree, out, CONFIG)
    assert files_of(out) == files_of(derivatives)


def test_a_run_that_was_lost_is_made_again(tree, derivatives, tmp_path):
    out = Path(shutil.copytree(derivatives, tmp_path / "s"))
    next(out.rglob("*run-2*confounds_timeseries.tsv")).unlink()
    simulate(tree, out, CONFIG)
    assert files_of(out) == files_of(derivatives)


def test_a_tree_without_video_or_events_is_refused(make_tree, tmp_path):
    root = make_tree(tmp_path / "t", runs=("run-01",), frames=30)
    next(root.rglob("*rep-02.mp4")).unlink()
    logs = root / "sub-01" / "ses-001" / "gamelogs"
    logs.mkdir()
    (logs / "sub-01_ses-001_task-toy_run-01_level-1_rep-02.bk2").write_bytes(b"x" * 2000)
    with pytest.raises(BoldError, match="1 recordings have no video yet") as caught:
        simulate(root, tmp_path / "s", CONFIG)
    assert "vidbrain replay" in str(caught.value)
    for path in root.rglob("*_events.tsv"):
        path.unlink()
    with pytest.raises(BoldError, match="nothing to simulate"):
        simulate(root, tmp_path / "s", CONFIG)
    assert not (tmp_path / "s").exists()


def test_a_truth_fits_only_its_own_grid(derivatives, store_root, tmp_path):
    truth, store = open_truth(derivatives), open_bold(store_root)
    other = replace(store, info={**store.info, "shape": [9, 9, 9]})
    with pytest.raises(AlignmentError, match="grid"):
        truth.aligned(other)
    with pytest.raises(AlignmentError, match="no run"):
        truth.drivers("sub-02_task-toy")
    with pytest.raises(StorageError):
        open_truth(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"tr_s": 0.0}, {"resolution_mm": 1}, {"noise_share": 1.0}, {"ceiling": 1.2}, {"ar1": 1.0}, {"samples": 4}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SimulateConfig(**wrong)
