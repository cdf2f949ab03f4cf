"""Everything on the feature side of an encoding model: computed once, stored, and read by every block of voxels."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.cluster import Client
from vidbrain.encoding import gram
from vidbrain.encoding.design import Design
from vidbrain.encoding.folds import OuterFold, Rows, cells_of
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import read_json, remove, replacing, write_json

F32 = NDArray[np.float32]
RECORD = "plan.json"


@dataclass(frozen=True)
class Validation:
    """Rows that score alphas for one outer fold: `factor` is R (k, q), `scores` is T (n_v, q) centred."""

    fold: int
    rows: Rows
    factor: F32
    scores: F32


@dataclass(frozen=True)
class Test:
    """Rows of a held-out run: `scores` is T (n_f, q), relative to the training mean."""

    fold: int
    rows: Rows
    scores: F32


@dataclass(frozen=True)
class TrainingSet:
    """One training set and what is predicted from it.

    Attributes
    ----------
    rows : (n_t,)
    projection : (q, n_t) in the dual form, (q, p) in the primal form, float32
        Turns ``Y_t`` (dual) or the centred ``X_t' Y_t`` (primal) into Z.
    mean : (p,) float32
        Of the training rows; used by the primal form.
    shrinkage : (r, q) float32
    """

    rows: Rows
    projection: F32
    mean: F32
    shrinkage: F32
    validations: tuple[Validation, ...]
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Plan:
    """The feature side of all folds, on disk; training sets are read one at a time.

    Attributes
    ----------
    root
        Folder.
    form
        ``"primal"`` or ``"dual"``.
    alphas : (r,) float64, ascending
    run, tr, cell : (n,) int64
        Of each row.
    runs
        Labels of the runs that `run` counts.
    n_sets
        Training sets.
    facts
        Counts of rows and columns, used and left out, for readers.
    """

    root: Path
    form: gram.Form
    alphas: gram.F64
    run: NDArray[np.int64]
    tr: NDArray[np.int64]
    cell: NDArray[np.int64]
    runs: tuple[str, ...]
    n_sets: int
    facts: dict[str, Any]

    def design(self) -> F32:
        """Design matrix (n, p), memory-mapped."""
        return cast("F32", np.load(self.root / "design.npy", mmap_mode="r", allow_pickle=False))

    def training_set(self, number: int) -> TrainingSet:
        """Read one training set."""
        with np.load(self.root / f"set-{number:04d}.npz", allow_pickle=False) as arrays:
            got = {name: arrays[name] for name in arrays.files}
        validations = [name[:-5] for name in got if name.startswith("v") and name.endswith("_rows")]
        tests = [name[:-5] for name in got if name.startswith("f") and name.endswith("_rows")]
        return TrainingSet(
            got["rows"],
            got["projection"],
            got["mean"],
            got["shrinkage"],
            tuple(
                Validation(int(got[f"{n}_fold"]), got[f"{n}_rows"], got[f"{n}_factor"], got[f"{n}_scores"])
                for n in validations
            ),
            tuple(Test(int(got[f"{n}_fold"]), got[f"{n}_rows"], got[f"{n}_scores"]) for n in tests),
        )


@dataclass(frozen=True)
class Task:
    """A training set before it is decomposed: its rows, and (outer fold, rows) that it validates and tests."""

    rows: Rows
    validations: list[tuple[int, Rows]]
    tests: list[tuple[int, Rows]]


def gather_sets(folds: Sequence[OuterFold]) -> list[Task]:
    """List distinct training sets: that of outer fold f without run g is that of fold g without run f."""
    found: dict[bytes, Task] = {}

    def task(rows: Rows) -> Task:
        return found.setdefault(rows.tobytes(), Task(rows, [], []))

    for number, fold in enumerate(folds):
        for train, validation in fold.inner:
            task(train).validations.append((number, validation))
    for number, fold in enumerate(folds):
        task(fold.train).tests.append((number, fold.test))
    return list(found.values())


def write_plan(
    root: Path,
    design: Design,
    folds: Sequence[OuterFold],
    form: gram.Form,
    *,
    n_alphas: int,
    decades: float,
    client: Client,
    progress: Progress = SILENT,
) -> None:
    """Decompose every training set, one task each; a set on disk is kept, and the plan is whole with its record.

    Parameters
    ----------
    root
        Folder; its name must say what the plan is made from.
    design, folds, form
        As prepared.
    n_alphas, decades
        Of the grid of alphas.
    client
        Where sets are decomposed.
    progress
        Listener.
    """
    tasks = gather_sets(folds)
    used = [rows for t in tasks for rows in (t.rows, *(r for _, r in t.validations), *(r for _, r in t.tests))]
    cell = cells_of(used, len(design.run))
    # Standardised columns: the eigenvalues of a training set add up to n_t p, over min(p, n_t - 1) directions.
    n, p = design.shape
    centre = float(np.mean([len(f.train) * p / min(p, len(f.train) - 1) for f in folds]))
    alphas = gram.alpha_grid(centre, n_alphas, decades)
    with replacing(root / "design.npy") as part, part.open("wb") as file:
        np.save(file, design.rows(np.arange(n)))
    if form == "primal":
        with threadpool_limits(1):  # as in `run_set`
            cells = [design.moments(np.flatnonzero(cell == c)) for c in range(int(cell.max()) + 1)]
        _save(
            root / "cells.npz",
            n=np.array([c.n for c in cells]),
            total=np.stack([c.total for c in cells]),
            gram=np.stack([c.gram for c in cells]),
        )
    rows = [SetRow(str(root), number, form, task, cell, alphas) for number, task in enumerate(tasks)]
    todo = [row for row in rows if not row.path.is_file()]
    progress.start("plan", len(rows), "sets", done=len(rows) - len(todo))
    for _ in client.run(run_set, todo):
        progress.advance()
    progress.finish()
    _save(root / "rows.npz", alphas=alphas, run=design.run, tr=design.tr, cell=cell)
    facts = {
        "n_rows": len(design.run),
        "n_trs": list(design.n_trs),
        "n_columns": p,
        "n_constant_columns": design.n_constant,
        "n_invalid_columns": design.n_invalid,
    }
    write_json(root / RECORD, {"form": form, "runs": list(design.runs), "n_sets": len(tasks), "facts": facts})
    remove(root / "cells.npz")


@dataclass(frozen=True)
class SetRow:
    """One task: decompose training set `number` of the plan in `root`."""

    root: str
    number: int
    form: gram.Form
    task: Task
    cell: NDArray[np.int64]
    alphas: gram.F64

    @property
    def path(self) -> Path:
        """The file that it writes."""
        return Path(self.root) / f"set-{self.number:04d}.npz"


def run_set(row: SetRow) -> None:
    """Decompose and write one training set; the work of one task."""
    X: F32 = np.load(Path(row.root) / "design.npy", mmap_mode="r", allow_pickle=False)
    # One BLAS thread, wherever the task runs: sums in another order would change the last bits.
    with threadpool_limits(1):
        reference = gram.mean_squares(X)
        if row.form == "dual":
            basis = gram.dual_basis(X[row.task.rows], reference)
        else:
            basis = gram.primal_basis(_sums(Path(row.root), row.cell, row.task.rows), reference)
        arrays = _arrays(row.task, basis, X, row.alphas)
    _save(row.path, **arrays)


def is_planned(root: Path) -> bool:
    """Whether the plan is whole."""
    return (root / RECORD).is_file()


def read_plan(root: Path) -> Plan:
    """Open a plan that `write_plan` finished."""
    record = read_json(root / RECORD)
    with np.load(root / "rows.npz", allow_pickle=False) as a:
        return Plan(
            root=root,
            form=record["form"],
            alphas=a["alphas"],
            run=a["run"],
            tr=a["tr"],
            cell=a["cell"],
            runs=tuple(record["runs"]),
            n_sets=record["n_sets"],
            facts=record["facts"],
        )


def downdate(cell: NDArray[np.int64], rows: Rows) -> tuple[list[int], list[int]]:
    """Say how a row set follows from sums over cells: its cells, and the other cells.

    Sums of the set are the total less those of the other cells, unless the others hold most rows: then the
    difference would lose digits, and its own cells are added instead.

    Returns
    -------
    add, subtract : list of int
        ``add`` is empty where the total is to be used.
    """
    inside = np.unique(cell[rows])
    outside = np.setdiff1d(np.unique(cell), inside)
    if 2 * len(rows) < len(cell) or len(inside) <= len(outside):
        return [int(c) for c in inside], []
    return [], [int(c) for c in outside]


def _sums(root: Path, cell: NDArray[np.int64], rows: Rows) -> gram.Moments:
    """Sums over a row set from those over cells, by adding or by downdating the total."""
    with np.load(root / "cells.npz", allow_pickle=False) as file:
        n, total, outer = file["n"], file["total"], file["gram"]
    cells = [gram.Moments(int(n[c]), total[c], outer[c]) for c in range(len(n))]
    add, subtract = downdate(cell, rows)
    sums = functools.reduce(operator.add, [cells[c] for c in add] or cells)
    return functools.reduce(operator.sub, [cells[c] for c in subtract], sums)


def _save(path: Path, **arrays: NDArray[Any]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _arrays(task: Task, basis: gram.Basis, X: F32, alphas: gram.F64) -> dict[str, Any]:
    projection = basis.loadings.T if basis.scores is None else basis.scores.T
    arrays: dict[str, Any] = {
        "rows": task.rows,
        "projection": np.ascontiguousarray(projection, np.float32),
        "mean": basis.mean.astype(np.float32),
        "shrinkage": (1.0 / (basis.eigenvalues + alphas[:, None])).astype(np.float32),
    }
    for number, (fold, rows) in enumerate(task.validations):
        scores = basis.scores_of(X[rows])
        scores -= scores.mean(axis=0)
        arrays |= {
            f"v{number}_fold": np.int64(fold),
            f"v{number}_rows": rows,
            f"v{number}_factor": gram.triangle(scores),
            f"v{number}_scores": scores.astype(np.float32),
        }
    for number, (fold, rows) in enumerate(task.tests):
        arrays |= {
            f"f{number}_fold": np.int64(fold),
            f"f{number}_rows": rows,
            f"f{number}_scores": basis.scores_of(X[rows]).astype(np.float32),
        }
    return arrays
