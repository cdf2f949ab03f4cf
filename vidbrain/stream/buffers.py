"""Memory of batches, used again: a fresh page costs more than a frame that is decoded into it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref

import numpy as np
from numpy.typing import NDArray

KEPT = 8
"""Free buffers that are kept for the next batches."""


def fresh_pages(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeros (n_bytes,) uint8 on pages of their own, huge ones where the system has them.

    From the allocator, memory that is given back stays with the thread that gave it; and the first touch of small pages
    takes as long as what is decoded into them.
    """
    pages = mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


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

    def take(self, n: int) -> NDArray[np.uint8]:
        """Return an array (n, *shape) uint8 of anything."""
        n_bytes = n * self._item_bytes
        memory = np.empty(0, np.uint8)
        while memory.nbytes < n_bytes and self._free:
            # One step of the interpreter each, here and below: threads, and finalizers inside them, need no lock.
            with contextlib.suppress(IndexError):
                memory = self._free.pop()
        if memory.nbytes < n_bytes:
            memory = fresh_pages(n_bytes)
        if not n_bytes:
            return np.empty((0, *self._shape), np.uint8)
        # Arrays and their slices, and tensors made of them, keep this object alive; its end is the memory's return.
        owner = (ctypes.c_ubyte * n_bytes).from_buffer(memory.data)
        weakref.finalize(owner, self._give_back, memory).atexit = False
        return np.frombuffer(memoryview(owner), np.uint8).reshape(n, *self._shape)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if len(self._free) < KEPT:
            self._free.append(memory)

    def __reduce__(self) -> tuple[type[Buffers], tuple[tuple[int, ...]]]:
        # Memory stays in its process.
        return Buffers, (self._shape,)
