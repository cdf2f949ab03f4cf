"""Numbers in the open: how fast batches come, and how long the trainer waits for them."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")


class Meter:
    """Adds up clips, time, and the part of it that was spent waiting, from the first batch asked for on."""

    def __init__(self) -> None:
        self._clips, self._elapsed_s, self._stalled_s = 0, 0.0, 0.0

    def watch(self, results: Generator[tuple[Result, float], None, None]) -> Generator[Result, None, None]:
        """Pass results on, counting the waits for them and the time between."""
        try:
            for result, waited_s in results:
                self._stalled_s += waited_s
                self._elapsed_s += waited_s
                given = time.perf_counter()
                yield result
                self._elapsed_s += time.perf_counter() - given
        finally:
            results.close()

    def count(self, n_clips: int) -> None:
        """Hear that the trainer received clips."""
        self._clips += n_clips

    def rates(self, n_bytes: float) -> dict[str, float]:
        """Clips/s, MB/s of stored bytes, and the share of time spent waiting; zeros before the first batch."""
        if not self._elapsed_s:
            return {"clips_per_s": 0.0, "mb_per_s": 0.0, "stall_share": 0.0}
        return {
            "clips_per_s": self._clips / self._elapsed_s,
            "mb_per_s": n_bytes / 1e6 / self._elapsed_s,
            "stall_share": self._stalled_s / self._elapsed_s,
        }
