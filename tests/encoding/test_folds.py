"""Which rows train and which test."""

import numpy as np
import pytest

from vidbrain.encoding.folds import block_folds, cells_of, nested_folds
from vidbrain.encoding.plan import downdate, gather_sets
from vidbrain.errors import EncodingError


def rows_of(lengths):
    return np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(n) for n in lengths])


def test_nested_leave_one_run_out():
    run, tr = rows_of((20, 30, 25, 15))
    folds = nested_folds(run, tr, n_blocks=5, purge_trs=10)
    assert [fold.run for fold in folds] == [0, 1, 2, 3]
    for fold in folds:
        assert set(run[fold.test]) == {fold.run}
        assert set(run[fold.train]) == {0, 1, 2, 3} - {fold.run}
        held = set()
        for train, validation in fold.inner:
            (other,) = set(run[validation])
            held.add(other)
            assert set(run[train]) == {0, 1, 2, 3} - {fold.run, other}
            assert len(validation) == np.sum(run == other)
        assert held == {0, 1, 2, 3} - {fold.run}
    assert len(gather_sets(folds)) == 6 + 4  # unordered pairs are shared


def test_two_runs_use_purged_blocks():
    run, tr = rows_of((100, 120))
    for fold in nested_folds(run, tr, n_blocks=4, purge_trs=6):
        assert sorted(np.concatenate([v for _, v in fold.inner])) == sorted(fold.train)
        for train, validation in fold.inner:
            assert set(train) < set(fold.train)
            distance = np.abs(tr[train][:, None] - tr[validation])
            assert distance.min() == 7


def test_purge_counts_trs_not_rows():
    tr = np.concatenate([np.arange(20), np.arange(50, 80)])  # masked in between
    train, validation = block_folds(np.arange(50), tr, n_blocks=5, purge_trs=5)[1]
    assert tr[validation].tolist() == list(range(10, 20))
    assert tr[train].tolist() == [*range(5), *range(50, 80)]


def test_blocks_that_leave_too_little_are_refused():
    with pytest.raises(EncodingError, match="leaves"):
        block_folds(np.arange(20), np.arange(20), n_blocks=2, purge_trs=8)
    with pytest.raises(EncodingError, match="cannot be cut"):
        block_folds(np.arange(20), np.arange(20), n_blocks=10, purge_trs=0)


def test_cells_are_the_fewest_whose_unions_give_every_set():
    run, tr = rows_of((40, 50))
    folds = nested_folds(run, tr, n_blocks=4, purge_trs=3)
    sets = [rows for task in gather_sets(folds) for rows in (task.rows, *(r for _, r in task.validations))]
    cell = cells_of(sets, len(run))
    values = np.random.default_rng(0).standard_normal(len(run))
    sums = np.array([values[cell == c].sum() for c in range(cell.max() + 1)])
    signatures = {tuple(bool(row in set(s)) for s in map(set, sets)) for row in range(len(run))}
    assert len(sums) == len(signatures)
    for rows in sets:
        add, subtract = downdate(cell, rows)
        total = sums[add].sum() if add else sums.sum() - sums[subtract].sum()
        assert total == pytest.approx(values[rows].sum(), abs=1e-12)


def test_downdate_adds_where_the_rest_dominates():
    cell = np.repeat([0, 1, 2, 3], [90, 4, 3, 3])
    add, subtract = downdate(cell, np.flatnonzero(cell != 0))
    assert (add, subtract) == ([1, 2, 3], [])
    add, subtract = downdate(cell, np.flatnonzero(cell != 1))
    assert (add, subtract) == ([], [1])
