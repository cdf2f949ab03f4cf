"""Which rows train and which test: whole runs, nested, so that alpha never sees the run it is judged on.

Outer folds leave one run out: it gives that fold's r. Inside, each of the remaining runs is left out in turn: these
inner folds choose alpha for each voxel. With two runs only one remains for training, so the inner folds are
contiguous blocks of it, and TRs at both sides of a block are purged: neighbours in time share signal and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import EncodingError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class OuterFold:
    """One held-out run.

    Attributes
    ----------
    run
        Index of the held-out run.
    train, test
        Rows, ascending.
    inner
        Pairs of training and validation rows, all within `train`.
    """

    run: int
    train: Rows
    test: Rows
    inner: tuple[tuple[Rows, Rows], ...]


def nested_folds(run: NDArray[np.int64], tr: NDArray[np.int64], *, n_blocks: int, purge_trs: int) -> list[OuterFold]:
    """Plan leave-one-run-out folds with inner folds for alpha.

    Parameters
    ----------
    run : (n,) int64
        Run of each row.
    tr : (n,) int64
        TR of each row in its run.
    n_blocks
        Inner folds where only one run is left for training.
    purge_trs
        TRs left out at each side of such a block.

    Raises
    ------
    EncodingError
        With fewer than two runs, or blocks that leave nothing to train on.
    """
    runs = np.unique(run)
    if len(runs) < 2:
        raise EncodingError(
            f"held-out r needs at least 2 runs, there is {len(runs)}",
            hint="add runs: three or more give the best choice of alpha",
        )
    folds = []
    for held_out in runs:
        train = np.flatnonzero(run != held_out)
        if len(runs) > 2:
            inner = tuple(
                (np.flatnonzero((run != held_out) & (run != other)), np.flatnonzero(run == other))
                for other in runs
                if other != held_out
            )
        else:
            inner = block_folds(train, tr[train], n_blocks=n_blocks, purge_trs=purge_trs)
        folds.append(OuterFold(int(held_out), train, np.flatnonzero(run == held_out), inner))
    return folds


def block_folds(rows: Rows, tr: NDArray[np.int64], *, n_blocks: int, purge_trs: int) -> tuple[tuple[Rows, Rows], ...]:
    """Cut the rows of one run into contiguous blocks, each validated once with its neighbourhood purged.

    Raises
    ------
    EncodingError
        If a block leaves less than half of the rows to train on.
    """
    folds = []
    for block in np.array_split(np.arange(len(rows)), n_blocks):
        if len(block) < 3:
            raise EncodingError(f"{len(rows)} TRs cannot be cut into {n_blocks} inner folds")
        away = (tr < tr[block[0]] - purge_trs) | (tr > tr[block[-1]] + purge_trs)
        if away.sum() < len(rows) / 2:
            raise EncodingError(
                f"purging {purge_trs} TRs around an inner fold of {len(block)} leaves {int(away.sum())} of {len(rows)}",
                hint="use a smaller --purge-trs, or more runs",
            )
        folds.append((rows[away], rows[block]))
    return tuple(folds)


def cells_of(row_sets: list[Rows], n_rows: int) -> NDArray[np.int64]:
    """Cut all rows into the fewest cells of which every given row set is a union.

    Sums over cells (Gram matrices) are then computed once, and every fold's sums follow by adding or subtracting.

    Returns
    -------
    (n_rows,) int64
        Cell of each row, numbered by first appearance.
    """
    member = np.zeros((n_rows, len(row_sets)), bool)
    for column, rows in enumerate(row_sets):
        member[rows, column] = True
    _, first, inverse = np.unique(np.packbits(member, axis=1), axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]
