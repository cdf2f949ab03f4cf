"""Counts of requests to stores, for those who want to know what they cost."""

from __future__ import annotations

import threading


class Meter:
    """Counts the requests of the roots that carry it; any number of threads may count.

    Attributes
    ----------
    n_requests
        Requests made, repeated ones included.
    n_retries
        Those that repeated one which failed.
    """

    def __init__(self) -> None:
        self.n_requests = self.n_retries = 0
        self._lock = threading.Lock()

    def count(self, *, again: bool) -> None:
        """Count a request."""
        with self._lock:
            self.n_requests += 1
            self.n_retries += again

    def __reduce__(self) -> tuple[type[Meter], tuple[()]]:
        # Another process counts for itself.
        return Meter, ()
