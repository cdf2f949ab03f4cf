"""Fit an encoding model voxel block by voxel block, on any number of workers, restartable at every block.

The feature side (plan) is computed once and stored. Each block of voxels is one opaque task: it opens the stores,
reads its BOLD once, and writes one file. Blocks are put together at the end, and the root record is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.encoding import gram
from vidbrain.encoding.align import BoldStoreLike, FeatureStoreLike, choose_layers, choose_runs
from vidbrain.encoding.assembly import build_design
from vidbrain.encoding.delays import check_delays
from vidbrain.encoding.design import TILE, Design
from vidbrain.encoding.folds import OuterFold, nested_folds
from vidbrain.encoding.inference import benjamini_hochberg
from vidbrain.encoding.nuisance import nuisance_columns
from vidbrain.encoding.plan import Plan, gather_sets, is_planned, read_plan, write_plan
from vidbrain.encoding.result import KIND, STORE, EncodingResult, make_dataset, open_result, summarise
from vidbrain.encoding.score import score_block
from vidbrain.errors import ConfigError
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import check_writable, remove, replacing
from vidbrain.storage.info import is_done, write_info
from vidbrain.storage.zarrs import write_dataset

WORK = "work"
PARTS = ("r", "r2", "alpha_index", "p", "dead")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How features are fitted to BOLD."""

    delays: tuple[int, ...] = (1, 2, 3, 4, 5)
    """TRs by which features are delayed (finite impulse response); never across runs."""
    clean: bool = True
    """Take out of the features what was taken out of the BOLD: the confounds that its store names, mean and trend."""
    n_alphas: int = 20
    """Ridge penalties that each voxel chooses from."""
    alpha_decades: float = 8.0
    """Width of their grid, in powers of ten around the mean eigenvalue."""
    n_permutations: int = 1000
    """Circular shifts for p; the smallest possible p is 1 / (1 + this)."""
    seed: int = 0
    """Of the shifts."""
    shared_runs_only: bool = False
    """Use the runs that features and BOLD share, instead of refusing when some are missing."""
    n_inner_blocks: int = 5
    """With two runs only: inner folds, contiguous blocks of the training run."""
    purge_trs: int = 10
    """With two runs only: TRs left out of training at each side of such a block."""
    voxels_per_block: int = 4096
    """Voxels of one task, rounded up to a multiple of 512; the result does not depend on it."""

    def __post_init__(self) -> None:
        least = {"n_alphas": 1, "n_permutations": 0, "n_inner_blocks": 2, "purge_trs": 0, "voxels_per_block": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}, not {getattr(self, name)}")
        check_delays(self.delays)
        if not 0 < self.alpha_decades <= 16:
            raise ConfigError(f"alpha_decades must be above 0 and at most 16, not {self.alpha_decades:g}")

    @property
    def block(self) -> int:
        """Voxels of one task."""
        return -(-self.voxels_per_block // TILE) * TILE


@dataclass(frozen=True)
class BlockRow:
    """One task: voxels `start` to `stop` of `bold` against the plan in `plan`, written to `out`."""

    bold: BoldStoreLike
    plan: str
    out: str
    start: int
    stop: int
    n_permutations: int
    seed: int


@dataclass(frozen=True)
class Prepared:
    """What is known before any voxel is read."""

    layers: tuple[str, ...]
    runs: tuple[str, ...]
    design: Design
    folds: list[OuterFold]
    form: gram.Form
    settings: dict[str, Any]
    made_from: dict[str, str]


def fit_encoding(
    features: FeatureStoreLike,
    bold: BoldStoreLike,
    config: EncodeConfig,
    out: str | Path,
    *,
    layer: str | Sequence[str] | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> EncodingResult:
    """Predict every voxel's held-out BOLD from features, and say how well.

    Ridge regression with delays, an alpha for each voxel chosen by inner folds within the training runs, r in each
    run by a model that never saw it, p by circular shifts, q by Benjamini-Hochberg.

    Parameters
    ----------
    features, bold
        Opened stores; they must share runs and TR.
    config
        What decides the result.
    out
        Folder to write. Killed and called again with the same arguments, it goes on and ends with the same arrays.
    layer
        Name, or several that are put side by side; None if the store has one.
    client
        Where blocks run; default in this process. The result is the same, bit by bit, for any number of workers.

    Raises
    ------
    AlignmentError
        If runs, TRs or lengths do not fit.
    EncodingError
        If the design cannot be solved: too few runs or rows, no varying feature.
    ResumeError
        If `out` holds a finished result of other settings.
    """
    out, client = Path(out), client or Client()
    layers = choose_layers(features, layer)
    runs = choose_runs(features.runs, bold.runs, shared_runs_only=config.shared_runs_only)
    settings, made_from = identity(features, bold, config, layers, runs)
    work = out / WORK
    if is_done(out, KIND, config=settings, made_from=made_from):
        remove(work)
        return open_result(out)
    key = fingerprint(settings, made_from)
    plan_root = work / f"plan-{key}"
    if not is_planned(plan_root):
        prepared = prepare(features, bold, config, layer=layers)
        result_bytes = 64 * bold.n_voxels * (len(runs) + 4)
        check_writable(out, result_bytes + estimate(prepared, config, bold.n_voxels)["plan_bytes"])
        write_plan(
            plan_root,
            prepared.design,
            prepared.folds,
            prepared.form,
            n_alphas=config.n_alphas,
            decades=config.alpha_decades,
            client=client,
            progress=progress,
        )
    plan = read_plan(plan_root)
    rows = block_rows(bold, config, plan_root, work / f"blocks-{key}-{config.block}")
    todo = [row for row in rows if not Path(row.out).is_file()]
    progress.start("encode", bold.n_voxels, "voxels", done=bold.n_voxels - sum(row.stop - row.start for row in todo))
    for position, median in client.run(run_block, todo):
        progress.advance(todo[position].stop - todo[position].start, block_median_r=median)
    progress.finish()
    return assemble(out, rows, plan, bold, settings, made_from)


def identity(
    features: FeatureStoreLike, bold: BoldStoreLike, config: EncodeConfig, layers: Sequence[str], runs: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and inputs that decide the result, as they stand in the root record."""
    settings = to_mapping(config) | {"layers": list(layers), "runs": list(runs)}
    for name in ("voxels_per_block", "shared_runs_only"):  # these do not change a bit of the result
        del settings[name]
    return settings, {"features": str(features.info["fingerprint"]), "bold": str(bold.info["fingerprint"])}


def prepare(
    features: FeatureStoreLike,
    bold: BoldStoreLike,
    config: EncodeConfig,
    *,
    layer: str | Sequence[str] | None = None,
) -> Prepared:
    """Align the stores and lay out folds, without decomposing anything."""
    layers = choose_layers(features, layer)
    runs = choose_runs(features.runs, bold.runs, shared_runs_only=config.shared_runs_only)
    settings, made_from = identity(features, bold, config, layers, runs)
    kept: dict[str, NDArray[np.bool_]] = {}
    nuisance: dict[str, NDArray[np.float64]] = {}
    for run in runs:
        data = bold.open(run)
        n_trs = data.sizes["tr"]
        kept[run] = np.asarray(data["kept"].values, bool) if "kept" in data else np.ones(n_trs, bool)
        if config.clean and "confounds" in data:
            nuisance[run] = nuisance_columns(np.asarray(data["confounds"].values, np.float64))
    design = build_design(features, layers, kept, tr_s=bold.tr_s, delays=config.delays, nuisance=nuisance)
    folds = nested_folds(design.run, design.tr, n_blocks=config.n_inner_blocks, purge_trs=config.purge_trs)
    n, p = design.shape
    form = gram.choose_form(n, max(len(f.train) for f in folds), p, bold.n_voxels, len(gather_sets(folds)))
    return Prepared(layers, runs, design, folds, form, settings, made_from)


def estimate(prepared: Prepared, config: EncodeConfig, n_voxels: int) -> dict[str, Any]:
    """Predict arithmetic and memory before anything is computed.

    Returns
    -------
    dict
        ``worker_bytes`` is the peak of a worker's arrays, ``plan_bytes`` what the plan takes on disk, ``flops`` all
        floating-point operations of the voxel side.
    """
    n, p = prepared.design.shape
    t = min(config.block, n_voxels)
    tasks = gather_sets(prepared.folds)
    flops, set_bytes, plan_bytes = 0.0, 0.0, 0.0
    for task in tasks:
        q = min(p, len(task.rows) - 1)
        inner = len(task.rows) if prepared.form == "dual" else p
        flops += 2.0 * q * inner * n_voxels
        size = 4.0 * q * (inner + config.n_alphas)
        for _, rows in task.validations:
            k = min(len(rows), q)
            area = k * q - k * k / 2
            flops += 2.0 * n_voxels * (q * len(rows) + config.n_alphas * (area + q + k))
            size += 4.0 * q * (k + len(rows))
        for _, rows in task.tests:
            flops += 2.0 * q * len(rows) * n_voxels
            size += 4.0 * q * len(rows)
        plan_bytes += size
        set_bytes = max(set_bytes, size)
    plan_bytes += 4.0 * n * p
    worker = 4.0 * n * t * 6 + set_bytes + 4.0 * len(prepared.runs) * config.n_alphas * t
    if prepared.form == "primal":
        flops += 2.0 * n * p * n_voxels
        worker += 4.0 * p * t * len(prepared.runs) + 8.0 * p * TILE * 2
    return {
        "form": prepared.form,
        "n_rows": n,
        "n_columns": p,
        "n_voxels": n_voxels,
        "training_sets": len(tasks),
        "blocks": -(-n_voxels // config.block),
        "flops": flops,
        "worker_bytes": int(worker),
        "plan_bytes": int(plan_bytes),
    }


def block_rows(bold: BoldStoreLike, config: EncodeConfig, plan_root: Path, blocks: Path) -> list[BlockRow]:
    """List the tasks, in voxel order."""
    return [
        BlockRow(
            bold=bold,
            plan=str(plan_root),
            out=str(blocks / f"{number:05d}.npz"),
            start=start,
            stop=min(start + config.block, bold.n_voxels),
            n_permutations=config.n_permutations,
            seed=config.seed,
        )
        for number, start in enumerate(range(0, bold.n_voxels, config.block))
    ]


def run_block(row: BlockRow) -> float:
    """Read, fit and write one block of voxels; the work of one task. Return its median r."""
    plan = read_plan(Path(row.plan))
    with threadpool_limits(1):  # as in `run_set`
        scores = score_block(plan, read_bold(row, plan), n_permutations=row.n_permutations, seed=row.seed)
    with replacing(row.out) as part, part.open("wb") as file:
        np.savez(file, **{name: getattr(scores, name) for name in PARTS})
    return float(np.median(scores.r.mean(axis=0)))


def read_bold(row: BlockRow, plan: Plan) -> NDArray[np.float32]:
    """Read the plan's rows of a block of voxels, (n, t); every chunk is read once."""
    Y = np.empty((len(plan.run), row.stop - row.start), np.float32)
    for number, run in enumerate(plan.runs):
        mine = plan.run == number
        Y[mine] = row.bold.read(run, slice(row.start, row.stop))[plan.tr[mine]]
    return Y


def assemble(
    out: Path,
    rows: Sequence[BlockRow],
    plan: Plan,
    bold: BoldStoreLike,
    settings: dict[str, Any],
    made_from: dict[str, str],
) -> EncodingResult:
    """Put the blocks together, adjust p over all voxels, and write the result; its root record is last."""
    blocks = []
    for row in rows:
        with np.load(row.out, allow_pickle=False) as file:
            blocks.append({name: file[name] for name in PARTS})
    arrays = {name: np.concatenate([block[name] for block in blocks], axis=-1) for name in PARTS}
    alive = ~arrays["dead"]
    q = np.ones(len(alive))
    q[alive] = benjamini_hochberg(arrays["p"][alive])
    data = bold.open(plan.runs[0])
    ijk = np.stack([np.asarray(data[axis].values) for axis in "ijk"], axis=1)
    dataset = make_dataset(arrays, q, plan.alphas, ijk).assign_attrs(runs=list(plan.runs))
    summary = summarise(dataset, plan.alphas)
    write_dataset(out / STORE, dataset)
    facts = {
        "runs": list(plan.runs),
        "simulated": bool(bold.info.get("simulated", False)),
        "space": bold.info.get("space"),
        "shape": [int(size) for size in bold.shape],
        "affine": np.asarray(bold.affine, np.float64).tolist(),
        "tr_s": float(bold.tr_s),
        "form": plan.form,
        "alphas": plan.alphas.tolist(),
        "n_trs_used": [int(np.sum(plan.run == number)) for number in range(len(plan.runs))],
        "design": plan.facts,
        "summary": summary,
    }
    write_info(out, KIND, config=settings, made_from=made_from, facts=facts)
    remove(out / WORK)
    return open_result(out)
