"""Which rows train and which test."""

import numpy as np
import pytest

from vidbrain.encoding.decompose import gather_sets
from vidbrain.encoding.folds import TEST, block_folds, cells_of, deal, lay_out, matching, near
from vidbrain.encoding.plan import downdate
from vidbrain.errors import EncodingError


def rows_of(lengths):
    return np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(n) for n in lengths])


def runs_left_out(lengths, *, n_blocks=5, purge_trs=10, fold=None):
    run, tr = rows_of(lengths)
    names = [f"run {n}" for n in range(len(lengths))]
    of_row = run if fold is None else np.asarray(fold)[run]
    return run, tr, lay_out(of_row, run, names, run, tr, n_blocks=n_blocks, purge_trs=purge_trs)


def test_nested_leave_one_run_out():
    run, _, layout = runs_left_out((20, 30, 25, 15))
    assert layout.parts == ("run 0", "run 1", "run 2", "run 3")
    assert [(fold, part) for fold, part, _ in layout.numbered()] == [(n, n) for n in range(4)]
    for number, fold in enumerate(layout.folds):
        (test,) = fold.tests
        assert set(run[test]) == {number}
        assert set(run[fold.train]) == {0, 1, 2, 3} - {number}
        held = set()
        for train, validation in fold.inner:
            (other,) = set(run[validation])
            held.add(other)
            assert set(run[train]) == {0, 1, 2, 3} - {number, other}
            assert len(validation) == np.sum(run == other)
        assert held == {0, 1, 2, 3} - {number}
    assert len(gather_sets(layout, "primal")) == 6 + 4  # unordered pairs are shared
    assert len(gather_sets(layout, "hat")) == 4  # an outer fold's own set serves its inner folds


def test_runs_of_one_fold_are_judged_one_by_one():
    run, _, layout = runs_left_out((20, 30, 25, 15, 22), fold=deal(np.arange(5), 2))
    assert [fold.train.tolist() for fold in layout.folds] == [
        np.flatnonzero(run >= 3).tolist(),
        np.flatnonzero(run < 3).tolist(),
    ]
    assert layout.parts == ("run 0", "run 1", "run 2", "run 3", "run 4")
    assert [len(rows) for _, _, rows in layout.numbered()] == [20, 30, 25, 15, 22]
    assert [set(run[validation]) for _, validation in layout.folds[1].inner] == [{0}, {1}, {2}]


def test_a_test_rule_trains_on_nothing_that_it_tests():
    runs = [f"sub-01_ses-{n:03d}_task-toy_run-1" for n in range(5)]
    fold = np.arange(5)
    fold[list(matching(runs, ["*ses-001*", "*ses-004*"]))] = TEST
    run, _, layout = runs_left_out((20, 30, 25, 15, 22), fold=deal(fold, 10))
    (only,) = layout.folds
    assert set(run[only.train]) == {0, 2, 3}
    assert layout.parts == ("run 1", "run 4")
    assert [set(run[validation]) for _, validation in only.inner] == [{0}, {2}, {3}]
    assert all(not set(run[train]) & {1, 4} for train, _ in only.inner)
    assert len(gather_sets(layout, "primal")) == 4


@pytest.mark.parametrize(("patterns", "what"), [(["*ses-9*"], "no run matches"), (["*"], "none is left to train")])
def test_impossible_rules_are_refused(patterns, what):
    with pytest.raises(EncodingError, match=what):
        matching(["sub-01_task-a_run-1", "sub-01_task-a_run-2"], patterns)


def test_dealing_is_even_and_keeps_neighbours():
    assert deal(np.array([0, 0, 1, 2, 3, 3, 4, TEST]), 2).tolist() == [0, 0, 0, 0, 1, 1, 1, TEST]
    assert deal(np.arange(3), 10).tolist() == [0, 1, 2]


def test_two_runs_use_purged_blocks():
    run, tr, layout = runs_left_out((100, 120), n_blocks=4, purge_trs=6)
    for fold in layout.folds:
        assert sorted(np.concatenate([v for _, v in fold.inner])) == sorted(fold.train)
        for train, validation in fold.inner:
            assert set(train) < set(fold.train)
            assert len(set(run[train])) == 1
            assert np.abs(tr[train][:, None] - tr[validation]).min() == 7


def test_one_run_is_refused():
    with pytest.raises(EncodingError, match="at least 2 runs"):
        runs_left_out((100,))


def test_held_out_stretches_within_runs_are_purged_on_both_sides():
    """Folds that cut runs, as levels or recordings do, against a loop over all pairs of rows."""
    run, tr = rows_of((60, 50))
    rng = np.random.default_rng(0)
    fold = np.concatenate([np.repeat([0, 1, 2], 20), np.repeat([2, 0, 1], [20, 20, 10])])
    keep = rng.random(len(run)) < 0.9  # TRs without video
    run, tr, fold = run[keep], tr[keep], fold[keep]
    layout = lay_out(fold, fold, ["a", "b", "c"], run, tr, n_blocks=5, purge_trs=4)
    for number, outer in enumerate(layout.folds):
        for train, held in [(outer.train, np.flatnonzero(fold == number)), *outer.inner]:
            gaps = [abs(tr[a] - tr[b]) for a in train for b in held if run[a] == run[b]]
            assert min(gaps) == 5
        for train, _ in outer.inner:
            assert not set(train) & set(np.flatnonzero(fold == number))
    held = fold == 1
    brute = [any(run[a] == run[b] and abs(tr[a] - tr[b]) <= 4 for b in np.flatnonzero(held)) for a in range(len(run))]
    assert near(held, run, tr, 4).tolist() == brute


def test_purge_counts_trs_not_rows():
    tr = np.concatenate([np.arange(20), np.arange(50, 80)])  # masked in between
    run = np.zeros(50, int)
    train, validation = block_folds(np.arange(50), run, tr, n_blocks=5, purge_trs=5)[1]
    assert tr[validation].tolist() == list(range(10, 20))
    assert tr[train].tolist() == [*range(5), *range(50, 80)]


def test_blocks_that_leave_too_little_are_refused():
    run, tr = np.zeros(20, int), np.arange(20)
    with pytest.raises(EncodingError, match="leaves"):
        block_folds(np.arange(20), run, tr, n_blocks=2, purge_trs=8)
    with pytest.raises(EncodingError, match="cannot be cut"):
        block_folds(np.arange(20), run, tr, n_blocks=10, purge_trs=0)


def test_cells_are_the_fewest_whose_unions_give_every_set():
    run, _, layout = runs_left_out((40, 50), n_blocks=4, purge_trs=3)
    sets = [rows for task in gather_sets(layout, "primal") for rows in (task.rows, *(r for _, r in task.validations))]
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
