"""The order of an epoch: a pure function of (counts, seed, epoch, window). No torch, no disk.

Shards were already written in a permuted order, so a bounded shuffle is near to a full one: shards are permuted, clips
keep their place inside them, every place is jittered by up to half a window, and the places are sorted. A
window of at least the number of clips gives a full permutation; a smaller one lets a reader hold few shards open.
The global batch b is the slice ``[b G, (b + 1) G)``, and rank r of W takes the r-th of its W equal parts: the sequence
of global batches does not depend on the world, on workers, or on where a run was interrupted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ConfigError
from vidbrain.records import World

WINDOW = 65_536
"""Default reach of the shuffle, in clips: within 10 % of a full permutation's diversity on long shard lists."""


def epoch_order(
    clips_per_shard: NDArray[np.int64], *, seed: int, epoch: int, window: int = WINDOW
) -> NDArray[np.int64]:
    """Return the order in which an epoch visits its clips.

    Parameters
    ----------
    clips_per_shard : (n_shards,)
        Clips are numbered shard after shard.
    seed, epoch
        Key of the permutation.
    window
        Reach of the shuffle, in clips; 0 keeps the numbering.

    Returns
    -------
    (n_clips,) int64
        Every clip number exactly once.
    """
    total = int(clips_per_shard.sum())
    if window == 0:
        return np.arange(total)
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**63, epoch]))
    starts = np.concatenate([[0], np.cumsum(clips_per_shard)])
    shuffled = rng.permutation(len(clips_per_shard))
    clips = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shuffled])
    if window >= total:
        return rng.permutation(clips)
    places = np.arange(total) + rng.uniform(-window / 2, window / 2, total)
    return clips[np.argsort(places, kind="stable")]


def n_batches(n_clips: int, batch_size: int, *, drop_tail: bool) -> int:
    """Global batches in an epoch."""
    return n_clips // batch_size if drop_tail else -(-n_clips // batch_size)


def batch_of(order: NDArray[np.int64], batch: int, batch_size: int, world: World | None = None) -> NDArray[np.int64]:
    """Return this rank's part of global batch number `batch`.

    Raises
    ------
    ConfigError
        If the world's size does not divide the batch size.
    """
    world = world or World()
    check_world(batch_size, world)
    share = batch_size // world.size
    first = batch * batch_size + world.rank * share
    return order[first : min(first + share, (batch + 1) * batch_size)]


def check_world(batch_size: int, world: World) -> None:
    """Refuse a world that cannot share a batch evenly, and name those that can."""
    if batch_size % world.size:
        fitting = [str(n) for n in range(1, batch_size + 1) if batch_size % n == 0]
        raise ConfigError(
            f"a global batch of {batch_size} cannot be shared by {world.size} processes",
            hint=f"use {', '.join(fitting[:12])} processes, or another batch size",
        )
