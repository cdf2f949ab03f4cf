"""Shards -> batches of clips: prefetched by a thread, counted where the trainer receives them, resumed exactly."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from vidbrain.config import fingerprint, from_mapping, to_mapping
from vidbrain.errors import ResumeError, ShardError
from vidbrain.records import ClipSpec, StreamState, World
from vidbrain.stream.order import WINDOW, batch_of, check_world, epoch_order, n_batches
from vidbrain.stream.source import ClipBatch, ClipSource, Source

Batch = TypeVar("Batch")
Tail = Literal["drop", "keep"]

PREFETCH = 4
"""Batches read ahead."""


class Loader(Generic[Batch]):
    """Iterates one epoch at a time; the next iteration is the next epoch.

    Parameters
    ----------
    source
        Where clips come from.
    batch_size
        Of the global batch, over all ranks.
    seed
        Key of the order.
    world
        This process among the training processes.
    shuffle
        False keeps the order of the manifest.
    tail
        ``"drop"`` leaves out the clips that do not fill the last batch; ``"keep"`` gives a shorter last batch.
    """

    def __init__(
        self,
        source: Source[Batch],
        *,
        batch_size: int,
        seed: int = 0,
        world: World | None = None,
        shuffle: bool = True,
        tail: Tail = "drop",
    ) -> None:
        self._source, self._seed, self._world = source, seed, world or World()
        self._batch_size, self._window = batch_size, WINDOW if shuffle else 0
        check_world(batch_size, self._world)
        self.n_clips = int(source.clips_per_shard.sum())
        self._n_batches = n_batches(self.n_clips, batch_size, drop_tail=tail == "drop")
        if self._n_batches == 0:
            raise ShardError(f"{self.n_clips} clips do not fill a batch of {batch_size}", hint="use smaller batches")
        self.epoch = 0
        self._received = 0
        self._clips_seen, self._elapsed_s, self._stalled_s = 0, 0.0, 0.0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._n_batches

    def __iter__(self) -> Iterator[Batch]:
        if self._received >= self._n_batches:
            self.epoch, self._received = self.epoch + 1, 0
        order = epoch_order(self._source.clips_per_shard, seed=self._seed, epoch=self.epoch, window=self._window)
        first = self._received

        def produce() -> Iterator[tuple[int, Batch]]:
            for number in range(first, self._n_batches):
                clips = batch_of(order, number, self._batch_size, self._world)
                yield len(clips), self._source.read(clips)

        asked = time.perf_counter()
        for n_clips, batch in _ahead(produce, PREFETCH):
            received = time.perf_counter()
            self._stalled_s += received - asked
            self._elapsed_s += received - asked
            # Counted here, where the trainer receives it: what was only prefetched is read again after a resume.
            self._received += 1
            self._clips_seen += n_clips
            yield batch
            asked = time.perf_counter()
            self._elapsed_s += asked - received

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain values; see `StreamState`."""
        state = StreamState(
            self._source.dataset, self._source.clip, self._seed, self.epoch, self._batch_size, self._received
        )
        return to_mapping(state)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on where a state was taken; the world may differ.

        Raises
        ------
        ResumeError
            If the state belongs to another data set, clip, seed or batch size.
        """
        state = from_mapping(StreamState, values, "stream state")
        here = StreamState(
            self._source.dataset, self._source.clip, self._seed, state.epoch, self._batch_size, state.batches
        )
        if state != here:
            old, new = to_mapping(state), to_mapping(here)
            differing = [
                f"{k}: state {old[k]}, here {new[k]}" for k in old if fingerprint(old[k]) != fingerprint(new[k])
            ]
            raise ResumeError(
                f"the stream state belongs to another stream ({'; '.join(differing)})",
                hint="point at the old data and settings, or start afresh in another folder",
            )
        self.epoch, self._received = state.epoch, state.batches

    def stats(self) -> dict[str, float]:
        """Rates since the loader was made: clips/s and MB/s of stored bytes, and the share of time spent waiting."""
        if not self._elapsed_s:
            return {"clips_per_s": 0.0, "mb_per_s": 0.0, "stall_share": 0.0}
        return {
            "clips_per_s": self._clips_seen / self._elapsed_s,
            "mb_per_s": self._source.stats()["n_bytes"] / 1e6 / self._elapsed_s,
            "stall_share": self._stalled_s / self._elapsed_s,
        }


def _ahead(produce: Callable[[], Iterator[Any]], depth: int) -> Iterator[Any]:
    """Run a generator in a thread, `depth` items ahead; its errors reach the consumer, and leaving early stops it."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[str, Any]) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in produce():
                if not put(("item", item)):
                    return
        except BaseException as error:
            put(("error", error))
        else:
            put(("end", None))

    thread = threading.Thread(target=work, name="vidbrain-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


def stream(
    root: str | Path,
    *,
    clip: ClipSpec = ClipSpec(),  # noqa: B008 -- frozen
    batch_size: int = 32,
    seed: int = 0,
    split: Literal["train", "val"] | None = None,
    world: World | None = None,
    shuffle: bool = True,
    tail: Tail = "drop",
) -> Loader[ClipBatch]:
    """Stream batches of clips from a data set of shards.

    Parameters
    ----------
    root
        Folder of the data set.
    clip
        Frames, step and stride of a clip.
    batch_size
        Clips in a global batch.
    seed
        Key of the order.
    split
        ``"train"``, ``"val"`` or None for all recordings.
    world
        This process among the training processes.
    shuffle, tail
        See `Loader`.

    Raises
    ------
    StorageError, ShardError, ConfigError
        If the data set is unfinished or damaged, or cannot give such clips or batches.

    Examples
    --------
    >>> for batch in stream("shards/demo/data", split="train"):  # doctest: +SKIP
    ...     batch.video.shape
    (32, 16, 64, 64, 3)
    """
    source = ClipSource(root, clip, split)
    return Loader(source, batch_size=batch_size, seed=seed, world=world, shuffle=shuffle, tail=tail)
