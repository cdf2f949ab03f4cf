"""Decompose every training set of an encoding model, one task each, and write the plan that blocks read."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.cluster import Client
from vidbrain.encoding.design.matrix import Design, load_design
from vidbrain.encoding.folds import Layout, Rows, cells_of
from vidbrain.encoding.plan import RECORD, downdate, set_path
from vidbrain.encoding.ridge import gram
from vidbrain.encoding.ridge.compression import compress
from vidbrain.encoding.ridge.hat import corrections
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import remove, replacing, write_json

F64 = NDArray[np.float64]
CELLS = "cells"


@dataclass(frozen=True)
class Task:
    """A training set before it is decomposed.

    Attributes
    ----------
    rows
        Its rows.
    validations
        (outer fold, rows) that it validates.
    tests
        (outer fold, part, rows) that it tests.
    """

    rows: Rows
    validations: list[tuple[int, Rows]]
    tests: list[tuple[int, int, Rows]]


def gather_sets(layout: Layout, form: gram.Form) -> list[Task]:
    """List distinct training sets: that of outer fold f without g is that of fold g without f.

    In the hat form an outer fold's own training set serves its inner folds too.
    """
    found: dict[bytes, Task] = {}

    def task(rows: Rows) -> Task:
        return found.setdefault(rows.tobytes(), Task(rows, [], []))

    for number, fold in enumerate(layout.folds):
        for train, validation in fold.inner:
            task(fold.train if form == "hat" else train).validations.append((number, validation))
    for number, part, rows in layout.numbered():
        task(layout.folds[number].train).tests.append((number, part, rows))
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a voxel chooses from.

    Attributes
    ----------
    alphas : (r,) float64, ascending
    gammas : (n_candidates, n_bands) float64
    model : (n_candidates,) int64
    tolerance
        Of the compression of alphas while they are scored; 0 for exact scores.
    pca
        Principal components of each band, fitted to each training set; None for all columns.
    """

    alphas: F64
    gammas: F64
    model: NDArray[np.int64]
    tolerance: float = 0.0
    pca: int | None = None


def write_plan(
    root: Path,
    design: Design,
    layout: Layout,
    form: gram.Form,
    choices: Choices,
    *,
    client: Client,
    progress: Progress = SILENT,
) -> None:
    """Decompose every training set, one task each; a set on disk is kept, and the plan is whole with its record.

    Parameters
    ----------
    root
        Folder; its name must say what the plan is made from.
    design, layout, form, choices
        As prepared.
    client
        Where sets are decomposed.
    progress
        Listener.
    """
    tasks = gather_sets(layout, form)
    used = [rows for t in tasks for rows in (t.rows, *(r for _, r in t.validations), *(r for _, _, r in t.tests))]
    cell = cells_of(used, len(design.run))
    with replacing(root / "design") as part:
        part.mkdir(parents=True)
        design.save(part)
    if form != "dual":
        with threadpool_limits(1):  # as in `run_set`
            _write_cells(root / CELLS, design, cell)
    rows = [
        SetRow(str(root), number, candidate, form, task, cell, choices)
        for candidate in range(len(choices.gammas))
        for number, task in enumerate(tasks)
    ]
    todo = [row for row in rows if not row.path.is_file()]
    progress.start("plan", len(rows), "sets", done=len(rows) - len(todo))
    for _ in client.run(run_set, todo):
        progress.advance()
    progress.finish()
    _save(
        root / "rows.npz",
        alphas=choices.alphas,
        gammas=choices.gammas,
        model=choices.model,
        run=design.run,
        tr=design.tr,
        cell=cell,
    )
    facts = {
        "n_rows": len(design.run),
        "n_trs": list(design.n_trs),
        "n_columns": len(design.column),
        "n_constant_columns": design.n_constant,
        "n_invalid_columns": design.n_invalid,
    }
    record = {
        "form": form,
        "runs": list(design.runs),
        "parts": list(layout.parts),
        "bands": list(design.bands),
        "n_folds": len(layout.folds),
        "validating": [number for number, task in enumerate(tasks) if task.validations],
        "testing": [number for number, task in enumerate(tasks) if task.tests],
        "facts": facts,
    }
    write_json(root / RECORD, record)
    remove(root / CELLS)


@dataclass(frozen=True)
class SetRow:
    """One task: decompose training set `number` of the plan in `root` under one candidate."""

    root: str
    number: int
    candidate: int
    form: gram.Form
    task: Task
    cell: NDArray[np.int64]
    choices: Choices

    @property
    def path(self) -> Path:
        """The file that it writes."""
        return set_path(Path(self.root), self.number, self.candidate)


def run_set(row: SetRow) -> None:
    """Decompose and write one training set; the work of one task."""
    design = load_design(Path(row.root) / "design")
    # One BLAS thread, wherever the task runs: sums in another order would change the last bits.
    with threadpool_limits(1):
        arrays = _arrays(row, _basis(row, design), design)
    _save(row.path, **arrays)


def _basis(row: SetRow, design: Design) -> gram.Basis:
    """Decompose the training set, its columns standardised, or reduced to its own principal components."""
    # Weighting a band by gamma is scaling its columns by sqrt(gamma): X is not touched. Equal gammas are weights of 1.
    band_weight = np.sqrt(row.choices.gammas[row.candidate] * len(design.bands))
    reduction = None if row.choices.pca is None else design.pca(row.task.rows, row.choices.pca)
    weight = band_weight[design.band if reduction is None else reduction.band]
    reference = np.ones(len(design.column)) if reduction is None else None
    if row.form == "dual":
        X = design.rows(row.task.rows)
        mean = X.mean(axis=0, dtype=np.float64)
        basis = gram.dual_basis(X if reduction is None else reduction.rows(X), reference, weight=weight)
    else:
        sums = _sums(Path(row.root) / CELLS, row.cell, row.task.rows)
        mean = sums.total / sums.n
        basis = gram.primal_basis(sums if reduction is None else reduction.moments(sums), reference, weight=weight)
    if reduction is None:
        return basis
    return replace(basis, mean=mean, loadings=reduction.loadings(basis.loadings))


def _write_cells(path: Path, design: Design, cell: NDArray[np.int64]) -> None:
    """Write the sums over each cell, and over all, a file each: a training set needs few of them."""
    with replacing(path) as part:
        part.mkdir(parents=True)
        total: gram.Moments | None = None
        for number in range(int(cell.max()) + 1):
            sums = design.moments(np.flatnonzero(cell == number))
            total = sums if total is None else total + sums
            np.savez(part / f"{number}.npz", n=sums.n, total=sums.total, gram=sums.gram)
        if total is not None:
            np.savez(part / "all.npz", n=total.n, total=total.total, gram=total.gram)


def _read_cell(path: Path, name: str) -> gram.Moments:
    with np.load(path / f"{name}.npz", allow_pickle=False) as file:
        return gram.Moments(int(file["n"]), file["total"], file["gram"])


def _sums(path: Path, cell: NDArray[np.int64], rows: Rows) -> gram.Moments:
    """Sums over a row set from those over cells, by adding or by downdating the total."""
    add, subtract = downdate(cell, rows)
    sums = functools.reduce(operator.add, (_read_cell(path, name) for name in (map(str, add) if add else ["all"])))
    return functools.reduce(operator.sub, (_read_cell(path, str(number)) for number in subtract), sums)


def _save(path: Path, **arrays: NDArray[Any]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _arrays(row: SetRow, basis: gram.Basis, design: Design) -> dict[str, Any]:
    task, alphas = row.task, row.choices.alphas
    projection = basis.loadings.T if basis.scores is None else basis.scores.T
    shrinkage = 1.0 / (basis.eigenvalues + alphas[:, None])
    q = len(basis.eigenvalues)
    mixture, terms = np.empty((len(alphas), 0)), np.empty((0, q))
    validations: dict[str, Any] = {}
    energy = np.zeros(q)
    for number, (fold, rows) in enumerate(task.validations):
        scores = basis.scores_of(design.rows(rows))
        factor, hat = np.empty((0, q), np.float32), np.empty((0, 0, 0))
        if row.form == "hat":
            hat = corrections(scores, basis.eigenvalues, alphas, len(task.rows))
            hat -= hat.mean(axis=1, keepdims=True)  # predictions are centred; here it costs no digits
        else:
            scores -= scores.mean(axis=0)
            factor = gram.triangle(scores)
            energy += np.sum(scores**2, axis=0)
        validations |= {
            f"v{number}_fold": np.int64(fold),
            f"v{number}_rows": rows,
            f"v{number}_scores": scores.astype(np.float32),
            f"v{number}_factor": factor,
            f"v{number}_hat": hat.astype(np.float32),
        }
    if row.choices.tolerance > 0 and row.form != "hat" and task.validations:
        mixture, terms = compress(shrinkage, energy * basis.eigenvalues, row.choices.tolerance)
    arrays: dict[str, Any] = {
        "rows": task.rows,
        "projection": np.ascontiguousarray(projection, np.float32),
        "mean": basis.mean.astype(np.float32),
        "shrinkage": shrinkage.astype(np.float32),
        "mixture": mixture.astype(np.float32),
        "terms": terms.astype(np.float32),
        **validations,
    }
    n_bands = len(design.bands)
    for number, (fold, part, rows) in enumerate(task.tests):
        X = design.rows(rows)
        by_band = [basis.scores_of(X, design.band == band) for band in range(n_bands)] if n_bands > 1 else []
        arrays |= {
            f"f{number}_fold": np.int64(fold),
            f"f{number}_part": np.int64(part),
            f"f{number}_rows": rows,
            f"f{number}_scores": np.stack(by_band or [basis.scores_of(X)]).astype(np.float32),
        }
    return arrays
