"""Signals that ask a training to end: heard at once, obeyed when the step is done."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Any


class Signals:
    """Remembers SIGTERM, SIGUSR1 (a queue that wants the machine back) and SIGINT until the step is done."""

    _NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with contextlib.suppress(ValueError):  # not the main thread: signals go elsewhere
            for name in self._NAMES:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number

    def leave(self) -> None:
        """End the process as the signal would have: the checkpoint is written."""
        if self.received in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.received or 0))
