"""The design matrix of all runs in parts: delayed within runs, cleaned, scaled, and never held as a whole."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.design.delays import Indices, lagged_blocks, lagged_gain, stretches
from vidbrain.encoding.design.nuisance import Nuisance
from vidbrain.encoding.design.reduce import Reduction, pca_basis
from vidbrain.encoding.folds import Rows
from vidbrain.encoding.ridge import gram
from vidbrain.encoding.ridge.gram import CHUNK_ROWS, F32, F64, Moments
from vidbrain.storage.atomic import check_writable, read_json, replacing, write_json

TILE = 512
"""Voxels in the innermost products: their operands stay in the processor's cache. Blocks are multiples of it, so that
every product has the same shape, and every bit of the result is the same, whatever the block size."""

PANEL = 64
"""Rows of a Gram matrix that are shifted and scaled at a time, in the processor's cache."""

RECORD = "design.json"


@dataclass(frozen=True)
class Design:
    """The design matrix X (n, p) of all runs in parts, and where each of its rows and columns comes from.

    Only `rows` forms rows of X; sums over rows come from `moments` and `cross`, which hold little more than the result.

    Attributes
    ----------
    features : (m, p_f) float32
        Undelayed, all TRs of all runs one after another on the TR grid of the BOLD; mean 0 and standard deviation 1
        over the TRs that enter X, 0 at the others. May be memory-mapped.
    start : (n_runs + 1,) int64
        Where each run begins in `features`.
    delays
        In TRs.
    column : (p,) int64
        Columns of X among the ``len(delays) * p_f`` (delay by delay) that could be: those that are constant, or hold
        NaN or infinity, are left out.
    band : (p,) int64
        Index of each column's layer in `bands`.
    bands
        Names of the layers.
    run : (n,) int64
        Index of each row's run in `runs`; rows are sorted by run and TR.
    tr : (n,) int64
        TR of each row in its run's BOLD series.
    runs
        Labels.
    n_trs
        TRs of BOLD by run, used or not.
    n_constant, n_invalid
        Columns left out because they never change, or hold NaN or infinity.
    nuisance
        What is taken out of the delayed columns of each run; None if nothing is.
    shift, scale : (p,) float64
        Give the cleaned columns mean 0 and standard deviation 1 over all rows. Folds standardise again, by their own
        training rows: this first shift and scale only keep later products accurate.
    """

    features: F32
    start: Indices
    delays: tuple[int, ...]
    column: Indices
    band: Indices
    bands: tuple[str, ...]
    run: Indices
    tr: Indices
    runs: tuple[str, ...]
    n_trs: tuple[int, ...]
    n_constant: int
    n_invalid: int
    nuisance: Nuisance | None
    shift: F64
    scale: F64

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of X."""
        return len(self.run), len(self.column)

    def rows(self, rows: Rows) -> F32:
        """Form rows of X, (len(rows), p)."""
        out = np.empty((len(rows), len(self.column)), np.float32)
        for position in range(len(self.delays)):
            columns, _ = self._part(position)
            out[:, columns] = self._delayed(rows, position)
        return out

    def moments(self, rows: Rows) -> Moments:
        """Sum rows of X and their outer products, without forming X.

        With delayed features F, a run's cleaned rows are ``F - Q B``; hence over any of its rows
        ``X'X = F'F - (F'Q) B - B'(Q'F) + B'(Q'Q) B``, where F'F comes from lagged products. Rows that are cheaper to
        form by counted operations, as in short stretches, are formed, `CHUNK_ROWS` at a time.

        Parameters
        ----------
        rows
            Ascending.
        """
        if np.any(np.diff(rows) <= 0):
            raise ValueError("rows must ascend")
        lagged = self._worth_lagging(rows)
        ways = ((self._lagged_moments, rows[lagged]), (self._direct_moments, rows[~lagged]))
        parts = [way(some) for way, some in ways if len(some)]
        return functools.reduce(operator.add, parts) if parts else self._direct_moments(rows)

    def cross(self, rows: Rows, Y: F32, out: F32) -> None:
        """Add ``X[rows]' Y`` to `out` in float32, `CHUNK_ROWS` rows and one delay at a time.

        Parameters
        ----------
        rows
        Y : (len(rows), t) float32
            Best near mean 0: an offset costs digits.
        out : (p, t) float32
        """
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS]
            for position in range(len(self.delays)):
                columns, _ = self._part(position)
                Xt = np.ascontiguousarray(self._delayed(chunk, position).T, np.float32)
                for left in range(0, Y.shape[1], TILE):
                    tile = slice(left, left + TILE)
                    out[columns, tile] += Xt @ Y[start : start + CHUNK_ROWS, tile]

    def pca(self, rows: Rows, components: int) -> Reduction:
        """Principal components of each band over the TRs that some training rows see, each TR once.

        Components are those of undelayed, uncleaned features, standardised by these TRs; the same serve every delay.
        Reduced columns keep the components' variance. A feature of which a column was left out takes no part.

        Parameters
        ----------
        rows
            Of the training set.
        components
            For each band.

        Raises
        ------
        EncodingError
            If a band has fewer features, or fewer directions over these TRs.
        """
        seen = np.unique(self._place(rows)[:, None] - np.array(self.delays))
        p_f = self.features.shape[1]
        whole = np.bincount(self.column % p_f, minlength=p_f) == len(self.delays)
        band_of = np.zeros(p_f, np.int64)
        band_of[self.column % p_f] = self.band
        basis = np.zeros((p_f, components * len(self.bands)))
        for number in range(len(self.bands)):
            mine = np.flatnonzero(whole & (band_of == number))
            here = slice(number * components, (number + 1) * components)
            basis[mine, here] = pca_basis(gram.moments(np.asarray(self.features[seen][:, mine])), components)
        parts = [self._part(position) for position in range(len(self.delays))]
        return Reduction(
            blocks=tuple(self.scale[columns, None] * basis[features] for columns, features in parts),
            band=np.tile(np.repeat(np.arange(len(self.bands)), components), len(self.delays)),
        )

    def save(self, root: Path) -> None:
        """Write the design to a folder; it is whole with its record, which is written last.

        Raises
        ------
        StorageError
            If the folder cannot be written, or the disk is too small.
        """
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _ARRAYS}
        if self.nuisance is not None:
            arrays |= {f"nuisance_{name}": getattr(self.nuisance, name) for name in _NUISANCE}
        check_writable(root, sum(array.nbytes for array in arrays.values()))
        for name, array in arrays.items():
            with replacing(root / f"{name}.npy") as part, part.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        record = {name: getattr(self, name) for name in ("n_constant", "n_invalid")}
        record |= {name: list(getattr(self, name)) for name in _TUPLES}
        write_json(root / RECORD, record | {"cleaned": self.nuisance is not None})

    def _place(self, rows: Rows) -> Indices:
        """Places of rows in `features`, before any delay."""
        return self.start[self.run[rows]] + self.tr[rows]

    def _worth_lagging(self, rows: Rows) -> NDArray[np.bool_]:
        """Mark the rows whose sums cost fewer operations by lagged products."""
        share, shortest = lagged_gain(self.delays)
        first, stop = stretches(self._place(rows))
        lengths = stop - first
        lagged = np.repeat(lengths >= shortest, lengths)
        if self.nuisance is not None:
            # The products with B cost a run as much as forming twice as many rows as B has.
            gain = np.repeat(share * np.maximum(1 - shortest / lengths, 0), lengths)
            gains = np.bincount(self.run[rows], weights=gain, minlength=len(self.runs))
            pays = gains > 2 * self.nuisance.basis.shape[1]
            pays &= ~np.any(self.nuisance.gone, axis=1)  # there the formula would leave rounding, not 0
            lagged &= pays[self.run[rows]]
        return lagged

    def _part(self, position: int) -> tuple[slice, Indices]:
        """Columns of one delay, and their features."""
        p_f = self.features.shape[1]
        first, stop = np.searchsorted(self.column, (position * p_f, (position + 1) * p_f))
        return slice(int(first), int(stop)), self.column[first:stop] - position * p_f

    def _undelayed(self, places: Indices, features: Indices) -> F64:
        """Read features at some places, in float64."""
        values = self.features[places]
        whole = len(features) == values.shape[1]
        return (values if whole else values[:, features]).astype(np.float64)

    def _delayed(self, rows: Rows, position: int) -> F64:
        """Rows of X at one delay, (len(rows), p_i)."""
        columns, features = self._part(position)
        values = self._undelayed(self._place(rows) - self.delays[position], features)
        if self.nuisance is not None:
            self.nuisance.take_out(values, rows, self.run[rows], columns)
        values -= self.shift[columns]
        values /= self.scale[columns]
        return values

    def _direct_moments(self, rows: Rows) -> Moments:
        """Sums over rows of X that are formed, `CHUNK_ROWS` at a time."""
        p = len(self.column)
        total, outer = np.zeros(p), np.zeros((p, p))
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS]
            X = np.concatenate([self._delayed(chunk, position) for position in range(len(self.delays))], axis=1)
            total += X.sum(axis=0)
            outer += X.T @ X
        return Moments(len(rows), total, outer)

    def _lagged_moments(self, rows: Rows) -> Moments:
        """Sums over rows of X from lagged products of the features."""
        places = self._place(rows)
        parts = [self._part(position) for position in range(len(self.delays))]
        outer = np.empty((len(self.column), len(self.column)))
        for i, j, block in lagged_blocks(self.features, *stretches(places), self.delays):
            (rows_i, f_i), (rows_j, f_j) = parts[i], parts[j]
            whole = len(f_i) == len(f_j) == len(block)
            outer[rows_i, rows_j] = block if whole else block[np.ix_(f_i, f_j)]
            outer[rows_j, rows_i] = outer[rows_i, rows_j].T
        total = np.zeros(len(self.column))
        for (columns, features), lag in zip(parts, self.delays, strict=True):
            for start in range(0, len(places), CHUNK_ROWS):
                total[columns] += self._undelayed(places[start : start + CHUNK_ROWS] - lag, features).sum(axis=0)
        if self.nuisance is not None:
            self._take_out_of_sums(self.nuisance, rows, total, outer)
        centred = total - len(rows) * self.shift
        for start in range(0, len(outer), PANEL):
            part, at = outer[start : start + PANEL], slice(start, start + PANEL)
            part -= np.outer(self.shift[at], total)
            part -= np.outer(centred[at], self.shift)
            part /= np.outer(self.scale[at], self.scale)
        return Moments(len(rows), centred / self.scale, outer)

    def _take_out_of_sums(self, nuisance: Nuisance, rows: Rows, total: F64, outer: F64) -> None:
        """Make sums over delayed rows those over cleaned rows, in place: with H = F'Q - B'Q'Q / 2, less HB + B'H'."""
        places = self._place(rows)
        halves, loadings = [], []
        for number in np.unique(self.run[rows]):
            mine = np.flatnonzero(self.run[rows] == number)
            Q, B = nuisance.basis[rows[mine]], nuisance.loadings[number]
            FQ = np.empty((len(total), Q.shape[1]))
            for position, lag in enumerate(self.delays):
                columns, features = self._part(position)
                FQ[columns] = self._undelayed(places[mine] - lag, features).T @ Q
            halves.append(FQ - B.T @ (Q.T @ Q) / 2)
            loadings.append(B)
            total -= B.T @ Q.sum(axis=0)
        taken = np.concatenate(halves, axis=1) @ np.concatenate(loadings)
        outer -= taken
        outer -= taken.T


_ARRAYS = ("features", "start", "column", "band", "run", "tr", "shift", "scale")
_NUISANCE = ("basis", "loadings", "gone")
_TUPLES = ("delays", "bands", "runs", "n_trs")


def load_design(root: Path, *, mmap: bool = True) -> Design:
    """Open a design that `Design.save` wrote.

    Parameters
    ----------
    root
        Folder.
    mmap
        Whether arrays are memory-mapped, so that only what is used is read.

    Raises
    ------
    StorageError
        If it is not whole.
    """
    record = read_json(root / RECORD)

    def read(name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(root / f"{name}.npy", mmap_mode="r" if mmap else None, allow_pickle=False)
        return array

    arrays: dict[str, Any] = {name: read(name) for name in _ARRAYS}
    arrays |= {name: tuple(record[name]) for name in _TUPLES}
    nuisance = Nuisance(**{name: read(f"nuisance_{name}") for name in _NUISANCE}) if record["cleaned"] else None
    return Design(**arrays, n_constant=record["n_constant"], n_invalid=record["n_invalid"], nuisance=nuisance)
