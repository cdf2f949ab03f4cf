"""A toy data root: the layout of a real one, written with the stages' own writers, of an ellipsoid for a brain."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from vidbrain.bold.simulation.truth import write_drivers, write_truth
from vidbrain.bold.store import KIND as BOLD
from vidbrain.bold.voxels import ordered_voxels
from vidbrain.encoding.result import KIND as ENCODING
from vidbrain.encoding.result import STORE, make_dataset
from vidbrain.report import maps
from vidbrain.storage.atomic import write_json
from vidbrain.storage.info import write_info
from vidbrain.storage.zarrs import write_dataset

RUNS = ("sub-01_ses-001_task-toy_run-1", "sub-01_ses-001_task-toy_run-2")
TRUTH = Path("game/derivatives/simulated-fmriprep/truth")
DRIVERS = ("luminance_row-0_col-0", "button_LEFT", "event_score")
ALPHAS = np.logspace(0, 8, 9)
SETS = {"drivers": 0.97, "motion": 0.55, "pixels": 0.5, "trained": 0.75, "untrained": 0.6}
"""Share of the ceiling that each set reaches in planted voxels."""
CLEAN = {"confounds": "none", "high_pass": "none", "high_pass_s": 128.0, "detrend": False,
         "standardize": "zscore_sample"}  # fmt: skip


@dataclass
class ToyRoot:
    """Where it lies and what was written into it."""

    path: Path
    kind: np.ndarray
    r: dict[str, np.ndarray] = field(default_factory=dict)
    ijk: np.ndarray | None = None

    def add_set(self, name: str, r: np.ndarray, *, dead: bool = False) -> None:
        """Write one encoding result with these scores."""
        info = json.loads((self.path / "bold" / "info.json").read_text())
        rng = np.random.default_rng(len(name))
        n_voxels = len(r)
        chosen = np.where(self.kind > 0, rng.integers(2, 6, (2, n_voxels)), rng.integers(6, 9, (2, n_voxels)))
        p = np.where(r > 0.15, 0.001, 0.6)
        arrays = {"r": np.stack([r - 0.01, r + 0.01]).astype(np.float32), "r2": (r**2).astype(np.float32),
                  "r_pooled": r.astype(np.float32), "alpha_index": chosen, "p": p, "dead": np.full(n_voxels, dead),
                  "r2_split": np.empty((1, n_voxels)), "r2_without": np.empty((0, n_voxels)),
                  "moments": np.empty((0, 5, n_voxels))}  # fmt: skip
        folder = self.path / "results" / name
        write_dataset(folder / STORE, make_dataset(arrays, {"q": p, "q_any": p, "p_fwe": p}, ALPHAS, self.ijk))
        write_info(
            folder, ENCODING, config={"layers": [f"{name}.layer"], "delays": [1, 2, 3]},
            made_from={"features": "feedfeedfeedfeed", "bold": info["fingerprint"]},
            facts={"runs": list(RUNS), "simulated": info["simulated"], "shape": info["shape"],
                   "affine": info["affine"], "alphas": ALPHAS.tolist(),
                   "design": {"n_columns": 1296, "n_rows": 240}, "tr_s": 1.49, "space": info["space"]},
        )  # fmt: skip
        self.r[name] = arrays["r"].astype(np.float64).mean(0)


def make_toy(
    path: Path, *, voxel_mm: float = 12.0, truth: bool = True, simulated: bool = True, seed: int = 0
) -> ToyRoot:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n // voxel_mm) for n in (160, 190, 160))
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = (-78, -112, -70)
    mm = np.argwhere(np.ones(shape)) @ affine[:3, :3].T + affine[:3, 3]
    inside = (((mm - (0, -18, 8)) / (70, 88, 66)) ** 2).sum(1) < 1
    ijk = ordered_voxels(inside.reshape(shape))
    place = ijk @ affine[:3, :3].T + affine[:3, 3]
    kind = np.zeros(len(ijk), np.int8)
    kind[place[:, 1] < -60] = 1
    kind[(np.abs(place[:, 1] + 20) < 18) & (place[:, 2] > 30)] = 2
    kind[place[:, 1] > 30] = 3
    weights = np.zeros((len(ijk), 3), np.float32)
    weights[kind > 0, kind[kind > 0] - 1] = rng.uniform(0.4, 1.4, int((kind > 0).sum()))

    _bold(path / "bold", ijk, affine, shape, weights, rng, simulated=simulated)
    if truth:
        # The BOLD was made from these drivers; the same seeds give them again.
        for number, run in enumerate(RUNS):
            drivers = _drivers(number)
            write_drivers(path / TRUTH, run, drivers=drivers, convolved=drivers, tr_s=1.49, names=list(DRIVERS))
        write_truth(
            path / TRUTH, kind=kind, weights=weights, ceiling=np.zeros(len(ijk), np.float32), ijk=ijk, config={},
            made_from={}, facts={"driver_names": list(DRIVERS), "driver_kinds": [1, 2, 3], "tr_s": 1.49,
                                 "runs": dict.fromkeys(RUNS, 120), "shape": shape, "affine": affine.tolist()},
        )  # fmt: skip
    toy = ToyRoot(path, kind, ijk=ijk)
    norm = np.linalg.norm(weights, axis=1)
    ceiling = norm / np.sqrt(1 + norm**2)
    for name, share in SETS.items():
        toy.add_set(name, share * ceiling + rng.normal(0, 0.04, len(ijk)))
    return toy


def _drivers(run: int) -> np.ndarray:
    return np.random.default_rng([7, run]).standard_normal((120, 3))


def _bold(root, ijk, affine, shape, weights, rng, *, simulated):
    axes = {axis: ("voxel", column) for axis, column in zip("ijk", ijk.T, strict=True)}
    for number, run in enumerate(RUNS):
        bold = _drivers(number) @ weights.T + rng.standard_normal((120, len(ijk)))
        write_dataset(
            root / f"{run}.zarr",
            xr.Dataset(
                {
                    "bold": (("tr", "voxel"), ((bold - bold.mean(0)) / bold.std(0, ddof=1)).astype(np.float32)),
                    "dead": ("voxel", np.zeros(len(ijk), bool)),
                    "kept": ("tr", np.ones(120, bool)),
                    "confounds": (("tr", "confound"), np.zeros((120, 0))),
                    **axes,
                    "time_s": ("tr", (np.arange(120) + 0.5) * 1.49),
                },
                attrs={"confound_names": []},
            ),
        )
    write_info(
        root, BOLD, config={"clean": CLEAN}, made_from={"derivatives": "0123456789abcdef"},
        facts={"simulated": simulated, "space": "MNI152NLin2009cAsym", "shape": shape, "affine": affine.tolist(),
               "tr_s": 1.49, "n_voxels": len(ijk), "runs": [{"label": run, "n_trs": 120} for run in RUNS]},
    )  # fmt: skip


SUMMARY = {"n_parameters": 1_234_567, "steps": 600, "unigram_loss": 1.9,
           "held_out": {"loss": 0.31, "psnr": 27.4, "psnr_gain": 6.2, "active": 0.93}}  # fmt: skip


def add_models(toy: ToyRoot, names=("vqvae", "gpt")) -> None:
    """Write records and loss curves of models that were never trained."""
    rng = np.random.default_rng(3)
    for name in names:
        folder = toy.path / "runs" / name
        folder.mkdir(parents=True)
        rows = []
        for step in range(0, 600, 5):
            loss = 2.0 * np.exp(-step / 120) + 0.2
            rows.append({"step": step, "split": "train", "loss": loss + rng.gamma(2, 0.02)})
            if step % 60 == 0:
                rows.append({"step": step, "split": "val", "loss": loss + 0.05})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(folder / "summary.json", SUMMARY | {"kind": name})
        write_info(folder, "model", config={"name": name}, made_from={"data": "d0d0d0d0d0d0d0d0"})


def add_samples(toy: ToyRoot, *, n_clips: int = 4, n_frames: int = 16) -> dict[str, np.ndarray]:
    """Write frames of a moving square, a blurred reconstruction and a continuation that loses it."""
    rng = np.random.default_rng(5)
    video = np.zeros((n_clips, n_frames, 64, 64, 3), np.uint8)
    video[..., 2] = np.linspace(20, 120, 64, dtype=np.uint8)[:, None]
    for clip in range(n_clips):
        for frame in range(n_frames):
            x, y = 4 + 3 * frame, 10 + 10 * clip
            video[clip, frame, y : y + 9, x : x + 9] = (240, 190, 40 + 50 * clip)
    noisy = np.clip(video + rng.normal(0, 9, video.shape), 0, 255).astype(np.uint8)
    sampled = video.copy()
    sampled[:, 8:] = np.roll(video[:, 8:], 4, axis=3)
    arrays = {
        "original": video,
        "reconstruction": noisy,
        "prompt_frames": np.int64(8),
        "true": video,
        "sampled": sampled,
    }
    folder = toy.path / "runs" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "samples.npz", **arrays)
    write_info(folder, "samples", config={}, made_from={})
    return arrays


@pytest.fixture(scope="session")
def anatomy():
    """Template and projected surfaces, once for all tests."""
    return maps.load_anatomy()


@pytest.fixture(scope="session")
def whole_toy(tmp_path_factory):
    """A root with everything but shards."""
    toy = make_toy(tmp_path_factory.mktemp("whole") / "toy")
    add_models(toy)
    add_samples(toy)
    write_json(toy.path / "summary.json", {"wall_s": {"play": 12.0, "train vqvae": 61.5}})
    return toy


@pytest.fixture
def bare_toy(tmp_path):
    """A root with BOLD and results only, as of measured data."""
    return make_toy(tmp_path / "bare", truth=False, simulated=False)
