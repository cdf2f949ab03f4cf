import numpy as np
import pytest

from vidbrain.bold.forms.series import Rectangle
from vidbrain.bold.spool import Spool
from vidbrain.errors import BoldError

N_TRS, N_SOURCE = 23, 400


def source() -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, (N_TRS, N_SOURCE)).astype(">i2")


def by_time(values):
    for first in range(0, N_TRS, 5):
        yield Rectangle(first, 0, values[first : first + 5])


def by_columns(values):
    for first in range(0, N_SOURCE, 90):
        yield Rectangle(0, first, values[:, first : first + 90])


def by_tiles(values):
    for column in (0, 150):
        for row in range(0, N_TRS, 7):
            yield Rectangle(row, column, values[row : row + 7, column : 150 if column == 0 else None])


@pytest.mark.parametrize("held_bytes", [10**9, 0])
@pytest.mark.parametrize("order", [by_time, by_columns, by_tiles])
@pytest.mark.parametrize("width", [16, 64, 1000])
def test_parts_hold_all_time_of_the_chosen_columns(tmp_path, held_bytes, order, width):
    values = source()
    places = np.random.default_rng(1).permutation(N_SOURCE)[:130]
    with Spool(N_TRS, places, ">i2", width=width, folder=tmp_path, held_bytes=held_bytes) as spool:
        assert spool.is_held == (held_bytes > 0)
        for rectangle in order(values):
            spool.put(rectangle)
        parts = [part.copy() for part in spool.parts()]
    assert [part.shape[1] for part in parts[:-1]] == [width] * (len(parts) - 1)
    assert np.array_equal(np.concatenate(parts, axis=1), values[:, places])
    assert parts[0].dtype == np.dtype("=i2")
    assert list(tmp_path.iterdir()) == []


def test_a_series_that_is_not_covered_is_refused(tmp_path):
    with Spool(N_TRS, np.arange(9), ">i2", width=4, folder=tmp_path) as spool:
        spool.put(next(by_time(source())))
        with pytest.raises(BoldError, match="the source gave 45 of 207 values"):
            next(spool.parts())
