"""Jobs -> results, made by threads ahead of their use and given in order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from vidbrain.errors import ResumeError, StorageError

Job = TypeVar("Job")
Result = TypeVar("Result")

SPARE = 2
"""Results that may wait beside those which threads are making."""
GAIN = 1.1
"""More threads stay if the rate grows by this factor."""
STALL = 0.02
"""Share of time spent waiting below which the consumer is the slower one."""
TRIAL_S = 0.25
"""Shortest time over which a rate is measured."""
HEAD_START_S = 0.03
"""How long the first thread works alone, unless it has a result before."""
PATIENCE_S = 5.0
"""How long threads may take to end what they are at, when the results are wanted no more."""


class ThreadCount:
    """Finds how many threads are fastest while they work: doubles their number as long as that helps.

    Parameters
    ----------
    most
        Never more than these.
    settled
        Whether it is to be `most` from the start.
    """

    def __init__(self, most: int, *, settled: bool = False) -> None:
        self.n, self._most, self._settled = most if settled else 1, most, settled
        self._before: float | None = None
        self._fresh = True
        self._clear()

    def report(self, seconds: float, stalled_s: float) -> int:
        """Hear that a result was taken, `seconds` after the one before, `stalled_s` of them waiting for it.

        Returns
        -------
        int
            Threads that there should be now.
        """
        if self._settled:
            return self.n
        self._results += 1
        self._seconds += seconds
        self._stalled_s += stalled_s
        if self._results < 4 * self.n or self._seconds < TRIAL_S:
            return self.n
        rate, stall = self._results / self._seconds, self._stalled_s / self._seconds
        self._clear()
        if self._fresh:  # results that were begun by fewer threads
            self._fresh = False
        elif self._before is not None and rate < GAIN * self._before:
            self.n, self._settled = self.n // 2, True
        elif stall > STALL and 2 * self.n <= self._most:
            self.n, self._before, self._fresh = 2 * self.n, rate, True
        else:
            # The consumer may slow down and speed up again: the next trial begins from here.
            self._before = None
        return self.n

    def _clear(self) -> None:
        self._results, self._seconds, self._stalled_s = 0, 0.0, 0.0


class Prefetch(Generic[Job, Result]):
    """Makes results in threads and gives them in the order of their jobs.

    At most one result a thread and `SPARE` more exist at a time that the consumer has not taken. An error reaches the
    consumer in its place in the order. Leaving early ends the threads. A child of this process that goes on with the
    results gets a `ResumeError`: it has no threads.

    Parameters
    ----------
    jobs
        What to do; asked by one thread at a time.
    make
        Does it; called by several threads.
    count
        Number of threads, perhaps still to be found.
    deadline_s
        How long nothing may happen.
    moved
        A number that changes while the source of the results is alive, though no result is ready.
    """

    def __init__(
        self,
        jobs: Iterator[Job],
        make: Callable[[Job], Result],
        *,
        count: ThreadCount,
        deadline_s: float,
        moved: Callable[[], float],
    ) -> None:
        self._jobs, self._make, self._count = jobs, make, count
        self._deadline_s, self._moved, self._pid = deadline_s, moved, os.getpid()
        self._lock, self._asking, self._asked = threading.Lock(), threading.Lock(), 0
        self._ready = threading.Condition(self._lock)
        self._free = threading.Condition(self._lock)
        self._done: dict[int, tuple[Any, BaseException | None]] = {}
        self._threads: list[threading.Thread] = []
        self._taken = self._begun = self._running = 0
        self._ended = self._stopped = False
        self._since = time.monotonic()

    def results(self) -> Generator[tuple[Result, float], None, None]:
        """Yield each result, and how many seconds it was waited for."""
        asked, resumed = time.perf_counter(), time.perf_counter()
        try:
            while True:
                self._check_process()
                with self._lock:
                    self._start_threads()
                    if not self._await():
                        return
                    result, error = self._done.pop(self._taken)
                    self._taken += 1
                    self._free.notify_all()
                if error is not None:
                    raise error
                received = time.perf_counter()
                self._count.report(received - resumed, received - asked)
                resumed = received
                yield result, received - asked
                asked = time.perf_counter()
                del result
        finally:
            self._leave()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ResumeError(
                "this iterator was begun before its process was forked, and its threads are the parent's",
                hint="iterate over the loader anew in the child, or start processes by 'spawn'",
            )

    def _start_threads(self) -> None:
        self._free.notify_all()
        while self._running < (self._count.n if self._is_begun() else 1) and not self._ended:
            thread = threading.Thread(target=self._work, name="vidbrain-prefetch", daemon=True)
            self._threads.append(thread)
            self._running += 1
            thread.start()

    def _is_begun(self) -> bool:
        """Whether others may begin beside the first thread: before, they would take the interpreter from it."""
        return self._taken > 0 or bool(self._done) or time.monotonic() - self._since > HEAD_START_S

    def _await(self) -> bool:
        """Wait until the next result is there; False if there is none any more."""
        quiet_since, seen = time.monotonic(), (self._moved(), len(self._done))
        while self._taken not in self._done:
            if self._ended and self._taken == self._begun:
                return False
            left = quiet_since + self._deadline_s - time.monotonic()
            if left <= 0:
                raise StorageError(
                    f"the source of the clips is stalled: nothing came for {self._deadline_s:g} s",
                    likely="the store does not answer, or a disk hangs",
                    hint="look at the store and the network; a slow one needs a longer deadline_s",
                )
            self._ready.wait(min(left, 1.0 if self._is_begun() else HEAD_START_S))
            self._start_threads()
            now = (self._moved(), len(self._done))
            if now != seen:
                quiet_since, seen = time.monotonic(), now
        return True

    def _work(self) -> None:
        while self._reserve():
            number, result, failure = -1, None, None
            try:
                with self._asking:
                    number = self._asked
                    job = next(self._jobs)
                    self._asked += 1
                result = self._make(job)
                del job
            except StopIteration:
                number = -1
            except BaseException as error:
                failure = error
            with self._lock:
                if number < 0:
                    self._begun -= 1
                else:
                    self._done[number] = (result, failure)
                self._ended |= number < 0 or failure is not None
                self._ready.notify_all()
            # Not while it waits for room: the consumer may be done with it by then.
            del result, failure

    def _reserve(self) -> bool:
        """Wait for room for a result; False if this thread is to end."""
        with self._lock:
            while True:
                if self._ended or self._stopped or self._running > self._count.n:
                    self._running -= 1
                    self._ready.notify_all()
                    return False
                if self._begun - self._taken < self._count.n + SPARE:
                    self._begun += 1
                    return True
                self._free.wait()

    def _leave(self) -> None:
        if os.getpid() != self._pid:  # a lock of the parent may be closed for ever in its child
            return
        with self._lock:
            self._stopped = True
            self._free.notify_all()
        # A thread that hangs in its source is left behind: it ends with its read, or with the process.
        until = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
