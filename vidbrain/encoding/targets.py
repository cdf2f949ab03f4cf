"""A block of voxels while it is fitted: standardised, with the sums from which every fold's products follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.design.columns import CONSTANT
from vidbrain.encoding.design.matrix import TILE
from vidbrain.encoding.folds import Rows
from vidbrain.encoding.plan import Plan, TrainingSet, downdate
from vidbrain.encoding.products import NumpyProducts, Products

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def cut(widths: Sequence[int]) -> tuple[slice, ...]:
    """Lay tiles of these widths side by side."""
    stops = np.cumsum(widths).tolist()
    return tuple(slice(stop - width, stop) for stop, width in zip(stops, widths, strict=True))


def tiles(n_voxels: int) -> tuple[slice, ...]:
    """Cut a block into tiles of `TILE` voxels."""
    return cut([TILE] * (n_voxels // TILE) + [n_voxels % TILE] * (n_voxels % TILE > 0))


class Targets:
    """BOLD of a block, and its products with the design over each cell of rows.

    Parameters
    ----------
    plan
        The feature side.
    Y : (n, t) float32
        BOLD of the plan's rows; any offset and scale.
    products
        Where matrices are multiplied; default this processor.
    widths
        Of tiles, where other voxels than neighbours are fitted: what one tile holds decides its last bits. Default
        `TILE`.

    Attributes
    ----------
    tiles
        Cut the voxels.
    Y : (n, t) float32
        Standardised; dead voxels are 0.
    dead : (t,) bool
        Not finite, or constant in at least one run.
    """

    def __init__(
        self, plan: Plan, Y: F32, widths: Sequence[int] | None = None, products: Products | None = None
    ) -> None:
        self.products = products or NumpyProducts()
        self._plan = plan
        self.Y, self.dead = standardise(Y, plan.run)
        self.n_voxels = self.Y.shape[1]
        if self.products.whole_blocks:
            widths = [self.n_voxels]
        self.tiles = tiles(self.n_voxels) if widths is None else cut(widths)
        n_cells = int(plan.cell.max()) + 1
        cells = [np.flatnonzero(plan.cell == cell) for cell in range(n_cells)]
        self._sums: F64 = np.stack([self.Y[rows].sum(axis=0, dtype=np.float64) for rows in cells])
        self._products: F32 | None = None
        self._total: F64 | None = None
        if plan.form != "dual":
            self._products = np.zeros((n_cells, len(plan.design.column), self.n_voxels), np.float32)
            for rows, out in zip(cells, self._products, strict=True):
                for tile in self.tiles if widths is not None else [slice(None)]:
                    plan.design.cross(rows, self.Y[rows, tile], out[:, tile])
            self._total = self._products.sum(axis=0, dtype=np.float64)

    def mean(self, rows: Rows) -> F64:
        """Mean over a row set that is a union of cells, (t,)."""
        add, subtract = downdate(self._plan.cell, rows)
        total = self._sums[add].sum(axis=0) if add else self._sums.sum(axis=0) - self._sums[subtract].sum(axis=0)
        return np.asarray(total / len(rows), np.float64)

    def project(self, training: TrainingSet, tile: slice) -> F32:
        """Return the training set's ``Z = V' X' Y``, (q, tile), with means removed."""
        if self._products is None or self._total is None:
            # Scores of the training rows are centred, so Y need not be.
            return self.products.multiply(training.projection, self.Y[training.rows, tile])
        add, subtract = downdate(self._plan.cell, training.rows)
        total = self._products[add, :, tile].sum(axis=0, dtype=np.float64) if add else self._total[:, tile].copy()
        for cell in subtract:
            total -= self._products[cell, :, tile]
        total -= np.outer(training.mean, self.mean(training.rows)[tile] * len(training.rows))
        return self.products.multiply(training.projection, total.astype(np.float32))


def standardise(Y: F32, run: NDArray[np.int64]) -> tuple[F32, NDArray[np.bool_]]:
    """Centre and scale voxels, so that float32 products lose nothing to an offset; mark those that cannot be.

    Parameters
    ----------
    Y : (n, t) float32
    run : (n,) int64
        Run of each row.

    Returns
    -------
    Y : (n, t) float32
        A copy; dead voxels are 0.
    dead : (t,) bool
        Not finite, or constant in at least one run.
    """
    dead: NDArray[np.bool_] = np.logical_not(np.isfinite(Y).all(axis=0))
    Y = np.where(dead, np.float32(0), Y)
    size = np.abs(Y).max(axis=0)
    for number in np.unique(run):
        dead |= np.ptp(Y[run == number], axis=0) <= CONSTANT * size
    Y -= Y[:1].copy()  # an exact shift first: the float32 mean of raw BOLD would round
    Y -= Y.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.mean(Y**2, axis=0, dtype=np.float64))
    Y *= np.where(dead, 0, 1 / np.where(dead, 1, scale)).astype(np.float32)
    return Y, dead
