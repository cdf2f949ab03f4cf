"""Token grids become vectors, on the device that holds them, before anything is transferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ConfigError, ModelError


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How the tokens of a slice, (h, w, C), become one vector."""

    kind: Literal["mean", "grid", "last"] = "grid"
    """mean: over all tokens; grid: mean in each cell of a grid; last: the last token, which sees the most in a GPT"""
    grid: int = 4
    """cells along each side, for grid"""

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ConfigError(f"a pooling grid needs at least 1 cell a side, not {self.grid}")

    def check(self, layer: str, height: int, width: int) -> None:
        """Refuse a grid that is finer than the tokens.

        Raises
        ------
        ModelError
            With the token grid of the layer.
        """
        if self.kind == "grid" and self.grid > min(height, width):
            raise ModelError(
                f"a pooling grid of {self.grid}x{self.grid} is finer than the {height}x{width} tokens of {layer}",
                where=layer,
                hint=f"give --grid {min(height, width)} or less",
            )

    def n_features(self, n_channels: int) -> int:
        """Length of the vector."""
        return n_channels * (self.grid**2 if self.kind == "grid" else 1)


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
    """Pool each token slice to one vector.

    Parameters
    ----------
    tokens : (B, t, h, w, C)
        Floating point; a NumPy array, or a torch tensor, which stays on its device.
    pooling
        How.

    Returns
    -------
    (B, t, n_features)
        For a grid in the order (row, column, channel), channels fastest.
    """
    n_clips, n_slices, height, width, n_channels = tokens.shape
    if pooling.kind == "last":
        return tokens[:, :, -1, -1]
    if pooling.kind == "mean":
        return tokens.reshape(n_clips, n_slices, height * width, n_channels).mean(2)
    rows = _like(averaging_matrix(height, pooling.grid), tokens)
    columns = _like(averaging_matrix(width, pooling.grid), tokens)
    cells = rows @ tokens.reshape(n_clips, n_slices, height, width * n_channels)
    cells = columns @ cells.reshape(n_clips, n_slices, pooling.grid, width, n_channels)
    return cells.reshape(n_clips, n_slices, -1)


def _like(matrix: NDArray[np.float64], array: Any) -> Any:  # noqa: ANN401 -- as in `pool`
    # A tensor makes its own kind; this module need not import torch, so that workers without a model start at once.
    return matrix.astype(array.dtype) if isinstance(array, np.ndarray) else array.new_tensor(matrix)
