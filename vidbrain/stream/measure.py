"""How fast a loader gives batches to somebody who does nothing with them."""

from __future__ import annotations

import resource
import time
from typing import Any

from vidbrain.stream.loader import Loader


def measure(loader: Loader[Any], n_batches: int, *, most_s: float = float("inf")) -> dict[str, float | None]:
    """Take batches, over as many epochs as that needs, and count.

    Parameters
    ----------
    loader
        Its position moves.
    n_batches
        How many to take.
    most_s
        Stop after so many seconds, though not before the second batch.

    Returns
    -------
    dict
        ``batches`` taken; ``first_batch_s``, the time to the first; ``clips_per_s`` and ``mb_per_s`` (stored bytes)
        from the first to the last, None where there is only one; ``rss_growth_bytes``, by how much the largest resident
        memory of the process grew, to be compared with `Loader.memory_bytes`; and the counts of `Loader.stats`.
    """
    began, rss_bytes = time.perf_counter(), _peak_rss_bytes()
    taken, clips, first_s, elapsed_s, bytes_before = 0, 0, 0.0, 0.0, 0.0
    while taken < n_batches and (taken < 2 or elapsed_s < most_s):
        batches = iter(loader)
        for batch in batches:
            taken += 1
            elapsed_s = time.perf_counter() - began
            if taken == 1:
                first_s, bytes_before = elapsed_s, loader.stats()["n_bytes"]
            else:
                clips += int((batch.index >= 0).sum())
            if taken == n_batches or (taken > 1 and elapsed_s > most_s):
                break
    stats = loader.stats()
    timed_s = elapsed_s - first_s if clips else None
    return {
        "batches": taken,
        "first_batch_s": first_s,
        "clips_per_s": clips / timed_s if timed_s else None,
        "mb_per_s": (stats["n_bytes"] - bytes_before) / 1e6 / timed_s if timed_s else None,
        "rss_growth_bytes": _peak_rss_bytes() - rss_bytes,
        **{name: stats[name] for name in ("threads", "n_bytes", "n_requests", "cache_hits", "retries", "bad_clips")},
    }


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
