"""Memory of batches, used again: a fresh page costs more than a frame that is decoded into it."""

from __future__ import annotations

import ctypes
import threading
import weakref

import numpy as np
from numpy.typing import NDArray

KEPT = 8
"""Free buffers that are kept for the next batches."""


class Buffers:
    """Gives arrays of one shape, and takes their memory back when nobody holds them or a view of them any more.

    Parameters
    ----------
    shape
        Of an item, uint8.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._item_bytes = shape, int(np.prod(shape))
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, n: int) -> NDArray[np.uint8]:
        """Return an array (n, *shape) uint8 of anything."""
        n_bytes = n * self._item_bytes
        with self._lock:
            fitting = [i for i, held in enumerate(self._free) if n_bytes <= held.nbytes <= 2 * n_bytes]
            memory = self._free.pop(fitting[-1]) if fitting else None
        if memory is None:
            memory = np.empty(n_bytes, np.uint8)
        if not n_bytes:
            return memory.reshape(n, *self._shape)
        # Arrays and their slices, and tensors made of them, keep this object alive; its end is the memory's return.
        owner = (ctypes.c_ubyte * n_bytes).from_buffer(memory)
        weakref.finalize(owner, self._give_back, memory).atexit = False
        return np.frombuffer(owner, np.uint8).reshape(n, *self._shape)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        # Called wherever the last reference goes, perhaps inside `take`: it must not wait for the lock.
        if len(self._free) < KEPT:
            self._free.append(memory)
