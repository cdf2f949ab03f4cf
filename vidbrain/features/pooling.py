"""Positions become vectors, on the device that holds them, before anything is transferred."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ConfigError, ModelError
from vidbrain.features.projection import project

PoolingName = Literal["all", "mean", "grid", "last", "projection"]

MAX_FEATURES = 512
"""Unless a pooling is asked for, the finest one is taken that gives at most this many features a layer: sets of equal
size can be compared, larger ones would fit more by their size alone."""

FINEST_GRID = 4
"""Cells along each side of the finest grid that is chosen unasked."""


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How the positions of a slice, (*grid, C), become one vector."""

    kind: PoolingName = "grid"
    """all: side by side; mean: over positions; grid: mean in each cell of a grid; last: the last position, which sees
    the most in a GPT; projection: all, under a random projection"""
    grid: int = 4
    """cells along each side, for grid"""
    n_out: int = MAX_FEATURES
    """features, for projection"""
    seed: int = 0
    """of the projection"""

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ConfigError(f"a pooling grid needs at least 1 cell a side, not {self.grid}")
        if self.n_out < 1:
            raise ConfigError(f"a projection needs at least 1 feature, not {self.n_out}")

    def check(self, layer: str, grid: tuple[int, ...]) -> None:
        """Refuse a grid that is finer than the positions, or of positions that lie in none.

        Raises
        ------
        ModelError
            With the positions of the layer.
        """
        if self.kind != "grid":
            return
        if len(grid) != 2:
            lie = f"{grid[0]} positions that lie in no known grid" if grid else "a single position"
            hint = "give --pool mean, last, all or projection" + (", or say how they lie: --token-grid" if grid else "")
            raise ModelError(f"{layer} has {lie}", where=layer, hint=hint)
        if self.grid > min(grid):
            raise ModelError(
                f"a pooling grid of {self.grid}x{self.grid} is finer than the {grid[0]}x{grid[1]} tokens of {layer}",
                where=layer,
                hint=f"give --grid {min(grid)} or less",
            )

    def n_features(self, grid: tuple[int, ...], n_channels: int) -> int:
        """Length of the vector."""
        cells = {"all": math.prod(grid), "grid": self.grid**2}
        return self.n_out if self.kind == "projection" else n_channels * cells.get(self.kind, 1)


def default_pooling(grid: tuple[int, ...], n_channels: int) -> Pooling:
    """All positions if that gives at most `MAX_FEATURES` features, else the finest grid up to 4x4, else the mean."""
    if not grid or math.prod(grid) * n_channels <= MAX_FEATURES:
        return Pooling(kind="all")
    if len(grid) == 2:
        for cells in range(min(FINEST_GRID, *grid), 1, -1):
            if cells**2 * n_channels <= MAX_FEATURES:
                return Pooling(kind="grid", grid=cells)
    return Pooling(kind="mean")


def averaging_matrix(n: int, n_cells: int) -> NDArray[np.float64]:
    """Cells of equal size over n samples in a row.

    A sample that lies across the border of two cells counts in each by its share, so that every sample has the same
    weight in all.

    Returns
    -------
    (n_cells, n) float64
        Rows sum to 1, columns to ``n_cells / n``.
    """
    edges = np.arange(n_cells + 1)[:, None] * (n / n_cells)
    filled = np.clip(edges - np.arange(n), 0.0, 1.0)
    return np.diff(filled, axis=0) * (n_cells / n)


def pool(tokens: Any, pooling: Pooling) -> Any:  # noqa: ANN401 -- a NumPy array or a torch tensor, and the same out
    """Pool each slice to one vector.

    Parameters
    ----------
    tokens : (B, t, *grid, C)
        Floating point; a NumPy array, or a torch tensor, which stays on its device.
    pooling
        How.

    Returns
    -------
    (B, t, n_features)
        Channels fastest; for a grid in the order (row, column, channel).
    """
    n_clips, n_slices, *grid, n_channels = tokens.shape
    if pooling.kind == "all":
        return tokens.reshape(n_clips, n_slices, -1)
    if pooling.kind == "projection":
        return project(tokens.reshape(n_clips, n_slices, -1), pooling.n_out, pooling.seed)
    if pooling.kind != "grid":
        flat = tokens.reshape(n_clips, n_slices, math.prod(grid), n_channels)
        return flat[:, :, -1] if pooling.kind == "last" else flat.mean(2)
    height, width = grid
    rows = _like(averaging_matrix(height, pooling.grid), tokens)
    columns = _like(averaging_matrix(width, pooling.grid), tokens)
    cells = rows @ tokens.reshape(n_clips, n_slices, height, width * n_channels)
    cells = columns @ cells.reshape(n_clips, n_slices, pooling.grid, width, n_channels)
    return cells.reshape(n_clips, n_slices, -1)


def _like(matrix: NDArray[np.float64], array: Any) -> Any:  # noqa: ANN401 -- as in `pool`
    # A tensor makes its own kind; this module need not import torch, so that workers without a model start at once.
    return matrix.astype(array.dtype) if isinstance(array, np.ndarray) else array.new_tensor(matrix)
