import time

import numpy as np
import pytest

from vidbrain.bold.ahead import read_runs
from vidbrain.errors import StorageError


def test_runs_are_read_ahead_in_order_and_an_error_is_not_lost():
    begun = []

    class Slow:
        def read(self, run, voxels, /):
            begun.append(run)
            time.sleep(0.002 * (7 - int(run)))
            if run == "5":
                raise StorageError("lost")
            return np.full((10, voxels.stop - voxels.start), int(run), np.float32)

    for n in range(6):
        found = list(read_runs(Slow(), [str(run) for run in range(min(n, 5))], slice(4, 9)))
        assert [block[0, 0] for block in found] == list(range(min(n, 5)))
        assert all(block.shape == (10, 5) for block in found)
    with pytest.raises(StorageError, match="lost"):
        list(read_runs(Slow(), [str(run) for run in range(7)], slice(4, 9)))
    begun.clear()
    large = read_runs(Slow(), [str(run) for run in range(5)], slice(0, 2_000_000))
    next(large)
    while len(begun) < 2:
        time.sleep(0.005)
    time.sleep(0.05)
    assert begun == ["0", "1"]
    large.close()
