"""The feature side of an encoding model on disk: computed once, and read by every block of voxels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.design.matrix import Design, load_design
from vidbrain.encoding.folds import Rows
from vidbrain.encoding.ridge import gram
from vidbrain.storage.atomic import read_json

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
RECORD = "plan.json"


@dataclass(frozen=True)
class Validation:
    """Rows that score alphas for one outer fold.

    Attributes
    ----------
    fold
        Outer fold.
    rows : (n_v,)
    scores : (n_v, q) float32
        T, centred over these rows.
    factor : (k, q) float32
        R, triangular with ``|T x| = |R x|``; empty in the hat form.
    hat : (r, n_v, n_v) float32
        ``(I - H)^-1 - I`` of these rows for every alpha, in the hat form; else empty. There `scores` are not centred.
    """

    fold: int
    rows: Rows
    scores: F32
    factor: F32
    hat: F32


@dataclass(frozen=True)
class Test:
    """A held-out part: `scores` is T by band (n_bands, n_f, q), relative to the training mean; they add up to T."""

    fold: int
    part: int
    rows: Rows
    scores: F32


@dataclass(frozen=True)
class TrainingSet:
    """One training set under one weighting of the bands, and what is predicted from it.

    Attributes
    ----------
    rows : (n_t,)
    projection : (q, n_t) in the dual form, else (q, p), float32
        Turns ``Y_t`` (dual) or the centred ``X_t' Y_t`` into Z.
    mean : (p,) float32
        Of the training rows; not used by the dual form.
    shrinkage : (r, q) float32
    mixture : (r, m), terms : (m, q) float32
        Fewer shrinkages of which all alphas are mixtures; empty where alphas are exact.
    """

    rows: Rows
    projection: F32
    mean: F32
    shrinkage: F32
    mixture: F32
    terms: F32
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
        ``"primal"``, ``"dual"`` or ``"hat"``.
    alphas : (r,) float64, ascending
    gammas : (n_candidates, n_bands) float64
        Weightings of the bands that each voxel chooses from; each adds up to 1.
    model : (n_candidates,) int64
        Model that a candidate belongs to: 0 has all bands, 1 + b lacks band b.
    run, tr, cell : (n,) int64
        Of each row.
    runs, parts, bands
        Labels of the runs that `run` counts, of the parts that are judged, and of the bands.
    n_folds
        Outer folds.
    validating, testing
        Numbers of the training sets that choose alphas, and of those that predict what is judged.
    facts
        Counts of rows and columns, used and left out, for readers.
    """

    root: Path
    form: gram.Form
    alphas: F64
    gammas: F64
    model: NDArray[np.int64]
    run: NDArray[np.int64]
    tr: NDArray[np.int64]
    cell: NDArray[np.int64]
    runs: tuple[str, ...]
    parts: tuple[str, ...]
    bands: tuple[str, ...]
    n_folds: int
    validating: tuple[int, ...]
    testing: tuple[int, ...]
    facts: dict[str, Any]

    @property
    def n_models(self) -> int:
        """The joint model, and those that lack one band."""
        return int(self.model.max()) + 1

    @functools.cached_property
    def design(self) -> Design:
        """The design, memory-mapped."""
        return load_design(self.root / "design")

    def training_set(self, number: int, candidate: int = 0) -> TrainingSet:
        """Read one training set under one candidate."""
        with np.load(set_path(self.root, number, candidate), allow_pickle=False) as arrays:
            got = {name: arrays[name] for name in arrays.files}
        validations = [name[:-5] for name in got if name.startswith("v") and name.endswith("_rows")]
        tests = [name[:-5] for name in got if name.startswith("f") and name.endswith("_rows")]
        return TrainingSet(
            got["rows"],
            got["projection"],
            got["mean"],
            got["shrinkage"],
            got["mixture"],
            got["terms"],
            tuple(
                Validation(
                    int(got[f"{n}_fold"]), got[f"{n}_rows"], got[f"{n}_scores"], got[f"{n}_factor"], got[f"{n}_hat"]
                )
                for n in validations
            ),
            tuple(
                Test(int(got[f"{n}_fold"]), int(got[f"{n}_part"]), got[f"{n}_rows"], got[f"{n}_scores"]) for n in tests
            ),
        )


def set_path(root: Path, number: int, candidate: int) -> Path:
    """File of a training set under a candidate."""
    return root / f"set-{number:04d}-{candidate:04d}.npz"


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
            gammas=a["gammas"],
            model=a["model"],
            run=a["run"],
            tr=a["tr"],
            cell=a["cell"],
            runs=tuple(record["runs"]),
            parts=tuple(record["parts"]),
            bands=tuple(record["bands"]),
            n_folds=record["n_folds"],
            validating=tuple(record["validating"]),
            testing=tuple(record["testing"]),
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
