"""Clips that cannot be read: found one by one, passed over by rule, listed, and too many of them refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ShardError
from vidbrain.stream.batch import Batch
from vidbrain.stream.layout import VERIFY
from vidbrain.stream.order import EpochOrder, Tail
from vidbrain.stream.source import Source

AnyBatch = TypeVar("AnyBatch", bound=Batch)

FEWEST = 1_000
"""Clips that a share of bad ones is at least counted of."""


class Quarantine(Generic[AnyBatch]):
    """Reads batches of which some clips are bad.

    Where the tail of an epoch is masked no clip may come twice, so a bad one is masked too. Otherwise the next good
    clip of its stream takes its place. Both depend on the order and on which clips are bad alone, not on the world,
    the threads or what was found before.

    Parameters
    ----------
    source
        Where clips come from.
    tail
        Of the order.
    most
        Largest share of bad clips among those read by this object.
    """

    def __init__(self, source: Source[AnyBatch], *, tail: Tail, most: float) -> None:
        self._source, self._tail, self._most = source, tail, most
        self._lock = threading.Lock()
        self._bad: dict[int, str] = {}
        self._n_listed, self._n_read = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}  # a lock belongs to its process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_lock": threading.Lock()}

    @property
    def clips(self) -> dict[int, str]:
        """Bad clips that were met, ascending, and what is wrong with each."""
        with self._lock:
            return dict(sorted(self._bad.items()))

    def add(self, clips: Iterable[int]) -> None:
        """Take over clips that an earlier run found; they are not counted among those that this one reads."""
        with self._lock:
            listed = {clip: "listed in the state" for clip in clips if clip not in self._bad}
            self._bad |= listed
            self._n_listed += len(listed)

    def read(self, clips: NDArray[np.int64], number: int, first_slot: int, order: Callable[[], EpochOrder]) -> AnyBatch:
        """Read this process's part of a global batch.

        Parameters
        ----------
        clips : (n,) int64
            By the order; -1 where masked.
        number
            Global batch.
        first_slot
            Place of the first clip in the global batch.
        order
            Makes the order of the epoch, where it is needed.

        Raises
        ------
        ShardError
            If too many clips are bad.
        """
        with self._lock:
            self._n_read += int((clips >= 0).sum())
        while True:
            chosen = self._passing_over(clips, number, first_slot, order)
            wanted = chosen[chosen >= 0]
            try:
                batch = self._source.read(wanted)
            except ShardError as error:
                if not self._find(wanted):
                    raise  # it is not one of the clips
                self._refuse_too_many(error)
                continue
            return batch if len(wanted) == len(chosen) else batch.padded(chosen)

    def _passing_over(
        self, clips: NDArray[np.int64], number: int, first_slot: int, order: Callable[[], EpochOrder]
    ) -> NDArray[np.int64]:
        with self._lock:
            bad = set(self._bad)
        slots = [i for i, clip in enumerate(clips.tolist()) if clip in bad]
        if not slots:
            return clips
        chosen = clips.copy()
        chosen[slots] = -1
        if self._tail == "mask":
            return chosen
        made = order()
        for i in slots:
            chosen[i] = next((clip for clip in made.substitutes(number, first_slot + i) if clip not in bad), -1)
            if chosen[i] < 0:
                raise ShardError("no clip of a stream can be read", hint=VERIFY)
        return chosen

    def _find(self, clips: NDArray[np.int64]) -> bool:
        """Read clips one by one; True if any is bad."""
        found = {}
        for clip in clips:
            try:
                self._source.read(np.array([clip]))
            except ShardError as error:
                found[int(clip)] = str(error)
        with self._lock:
            self._bad.update(found)
        return bool(found)

    def _refuse_too_many(self, error: ShardError) -> None:
        with self._lock:
            n_bad, n_read = len(self._bad) - self._n_listed, self._n_read
        if n_bad > self._most * max(n_read, FEWEST):
            raise ShardError(
                f"{n_bad} clips of {n_read} cannot be read, more than a share of {self._most:g} "
                f"(counted of {FEWEST} at least); the last: {error.message}",
                where=error.where,
                likely=error.likely,
                hint=error.hint,
            ) from error
