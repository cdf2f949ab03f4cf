"""Shards -> batches of clips: read ahead by threads, counted where the trainer receives them, resumed exactly."""

from __future__ import annotations

import math
import uuid
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from vidbrain.cluster import available_cores
from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ResumeError, ShardError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import ClipSpec, StreamState, World, whole_number
from vidbrain.storage.cache import CACHE, CACHE_BYTES
from vidbrain.stream.batch import LISTENERS, Batch, ClipBatch
from vidbrain.stream.meter import Meter
from vidbrain.stream.opening import open_part
from vidbrain.stream.order import ORDER_VERSION, WINDOW, EpochOrder, Tail, check_world
from vidbrain.stream.position import Position
from vidbrain.stream.prefetch import SPARE, Prefetch, ThreadCount
from vidbrain.stream.quarantine import Quarantine
from vidbrain.stream.settings import (
    OnBad,
    Workers,
    check_device,
    check_flag,
    check_real,
    check_workers,
    check_world_given,
)
from vidbrain.stream.source import ClipSource, Source
from vidbrain.stream.state import check_state, read_state

AnyBatch = TypeVar("AnyBatch", bound=Batch)

MEMORY_BYTES = 1 << 30
"""Of batches that are read ahead: fewer threads are tried where batches are large."""
MOST_THREADS = 32


class Loader(IterableDataset[AnyBatch]):
    """Iterates one epoch at a time; the next iteration is the next epoch.

    It may be given to a `torch.utils.data.DataLoader` with ``batch_size=None``: each worker process then reads every
    n-th batch, and the loop has to call `received`. Threads, which are the default, cost less.

    Parameters
    ----------
    source
        Where clips come from.
    batch_size
        Of the global batch, over all ranks.
    seed
        Key of the order.
    world
        This process among the training processes; by default what torchrun says of it.
    shuffle
        False keeps the order of the manifest.
    tail
        ``"drop"`` leaves out the clips that do not fill the last batch; ``"mask"`` fills it up with rows of index -1
        and weight 0.
    workers
        Threads that read; ``"auto"`` finds out how many are fastest while it works. The batches do not depend on it.
    device
        Where batches go, one ahead of their use: their video or codes become tensors there. None leaves arrays.
    deadline_s
        Seconds without a byte or a batch after which a stalled source is an error.
    on_bad_clip
        ``"error"``, or ``"substitute"``: damaged clips are passed over as `Quarantine` says, and listed in the state;
        what stands in for one may come twice in an epoch, except with ``tail="mask"``.
    bad_share
        With ``"substitute"``, the largest share of bad clips.
    progress
        Hears of every batch.

    Raises
    ------
    ConfigError
        If a setting is none, or the world's size does not divide the batch size.
    ShardError
        If there are too few clips for a batch.
    """

    def __init__(
        self,
        source: Source[AnyBatch],
        *,
        batch_size: int,
        seed: int = 0,
        world: World | None = None,
        shuffle: bool = True,
        tail: Tail = "drop",
        workers: Workers = "auto",
        device: str | torch.device | None = None,
        deadline_s: float = 300.0,
        on_bad_clip: OnBad = "error",
        bad_share: float = 0.01,
        progress: Progress = SILENT,
    ) -> None:
        if tail not in ("drop", "mask") or on_bad_clip not in ("error", "substitute"):
            raise ConfigError("tail is 'drop' or 'mask', on_bad_clip is 'error' or 'substitute'", where="tail")
        self._source, self._tail, self._progress = source, tail, progress
        self._seed, self._batch_size = whole_number(seed, "seed"), whole_number(batch_size, "batch_size")
        self._world, self._workers = check_world_given(world), check_workers(workers)
        check_world(self._batch_size, self._world)
        self._shuffle, self._device = check_flag(shuffle, "shuffle"), check_device(device)
        self._deadline_s = check_real(deadline_s, "deadline_s", least=0.001, most=math.inf)
        most = check_real(bad_share, "bad_share", least=0.0, most=1.0)
        self._quarantine = Quarantine(source, tail=tail, most=most) if on_bad_clip == "substitute" else None
        first = self.order(0)
        self.n_clips, self._n_batches, self._n_streams = first.n_clips, first.n_batches, first.n_streams
        if self._n_batches == 0:
            raise ShardError(f"{self.n_clips} clips do not fill a batch of {batch_size}", hint="use smaller batches")
        self._position, self._meter = Position(self._n_batches), Meter()
        self._threads = ThreadCount(self._most_threads, settled=self._workers != "auto")
        # Batches that come through worker processes say so to the position.
        self._name = uuid.uuid4().hex
        LISTENERS[self._name] = self._position

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._n_batches

    @property
    def memory_bytes(self) -> int:
        """Most memory that streaming takes at a time, beside the index.

        That are batches read ahead and in use, what threads take to read them, the order, and what the source keeps.
        """
        share = self._batch_size // self._world.size
        # In use: the batch that the trainer holds, and the one before it, until its name is bound to the new one.
        n_threads = self._most_threads
        n_batches = n_threads + SPARE + 2
        pinned = n_threads if self._device is not None and self._device.type == "cuda" else 0
        batches = (n_batches + pinned) * share * self._source.clip_bytes
        reading = n_threads * self._source.reading_bytes(share)
        return batches + reading + self.order(0).held_bytes + self._source.held_bytes

    @property
    def epoch(self) -> int:
        """The one that the trainer is in."""
        return self._position.epoch

    @property
    def bad_clips(self) -> dict[int, str]:
        """Clips that were passed over, and what is wrong with each."""
        return self._quarantine.clips if self._quarantine else {}

    def __iter__(self) -> Iterator[AnyBatch]:
        worker = get_worker_info()
        self._source.end()
        name = self._position.begin(counts=worker is None)
        begun = self._position.batches
        if worker is None:
            return self._iterate(range(begun, self._n_batches), name, counts=True)
        # Whole batches by turns: the DataLoader puts them together again in order.
        return self._iterate(range(begun + worker.id, self._n_batches, worker.num_workers), name, counts=False)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes say nothing.
        return {**self.__dict__, "_progress": SILENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        LISTENERS.setdefault(self._name, self._position)  # in a process that was spawned, nobody else hears of batches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files, threads and entries of the cache. Iterators end; a new one opens what it needs again."""
        self._position.supersede()
        self._source.close()

    def _iterate(self, numbers: range, name: int, *, counts: bool) -> Generator[AnyBatch, None, None]:
        self._position.check_current(name)
        epoch, order = self._position.epoch, self.order(self._position.epoch)
        progress = self._progress if counts else SILENT
        share, source = self._batch_size // self._world.size, self._source
        if source.fetches_ahead and len(numbers):
            source.begin(order.ahead(numbers[0], self._world, step=numbers.step))

        def read(job: tuple[int, Any]) -> AnyBatch:
            number, clips = job
            if self._quarantine is None:
                batch = source.read(clips[clips >= 0])
                batch = batch if len(batch.index) == len(clips) else batch.padded(clips)
            else:
                batch = self._quarantine.read(clips, number, self._world.rank * share, lambda: self.order(epoch))
            batch = replace(batch, seed=self._seed, epoch=epoch, number=number, loader=self._name)
            return batch if self._device is None else batch.to(self._device)

        prefetch = Prefetch(
            order.batches(numbers.start, self._world, step=numbers.step),
            read,
            count=self._threads,
            deadline_s=self._deadline_s,
            moved=lambda: source.stats()["n_bytes"],
        )
        batches = self._meter.watch(prefetch.results())
        progress.start("stream", self._n_batches, "batches", done=numbers.start)
        try:
            for batch in batches:
                self._position.check_current(name)
                # Counted here, where the trainer receives it: what was only read ahead is read again after a resume.
                if counts:
                    self._position.count(epoch, batch.number)
                self._meter.count(int((batch.index >= 0).sum()))
                if progress is not SILENT:
                    progress.advance(1, **self._shown())
                yield batch
        finally:
            batches.close()
            if self._position.is_current(name):
                source.end()
            progress.finish()
        if not counts:
            self._position.finish()

    def received(self, batch: Batch) -> None:
        """Hear that the trainer has a batch: to be called for each of a DataLoader with worker processes, in order.

        Without worker processes the loader knows.

        Raises
        ------
        ResumeError
            If another batch is due: worker processes that outlive a pass do not hear where the loader stands.
        """
        self._position.received(batch.epoch, batch.number)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain values; see `StreamState`.

        Raises
        ------
        ResumeError
            If batches came through worker processes and `received` was never called.
        """
        if not self._position.is_known:
            raise ResumeError(
                "batches came through worker processes, and the loader was not told which of them the trainer received",
                hint="call loader.received(batch) in the loop",
            )
        return to_mapping(self._state(self._position.epoch, self._position.batches, tuple(self.bad_clips)))

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on where a state was taken; the world, the threads and the cache may differ. Iterators end.

        Raises
        ------
        ResumeError
            If the state belongs to another version of the order, data set, clip, seed, batch size, shuffle or tail, or
            is none.
        """
        state = read_state(values)
        here = self._state(state.epoch, state.batches, state.quarantine)
        check_state(state, here, n_batches=self._n_batches, n_clips=self.n_clips)
        self._source.end()
        if self._quarantine:
            self._quarantine.add(state.quarantine)
        self._position.load(state.epoch, state.batches)

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch: pure, and apart from where the loader stands."""
        return EpochOrder(
            self._source.clips_per_shard,
            batch_size=self._batch_size,
            seed=self._seed,
            epoch=epoch,
            window=WINDOW if self._shuffle else 0,
            tail=self._tail,
        )

    def stats(self) -> dict[str, float]:
        """Rates and counts since the loader was made.

        Returns
        -------
        dict
            ``clips_per_s``, ``mb_per_s`` (stored bytes), ``stall_share`` (of the time, spent waiting for a batch);
            ``threads`` that read; ``bad_clips`` passed over; and the source's ``n_bytes``, ``n_requests``,
            ``cache_hits``, ``retries``.
        """
        counts = self._source.stats()
        rates = self._meter.rates(counts["n_bytes"])
        return {**rates, "threads": self._threads.n, "bad_clips": len(self.bad_clips), **counts}

    def _shown(self) -> dict[str, float | str]:
        stats = self.stats()
        shown: dict[str, float | str] = {
            "clips/s": round(stats["clips_per_s"]),
            "MB/s": stats["mb_per_s"],
            "stall": f"{stats['stall_share']:.1%}",
            "cache hits": int(stats["cache_hits"]),
            "retries": int(stats["retries"]),
        }
        return shown | ({"bad clips": int(stats["bad_clips"])} if stats["bad_clips"] else {})

    @property
    def _most_threads(self) -> int:
        if self._workers != "auto":
            return int(self._workers)
        held = self._batch_size // self._world.size * self._source.clip_bytes
        return max(1, min(MOST_THREADS, 4 * available_cores(), MEMORY_BYTES // held - SPARE - 2))

    def _state(self, epoch: int, batches: int, quarantine: tuple[int, ...]) -> StreamState:
        return StreamState(
            dataset=self._source.dataset,
            clip=self._source.clip,
            seed=self._seed,
            epoch=epoch,
            batch_size=self._batch_size,
            streams=self._n_streams,
            shuffle=self._shuffle,
            tail=self._tail,
            batches=batches,
            quarantine=quarantine,
            order_version=ORDER_VERSION,
        )


def stream(
    root: str | Path,
    *,
    subset: str | Path | int | None = None,
    clip: ClipSpec = ClipSpec(),  # noqa: B008 -- frozen
    batch_size: int = 32,
    seed: int = 0,
    split: Literal["train", "val"] | None = None,
    cache: str | Path = CACHE,
    cache_bytes: int | str = CACHE_BYTES,
    world: World | None = None,
    shuffle: bool = True,
    tail: Tail = "drop",
    workers: Workers = "auto",
    device: str | torch.device | None = None,
    deadline_s: float = 300.0,
    on_bad_clip: OnBad = "error",
    bad_share: float = 0.01,
    progress: Progress = SILENT,
) -> Loader[ClipBatch]:
    """Stream batches of clips from a data set of shards.

    Parameters
    ----------
    root
        The data set: a folder, a URL, or the file of a subset.
    subset
        Frames of the prefix to take, for instance ``"100k"``, or the file of a subset; None takes all.
    clip
        Frames, step and stride of a clip.
    batch_size
        Clips in a global batch.
    seed
        Key of the order.
    split
        ``"train"``, ``"val"`` or None for all recordings.
    cache, cache_bytes
        Folder and limit of what is kept of shards at a URL; processes of a machine share it.
    world, shuffle, tail, workers, device, deadline_s, on_bad_clip, bad_share, progress
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
    return Loader(
        ClipSource(open_part(root, subset), clip, split, cache=cache, cache_bytes=cache_bytes),
        batch_size=batch_size,
        seed=seed,
        world=world,
        shuffle=shuffle,
        tail=tail,
        workers=workers,
        device=device,
        deadline_s=deadline_s,
        on_bad_clip=on_bad_clip,
        bad_share=bad_share,
        progress=progress,
    )
