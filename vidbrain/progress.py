"""Progress as a value that work reports to: mathematics and workers stay silent, a terminal may listen."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who listens to long work. Calls are cheap and come from the main process only."""

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a stage of `total` units, of which `done` were found finished on disk."""

    def advance(self, amount: int = 1, **numbers: float | str) -> None:
        """Count finished units; `numbers` are shown as they are, for instance ``loss=0.041, stall="2 %"``."""

    def note(self, message: str) -> None:
        """Say one line that stays on the screen."""

    def finish(self) -> None:
        """End the stage."""


class Silent:
    """A listener who does not care: the default of every function."""

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """Ignore."""

    def advance(self, amount: int = 1, **numbers: float | str) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


SILENT = Silent()
