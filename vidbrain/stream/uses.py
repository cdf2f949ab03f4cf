"""When a process needs each shard, in clips from the start of what it announced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ShardUse:
    """The first and the last clip that lie in a shard."""

    first: int
    last: int


def uses_of(pieces: Iterable[NDArray[np.int64]]) -> dict[int, ShardUse]:
    """First and last use of each shard, from the shard of every clip, in order, piece after piece."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    n = 0
    for shards in pieces:
        found, begun = np.unique(shards, return_index=True)
        left = len(shards) - 1 - np.unique(shards[::-1], return_index=True)[1]
        for shard, a, b in zip(found.tolist(), begun.tolist(), left.tolist(), strict=True):
            first.setdefault(shard, n + a)
            last[shard] = n + b
        n += len(shards)
    return {shard: ShardUse(first[shard], last[shard]) for shard in first}
