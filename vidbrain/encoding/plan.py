"""Everything on the feature side of an encoding model: computed once, stored, and read by every block of voxels."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding import gram
from vidbrain.encoding.design import Design
from vidbrain.encoding.folds import OuterFold, Rows, cells_of
from vidbrain.storage.atomic import read_json, replacing, write_json

F32 = NDArray[np.float32]


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
        """Design matrix (n, p), memory-mapped; the primal form only."""
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
class _Task:
    """A training set before it is decomposed: its rows, and (outer fold, rows) that it validates and tests."""

    rows: Rows
    validations: list[tuple[int, Rows]]
    tests: list[tuple[int, Rows]]


def gather_sets(folds: Sequence[OuterFold]) -> list[_Task]:
    """List distinct training sets: that of outer fold f without run g is that of fold g without run f."""
    found: dict[bytes, _Task] = {}

    def task(rows: Rows) -> _Task:
        return found.setdefault(rows.tobytes(), _Task(rows, [], []))

    for number, fold in enumerate(folds):
        for train, validation in fold.inner:
            task(train).validations.append((number, validation))
    for number, fold in enumerate(folds):
        task(fold.train).tests.append((number, fold.test))
    return list(found.values())


def write_plan(
    root: Path, design: Design, folds: Sequence[OuterFold], form: gram.Form, n_alphas: int, decades: float
) -> None:
    """Decompose every training set and write the plan as a folder that appears whole or not at all."""
    tasks = gather_sets(folds)
    used = [rows for t in tasks for rows in (t.rows, *(r for _, r in t.validations), *(r for _, r in t.tests))]
    cell = cells_of(used, len(design.run))
    reference = np.mean(design.X.astype(np.float64) ** 2, axis=0)
    bases = _bases(design.X, tasks, cell, reference, form)
    # Standardised columns: the eigenvalues of a training set add up to n_t p, over min(p, n_t - 1) directions.
    p = design.X.shape[1]
    centre = float(np.mean([len(f.train) * p / min(p, len(f.train) - 1) for f in folds]))
    alphas = gram.alpha_grid(centre, n_alphas, decades)
    with replacing(root) as part:
        part.mkdir()
        for number, (task, basis) in enumerate(zip(tasks, bases, strict=True)):
            np.savez(part / f"set-{number:04d}.npz", **_arrays(task, basis, design.X, alphas))
        if form == "primal":
            np.save(part / "design.npy", design.X)
        np.savez(part / "rows.npz", alphas=alphas, run=design.run, tr=design.tr, cell=cell)
        facts = {
            "n_rows": len(design.run),
            "n_trs": list(design.n_trs),
            "n_columns": p,
            "n_constant_columns": design.n_constant,
            "n_invalid_columns": design.n_invalid,
        }
        record = {"form": form, "runs": list(design.runs), "n_sets": len(tasks), "facts": facts}
        write_json(part / "plan.json", record)


def read_plan(root: Path) -> Plan:
    """Open a plan that `write_plan` finished."""
    record = read_json(root / "plan.json")
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


def _bases(
    X: F32, tasks: Sequence[_Task], cell: NDArray[np.int64], reference: gram.F64, form: gram.Form
) -> Iterator[gram.Basis]:
    """Decompose one training set after the other, so that only one is in memory."""
    if form == "dual":
        for task in tasks:
            yield gram.dual_basis(X[task.rows], reference)
        return
    cells = [gram.moments(X[cell == c]) for c in range(int(cell.max()) + 1)]
    total = functools.reduce(operator.add, cells)
    for task in tasks:
        add, subtract = downdate(cell, task.rows)
        if add:
            sums = functools.reduce(operator.add, [cells[c] for c in add])
        else:
            sums = functools.reduce(operator.sub, [cells[c] for c in subtract], total)
        yield gram.primal_basis(sums, reference)


def _arrays(task: _Task, basis: gram.Basis, X: F32, alphas: gram.F64) -> dict[str, Any]:
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
