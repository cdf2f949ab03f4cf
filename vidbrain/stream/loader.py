"""Shards -> batches of clips: read ahead by threads, counted where the trainer receives them, resumed exactly."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from vidbrain.cluster import available_cores
from vidbrain.config import fingerprint, from_mapping, to_mapping
from vidbrain.errors import ConfigError, ResumeError, ShardError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import ClipSpec, StreamState, World
from vidbrain.storage.cache import CACHE, CACHE_BYTES
from vidbrain.stream.batch import LISTENERS, Batch, ClipBatch
from vidbrain.stream.meter import Meter
from vidbrain.stream.opening import open_part
from vidbrain.stream.order import ORDER_VERSION, WINDOW, EpochOrder, Tail, check_world
from vidbrain.stream.prefetch import SPARE, Prefetch, ThreadCount
from vidbrain.stream.quarantine import Quarantine
from vidbrain.stream.source import ClipSource, Source

AnyBatch = TypeVar("AnyBatch", bound=Batch)
OnBad = Literal["error", "substitute"]
Workers = int | Literal["auto"]

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
        and weight 0. No clip comes twice.
    workers
        Threads that read; ``"auto"`` finds out how many are fastest while it works. The batches do not depend on it.
    device
        Where batches go, one ahead of their use: their video or codes become tensors there. None leaves arrays.
    deadline_s
        Seconds without a byte or a batch after which a stalled source is an error.
    on_bad_clip
        ``"error"``, or ``"substitute"``: damaged clips are passed over as `Quarantine` says, and listed in the state.
    bad_share
        With ``"substitute"``, the largest share of bad clips.
    progress
        Hears of every batch.

    Raises
    ------
    ConfigError
        If the world's size does not divide the batch size.
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
        if workers != "auto" and not (isinstance(workers, int) and workers >= 1):
            raise ConfigError(f"workers is 'auto' or at least 1, not {workers!r}", where="workers")
        if tail not in ("drop", "mask") or on_bad_clip not in ("error", "substitute"):
            raise ConfigError("tail is 'drop' or 'mask', on_bad_clip is 'error' or 'substitute'", where="tail")
        self._source, self._seed, self._world = source, seed, world or _torchrun_world()
        check_world(batch_size, self._world)
        self._batch_size, self._shuffle, self._tail, self._workers = batch_size, shuffle, tail, workers
        self._device = None if device is None else torch.device(device)
        self._deadline_s, self._progress = deadline_s, progress
        self._quarantine = Quarantine(source, tail=tail, most=bad_share) if on_bad_clip == "substitute" else None
        self.epoch = 0
        first = self.order(0)
        self.n_clips, self._n_batches, self._n_streams = first.n_clips, first.n_batches, first.n_streams
        self._order_bytes = first.held_bytes
        if self._n_batches == 0:
            raise ShardError(f"{self.n_clips} clips do not fill a batch of {batch_size}", hint="use smaller batches")
        self._received, self._meter = 0, Meter()
        self._threads = ThreadCount(self._most_threads, settled=workers != "auto")
        # What batches that came through worker processes say of themselves when they arrive.
        self._name, self._arrived, self._is_told = uuid.uuid4().hex, set[int](), False
        LISTENERS[self._name] = self

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
        return batches + reading + self._order_bytes + self._source.held_bytes

    @property
    def bad_clips(self) -> dict[int, str]:
        """Clips that were passed over, and what is wrong with each."""
        return self._quarantine.clips if self._quarantine else {}

    def __iter__(self) -> Iterator[AnyBatch]:
        worker = get_worker_info()
        if self._received + len(self._arrived) >= self._n_batches:
            self._go_to(self.epoch + 1, 0)
        if worker is None:
            yield from self._iterate(range(self._received, self._n_batches), counts=True)
            return
        # Whole batches by turns: the DataLoader puts them together again in order.
        yield from self._iterate(range(self._received + worker.id, self._n_batches, worker.num_workers), counts=False)
        self._received = self._n_batches

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes say nothing.
        return {**self.__dict__, "_progress": SILENT}

    def _iterate(self, numbers: range, *, counts: bool) -> Generator[AnyBatch, None, None]:
        epoch, order = self.epoch, self.order(self.epoch)
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
                # Counted here, where the trainer receives it: what was only read ahead is read again after a resume.
                if counts:
                    self._stand_after(batch)
                self._meter.count(int((batch.index >= 0).sum()))
                if progress is not SILENT:
                    progress.advance(1, **self._shown())
                yield batch
        finally:
            batches.close()
            progress.finish()

    def received(self, batch: Batch) -> None:
        """Hear that the trainer has a batch: to be called in a loop over a DataLoader with worker processes.

        Without worker processes the loader knows.
        """
        self._is_told = True
        self._arrived.clear()
        self._stand_after(batch)

    def arrival(self, epoch: int, number: int) -> None:
        """Hear that a batch came from a worker process; where nobody calls `received`, the last ends the epoch."""
        if self._is_told:
            return
        if epoch > self.epoch:
            self._go_to(epoch, 0)
        self._arrived.add(number)

    def _stand_after(self, batch: Batch) -> None:
        if batch.epoch != self.epoch:
            self._go_to(batch.epoch, 0)
        self._received = batch.number + 1

    def _go_to(self, epoch: int, received: int) -> None:
        self.epoch, self._received = epoch, received
        self._arrived.clear()

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain values; see `StreamState`.

        Raises
        ------
        ResumeError
            If batches came through worker processes and `received` was never called.
        """
        if self._arrived:
            raise ResumeError(
                "batches came through worker processes, and the loader was not told which of them the trainer received",
                hint="call loader.received(batch) in the loop",
            )
        return to_mapping(self._state(self.epoch, self._received, tuple(self.bad_clips)))

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on where a state was taken; the world, the threads and the cache may differ.

        Raises
        ------
        ResumeError
            If the state belongs to another version of the order, data set, clip, seed, batch size, shuffle or tail.
        """
        version = values.get("order_version", values.get("version"))
        if version != ORDER_VERSION:
            raise ResumeError(
                f"the stream state was made with version {version} of the order, this is version {ORDER_VERSION}",
                likely="another version of vidbrain wrote it; its batches would not be continued but mixed up",
                hint="go on with that version, or start afresh in another folder",
            )
        state = from_mapping(StreamState, values, "stream state")
        here = self._state(state.epoch, state.batches, state.quarantine)
        if state != here:
            old, new = to_mapping(state), to_mapping(here)
            differing = [
                f"{k}: state {old[k]}, here {new[k]}" for k in old if fingerprint(old[k]) != fingerprint(new[k])
            ]
            raise ResumeError(
                f"the stream state belongs to another stream ({'; '.join(differing)})",
                hint="point at the old data and settings, or start afresh in another folder",
            )
        if state.epoch < 0 or not 0 <= state.batches <= self._n_batches:
            raise ResumeError(f"the stream state stands at batch {state.batches} of {self._n_batches}")
        if self._quarantine:
            self._quarantine.add(state.quarantine)
        self._go_to(state.epoch, state.batches)

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


def _torchrun_world() -> World:
    try:
        return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        raise ConfigError("RANK and WORLD_SIZE in the environment are not numbers", hint="give world=World()") from None


def stream(
    root: str | Path,
    *,
    subset: str | Path | None = None,
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
