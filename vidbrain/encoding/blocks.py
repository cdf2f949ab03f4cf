"""Fit an encoding model voxel block by voxel block, on any number of workers, restartable at every block.

The feature side (plan) is computed once and stored. Each block of voxels is one opaque task: it opens the stores,
reads its BOLD once, and writes one file. Blocks are put together at the end, and the root record is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.bold.ahead import read_runs
from vidbrain.bold.layout import COORDINATES, FACTS
from vidbrain.cluster import Client
from vidbrain.config import fingerprint
from vidbrain.encoding.choose import Chosen, inner_scores
from vidbrain.encoding.decompose import write_plan
from vidbrain.encoding.design.align import BoldStoreLike, FeatureStoreLike, choose_layers, choose_runs
from vidbrain.encoding.design.matrix import TILE
from vidbrain.encoding.inference import surrogate
from vidbrain.encoding.inference.ceiling import no_ceiling
from vidbrain.encoding.inference.multiple import benjamini_hochberg, benjamini_yekutieli, max_statistic
from vidbrain.encoding.inference.null import SPREAD
from vidbrain.encoding.plan import Plan, is_planned, read_plan
from vidbrain.encoding.prepare import identity, prepare
from vidbrain.encoding.products import Device, products_on
from vidbrain.encoding.result import KIND, STORE, EncodingResult, make_dataset, open_result, summarise
from vidbrain.encoding.ridge.gram import best_alpha
from vidbrain.encoding.score import Inference, score_block
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.encoding.targets import Targets
from vidbrain.errors import EncodingError
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import check_writable, remove, replacing
from vidbrain.storage.info import is_done, write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.storage.zarrs import write_dataset

WORK = "work"
MOMENT_VOXELS = 4096
BY_VOXEL = (
    "r",
    "r_pooled",
    "r2",
    "r2_split",
    "r2_without",
    "alpha_index",
    "gamma",
    "p",
    "observed",
    "standard",
    "moments",
    "dead",
)
SHARED = ("maxima", "block_n_trs", "block_part")


@dataclass(frozen=True)
class BlockRow:
    """One task: voxels `start` to `stop` of `bold` against the plan in `plan`, written to `out`.

    `shared` is the file of alphas that voxels share, by group; None where each voxel chooses. `group` is the group of
    each voxel.
    """

    bold: BoldStoreLike
    plan: str
    out: str
    start: int
    stop: int
    inference: Inference
    device: Device
    group: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    shared: str | None = None


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
    run by a model that never saw it, p by the null that the settings name, q by Benjamini-Hochberg.

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
        If the design cannot be solved (too few runs or rows, no varying feature), or needs more memory than there is.
    ResumeError
        If `out` holds a finished result of other settings.
    StorageError
        If another process writes there.
    """
    out, client = Path(out), client or Client()
    if client.is_here:
        products_on(config.device)  # a device that is not there is known now, not after the plan
    layers = choose_layers(features, layer)
    runs = choose_runs(features.runs, bold.runs, shared_runs_only=config.shared_runs_only)
    settings, made_from = identity(features, bold, config, layers, runs)
    work = out / WORK
    if is_done(out, KIND, config=settings, made_from=made_from):
        if work.is_dir():  # killed just after the root record
            with locked(out):
                remove(work)
        sweep_lock(out)
        return open_result(out)
    key = fingerprint(settings, made_from)
    plan_root = work / f"plan-{key}"
    prepared = None
    if not is_planned(plan_root):
        prepared = prepare(features, bold, config, layer=layers)
        if client.is_here:
            prepared.check_memory(config, client.n_workers)
        result_bytes = 64 * bold.n_voxels * (len(runs) + 4)
        check_writable(out, result_bytes + int(prepared.cost.plan_bytes))
    with locked(out):
        if prepared is not None:
            write_plan(
                plan_root,
                prepared.design,
                prepared.layout,
                prepared.form,
                prepared.choices,
                client=client,
                progress=progress,
            )
        plan = read_plan(plan_root)
        rows = block_rows(bold, config, plan_root, work / f"blocks-{key}-{config.block}")
        if config.alpha_per != "voxel" and len(plan.alphas) > 1:
            rows = share_alphas(rows, bold, config, plan, client, progress)
        todo = [row for row in rows if not Path(row.out).is_file()]
        n_done = bold.n_voxels - sum(row.stop - row.start for row in todo)
        progress.start("encode", bold.n_voxels, "voxels", done=n_done)
        for position, median in client.run(run_block, todo):
            progress.advance(todo[position].stop - todo[position].start, block_median_r=median)
        progress.finish()
        return assemble(out, rows, plan, bold, settings, made_from)


def block_rows(bold: BoldStoreLike, config: EncodeConfig, plan_root: Path, blocks: Path) -> list[BlockRow]:
    """List the tasks, in voxel order."""
    inference = Inference(
        kind=config.null,
        # Single TRs at random leave no series that could be rearranged.
        n_permutations=0 if config.split == "leaky-tr" else config.n_permutations,
        seed=config.seed,
        block_trs=config.block_trs,
        # Test runs that trained nothing leave no dependence between parts that would have to be bounded.
        spread=1.0 if config.test else SPREAD,
        keep_moments=config.keep_moments,
    )
    return [
        BlockRow(
            bold=bold,
            plan=str(plan_root),
            out=str(blocks / f"{number:05d}.npz"),
            start=start,
            stop=min(start + config.block, bold.n_voxels),
            inference=inference,
            device=config.device,
        )
        for number, start in enumerate(range(0, bold.n_voxels, config.block))
    ]


def run_block(row: BlockRow) -> float:
    """Read, fit and write one block of voxels; the work of one task. Return its median r."""
    plan = read_plan(Path(row.plan))
    chosen = None
    if row.shared is not None:
        with np.load(row.shared, allow_pickle=False) as file:
            alpha = file["alpha"][:, row.group]
        chosen = Chosen(np.zeros((1, *alpha.shape), np.int64), alpha[None])
    with threadpool_limits(1):  # as in `run_set`
        Y = read_bold(row, plan)
        scores = score_block(plan, Y, row.inference, chosen=chosen, products=products_on(row.device))
        surrogates = refit(row, plan, Y) if row.inference.kind == "refit" else np.empty(0)
    with replacing(row.out) as part, part.open("wb") as file:
        np.savez(file, surrogates=surrogates, **{name: getattr(scores, name) for name in BY_VOXEL + SHARED})
    return float(np.median(scores.r.mean(axis=0)))


def refit(row: BlockRow, plan: Plan, Y: NDArray[np.float32]) -> NDArray[np.float64]:
    """Fit surrogates of some voxels of the block as they were, and return the standard scores of those that live."""
    sources = surrogate.source_voxels(row.bold.n_voxels, row.inference.n_permutations)
    numbers = np.flatnonzero((sources >= row.start) & (sources < row.stop))
    if not len(numbers):
        return np.empty(0)
    n_trs = np.bincount(plan.run).tolist()
    shifts = surrogate.draw_shifts(n_trs, numbers, row.inference.seed)
    turned = surrogate.shift_runs(Y[:, sources[numbers] - row.start], plan.run, shifts)
    # Surrogates whose sources share a tile are a tile: their last bits do not depend on the block.
    widths = np.unique(sources[numbers] // TILE, return_counts=True)[1].tolist()
    scores = score_block(plan, turned, row.inference, widths=widths, products=products_on(row.device))
    return scores.standard[~scores.dead]


def read_bold(row: BlockRow, plan: Plan) -> NDArray[np.float32]:
    """Read the plan's rows of a block of voxels, (n, t); every chunk is read once."""
    Y = np.empty((len(plan.run), row.stop - row.start), np.float32)
    for number, bold in enumerate(read_runs(row.bold, plan.runs, slice(row.start, row.stop))):
        mine = plan.run == number
        Y[mine] = bold[plan.tr[mine]]
    return Y


def share_alphas(
    rows: Sequence[BlockRow], bold: BoldStoreLike, config: EncodeConfig, plan: Plan, client: Client, progress: Progress
) -> list[BlockRow]:
    """First pass of a shared alpha: sum the inner scores of every group of voxels, choose, and tell the blocks."""
    groups = groups_of(bold, config, plan)
    passes = [
        replace(row, out=row.out.replace(".npz", ".scores.npz"), group=groups[row.start : row.stop]) for row in rows
    ]
    todo = [row for row in passes if not Path(row.out).is_file()]
    progress.start("choose", bold.n_voxels, "voxels", done=bold.n_voxels - sum(row.stop - row.start for row in todo))
    for position, _ in client.run(run_scores, todo):
        progress.advance(todo[position].stop - todo[position].start)
    progress.finish()
    total = np.zeros((plan.n_folds, len(plan.alphas), int(groups.max()) + 1))
    for row in passes:
        with np.load(row.out, allow_pickle=False) as file:
            total[:, :, file["groups"]] += file["scores"]
    shared = Path(passes[0].out).with_name("alphas.npz")
    with replacing(shared) as part, part.open("wb") as file:
        np.savez(file, alpha=np.stack([best_alpha(fold.astype(np.float32)) for fold in total]))
    return [
        replace(row, group=one.group, shared=str(shared), out=row.out.replace(".npz", ".shared.npz"))
        for row, one in zip(rows, passes, strict=True)
    ]


def run_scores(row: BlockRow) -> None:
    """Sum the inner scores of each group in a block of voxels, and write them; dead voxels do not vote."""
    plan = read_plan(Path(row.plan))
    with threadpool_limits(1):
        targets = Targets(plan, read_bold(row, plan), products=products_on(row.device))
        ((_, scores),) = inner_scores(plan, targets)
    scores[:, :, targets.dead] = 0
    groups, member = np.unique(row.group, return_inverse=True)
    sums = np.zeros((*scores.shape[:2], len(groups)))
    for number in range(len(groups)):
        sums[:, :, number] = scores[:, :, member == number].sum(axis=2, dtype=np.float64)
    with replacing(row.out) as part, part.open("wb") as file:
        np.savez(file, groups=groups, scores=sums)


def groups_of(bold: BoldStoreLike, config: EncodeConfig, plan: Plan) -> NDArray[np.int64]:
    """Group of every voxel that shares an alpha.

    Raises
    ------
    EncodingError
        If parcels are asked for and the store has none.
    """
    if config.alpha_per == "all":
        return np.zeros(bold.n_voxels, np.int64)
    data = bold.open(plan.runs[0])
    if "parcel" not in data:
        raise EncodingError("the BOLD store has no parcels", hint="--alpha-per voxel, or all")
    return np.unique(np.asarray(data["parcel"].values), return_inverse=True)[1].astype(np.int64)


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
            blocks.append({name: file[name] for name in (*BY_VOXEL, *SHARED, "surrogates")})
    arrays = {name: np.concatenate([block[name] for block in blocks], axis=-1) for name in BY_VOXEL}
    arrays |= {name: blocks[0][name] for name in ("block_n_trs", "block_part")}
    alive = ~arrays["dead"]
    q = {name: np.where(alive, np.nan, 1.0) for name in ("q", "q_any", "p_fwe")}
    turned = np.concatenate([block["surrogates"] for block in blocks])
    if len(turned):
        arrays["p"] = np.where(alive, surrogate.pooled_p_values(arrays["standard"], turned), 1.0)
    if alive.any() and np.isfinite(arrays["p"][alive]).all():
        q["q"][alive] = benjamini_hochberg(arrays["p"][alive])
        q["q_any"][alive] = benjamini_yekutieli(arrays["p"][alive])
        maxima = np.max([block["maxima"] for block in blocks], axis=0)
        if len(maxima):
            q["p_fwe"][alive] = max_statistic(arrays["observed"][alive], maxima)
    data = bold.open(plan.runs[0])
    ijk = np.stack([np.asarray(data[axis].values) for axis in "ijk"], axis=1)
    dataset = make_dataset(arrays, q, plan.alphas, ijk).assign_attrs(
        runs=list(plan.runs), parts=list(plan.parts), bands=list(plan.bands)
    )
    # Voxels keep their places and the names of their parcels, so that any result can be shown, and grouped by region.
    named = [name for name in (*COORDINATES, "network") if name in data]
    dataset = dataset.assign_coords({name: data[name].variable for name in named})
    dataset = dataset.assign_attrs({name: data.attrs[name] for name in FACTS if name in data.attrs})
    summary = summarise(dataset, plan.alphas)
    # Those who resample read a block of voxels at a time.
    moments = dataset.get("moments")
    chunks = {} if moments is None else {"moments": (*moments.shape[:2], min(MOMENT_VOXELS, moments.shape[2]))}
    write_dataset(out / STORE, dataset, chunks=chunks)
    facts = {
        "runs": list(plan.runs),
        "parts": list(plan.parts),
        "bands": list(plan.bands),
        "simulated": bool(bold.info.get("simulated", False)),
        "space": bold.info.get("space"),
        "parcels": data.attrs.get("parcels"),
        "layout": bold.info.get("layout", "volume"),
        "shape": [int(size) for size in bold.shape],
        "affine": np.asarray(bold.affine, np.float64).tolist(),
        "tr_s": float(bold.tr_s),
        "form": plan.form,
        "alphas": plan.alphas.tolist(),
        "n_trs_used": [int(np.sum(plan.run == number)) for number in range(len(plan.runs))],
        "design": plan.facts,
        "noise_ceiling": no_ceiling("no run is known to repeat the stimulus of another: play never does").facts(),
        "summary": summary,
    }
    write_info(out, KIND, config=settings, made_from=made_from, facts=facts)
    remove(out / WORK)
    return open_result(out)
