"""Which rows train and which test: whole runs or sessions, nested, so that alpha never sees what it is judged on.

Units that are left out together (runs, sessions, levels, recordings) are dealt to folds. Each fold is tested in turn by
a model that saw none of it; inside, each of the other folds is left out in turn: these inner folds choose alpha for
each voxel. Or a rule names the test runs once, and the rest only trains. Rows of the training set that lie within
`purge_trs` of a held-out row of the same run are dropped: neighbours in time share signal and noise.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import EncodingError

Rows = NDArray[np.int64]

TEST = -1
"""Fold of rows that are tested once and never train."""


@dataclass(frozen=True)
class OuterFold:
    """Held-out rows and what may learn from the others.

    Attributes
    ----------
    train
        Rows, ascending.
    tests
        Rows of each part that is judged by an r of its own: the runs of the fold.
    inner
        Pairs of training and validation rows, all within `train`.
    """

    train: Rows
    tests: tuple[Rows, ...]
    inner: tuple[tuple[Rows, Rows], ...]


@dataclass(frozen=True)
class Layout:
    """Folds of all rows, and the names of the parts that they judge, in the order of `folds` and their `tests`."""

    folds: tuple[OuterFold, ...]
    parts: tuple[str, ...]

    def numbered(self) -> Iterator[tuple[int, int, Rows]]:
        """Yield (fold, part, rows) of everything that is judged."""
        part = 0
        for number, fold in enumerate(self.folds):
            for rows in fold.tests:
                yield number, part, rows
                part += 1


def deal(units: NDArray[np.int64], max_folds: int) -> NDArray[np.int64]:
    """Deal units to folds, contiguous and as even as can be.

    Parameters
    ----------
    units : (n,) int64
        Unit of each row, numbered in order of appearance; `TEST` for rows that only test.
    max_folds
        Folds at most; fewer units have one fold each.

    Returns
    -------
    (n,) int64
        Fold of each row; `TEST` stays.
    """
    found = np.unique(units[units != TEST])
    fold_of = np.empty(len(found), np.int64)
    for fold, part in enumerate(np.array_split(np.arange(len(found)), min(max_folds, len(found)))):
        fold_of[part] = fold
    folds = np.full(len(units), TEST)
    inside = units != TEST
    folds[inside] = fold_of[np.searchsorted(found, units[inside])]
    return folds


def matching(runs: Sequence[str], patterns: Sequence[str]) -> tuple[int, ...]:
    """Find the runs that patterns such as ``*ses-005*`` name, by position.

    Raises
    ------
    EncodingError
        If a pattern names none, or all are named.
    """
    for pattern in patterns:
        if not fnmatch.filter(runs, pattern):
            raise EncodingError(
                f"no run matches the test pattern {pattern!r}",
                hint=f"runs are {', '.join(runs[:4])}{', …' if len(runs) > 4 else ''}",
            )
    found = tuple(n for n, run in enumerate(runs) if any(fnmatch.fnmatch(run, pattern) for pattern in patterns))
    if len(found) == len(runs):
        raise EncodingError("every run is a test run, none is left to train", hint="name fewer with --test")
    return found


def lay_out(
    fold: NDArray[np.int64],
    part: NDArray[np.int64],
    names: Sequence[str],
    run: NDArray[np.int64],
    tr: NDArray[np.int64],
    *,
    n_blocks: int,
    purge_trs: int,
) -> Layout:
    """Nest folds: each is tested by what the others train, and each of the others validates in turn.

    Parameters
    ----------
    fold : (n,) int64
        Fold of each row. Where some are `TEST`, these alone are tested, and the folds only choose alpha.
    part : (n,) int64
        Part of each row, judged by an r of its own.
    names
        Of the parts.
    run, tr : (n,) int64
        Run of each row, and its TR there.
    n_blocks
        Inner folds where only one fold is left for training: contiguous blocks of it.
    purge_trs
        TRs left out of training at each side of held-out rows of the same run.

    Raises
    ------
    EncodingError
        With fewer than two folds, or a fold that leaves nothing to train on.
    """
    found = [int(number) for number in np.unique(fold)]
    if len(found) < 2:
        raise EncodingError(
            f"held-out r needs at least 2 runs or groups of them, there is {len(found)}",
            hint="add runs: three or more give the best choice of alpha",
        )

    def away(held: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ~held & ~near(held, run, tr, purge_trs)

    folds, parts = [], []
    for outer in [TEST] if TEST in found else found:
        test = fold == outer
        train = away(test)
        others = [number for number in found if number != outer and (train & (fold == number)).any()]
        if not others:
            raise EncodingError(
                f"purging {purge_trs} TRs around the test rows leaves nothing to train on", hint="--purge-trs"
            )
        # Where the rest is one fold, its runs validate in turn; where it is one run, blocks of it do.
        unit = fold if len(others) > 1 else run
        units = others if len(others) > 1 else [int(number) for number in np.unique(run[train])]
        if len(units) > 1:
            inner = tuple(
                (np.flatnonzero(away(test | (unit == number)) & train), np.flatnonzero((unit == number) & train))
                for number in units
            )
        else:
            inner = block_folds(np.flatnonzero(train), run, tr, n_blocks=n_blocks, purge_trs=purge_trs)
        if min(len(rows) for pair in inner for rows in pair) == 0:
            raise EncodingError("an inner fold has no row to train on", hint="use more runs, or a smaller --purge-trs")
        numbers = np.unique(part[test])
        tests = tuple(np.flatnonzero(test & (part == number)) for number in numbers)
        folds.append(OuterFold(np.flatnonzero(train), tests, inner))
        parts += [names[number] for number in numbers]
    return Layout(tuple(folds), tuple(parts))


def near(held: NDArray[np.bool_], run: NDArray[np.int64], tr: NDArray[np.int64], purge_trs: int) -> NDArray[np.bool_]:
    """Mark rows within `purge_trs` of a held-out row of the same run, held-out rows among them."""
    if purge_trs == 0:
        return held.copy()
    close = np.zeros(len(held), bool)
    for number in np.unique(run[held]):
        mine = np.flatnonzero(run == number)
        out = np.sort(tr[mine[held[mine]]])
        after = np.searchsorted(out, tr[mine])
        behind = np.abs(tr[mine] - out[np.maximum(after - 1, 0)])
        ahead = np.abs(out[np.minimum(after, len(out) - 1)] - tr[mine])
        close[mine] = np.minimum(behind, ahead) <= purge_trs
    return close


def block_folds(
    rows: Rows, run: NDArray[np.int64], tr: NDArray[np.int64], *, n_blocks: int, purge_trs: int
) -> tuple[tuple[Rows, Rows], ...]:
    """Cut rows into contiguous blocks, each validated once with its neighbourhood purged.

    Parameters
    ----------
    rows
        Rows to cut.
    run, tr : (n,) int64
        Of all rows.

    Raises
    ------
    EncodingError
        If a block leaves less than half of the rows to train on.
    """
    folds = []
    for block in np.array_split(rows, n_blocks):
        if len(block) < 3:
            raise EncodingError(f"{len(rows)} TRs cannot be cut into {n_blocks} inner folds")
        held = np.zeros(len(run), bool)
        held[block] = True
        left = rows[~near(held, run, tr, purge_trs)[rows]]
        if len(left) < len(rows) / 2:
            raise EncodingError(
                f"purging {purge_trs} TRs around an inner fold of {len(block)} leaves {len(left)} of {len(rows)}",
                hint="use a smaller --purge-trs, or more runs",
            )
        folds.append((left, block))
    return tuple(folds)


def cells_of(row_sets: Sequence[Rows], n_rows: int) -> NDArray[np.int64]:
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
