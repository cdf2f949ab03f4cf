"""A block of voxels of several runs, the next ones read while one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidbrain.storage.objects import N_THREADS

_AHEAD_BYTES = 64_000_000


class ReadsRuns(Protocol):
    """What `read_runs` needs of a store."""

    def read(self, run: str, voxels: slice, /) -> NDArray[np.float32]:
        """Neighbouring voxels of a run, (n_trs, n_voxels)."""


def read_runs(store: ReadsRuns, runs: Sequence[str], voxels: slice) -> Iterator[NDArray[np.float32]]:
    """Read the same block of neighbouring voxels of several runs, the next ones while one is worked on.

    Parameters
    ----------
    store
        A BOLD store.
    runs
        Labels.
    voxels
        Which ones.

    Yields
    ------
    (n_trs, n_voxels) float32
        Of each run, in the order of `runs`. Besides the one that is given, about 64 MB (at least one run) are held.
    """
    if not runs:
        return
    first = store.read(runs[0], voxels)
    n_ahead = max(1, min(N_THREADS, _AHEAD_BYTES // max(1, first.nbytes)))
    with ThreadPoolExecutor(n_ahead) as pool:
        begun: deque[Future[NDArray[np.float32]]] = deque()
        try:
            begun.extend(pool.submit(store.read, run, voxels) for run in runs[1 : 1 + n_ahead])
            yield first
            for run in runs[1 + n_ahead :]:
                ready = begun.popleft()
                begun.append(pool.submit(store.read, run, voxels))
                yield ready.result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
