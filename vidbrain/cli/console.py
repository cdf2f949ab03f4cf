"""What a person sees: one live line on a terminal, a plain line now and then elsewhere, results on stdout."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

Flag = Annotated[bool, Parameter(negative=())]
"""Something that is asked for or not: its help shows no --no- form."""

PLAIN_EVERY_S = 30.0
PLAIN_WIDTH = 10_000
"""Columns of a file or a pipe: rows are whole there, for other programs and for logs."""
LIST_WIDTH = 60
"""Characters above which the texts of a list stand below each other."""


class Console:
    """Prints results to stdout and everything else to stderr.

    Parameters
    ----------
    json
        Print results as JSON, one document, and nothing else on stdout.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._out = RichConsole(highlight=False, soft_wrap=True)
        if not self._out.is_terminal:
            self._out.width = PLAIN_WIDTH
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def progress(self) -> ConsoleProgress:
        """A listener for long work."""
        return ConsoleProgress(self._err)

    def note(self, message: str) -> None:
        """Say one line on stderr."""
        self._err.print(message, markup=False)

    def print_result(self, values: Mapping[str, Any], *, title: str | None = None) -> None:
        """Print facts: a table of names and values, or JSON."""
        if self.json:
            sys.stdout.write(json_module.dumps(values, indent=2, default=str) + "\n")
            sys.stdout.flush()
            return
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in flatten(values):
            listed = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
            shown = "\n".join(value) if listed and sum(map(len, value)) > LIST_WIDTH else say(value)
            table.add_row(Text(label(name), style="bold"), Text(shown))
        self._print(table)

    def print_rows(self, rows: list[dict[str, Any]], *, title: str | None = None) -> None:
        """Print a list of records: a table with a column a name, or a JSON list."""
        if self.json:
            sys.stdout.write(json_module.dumps(rows, indent=2, default=str) + "\n")
            return
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in names:
            table.add_column(label(name), overflow="fold")
        for row in rows:
            table.add_row(*(Text(say(row.get(name))) for name in names))
        self._print(table)

    def _print(self, table: Table) -> None:
        if self._out.is_terminal:
            self._out.print(table)
            return
        with self._out.capture() as shown:
            self._out.print(table)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in shown.get().splitlines()))
        sys.stdout.flush()


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Turn nested mappings into dotted names, in order."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def label(name: str) -> str:
    """Write a name for people; one with a dot stays as it is, for it may be a layer's, to be copied."""
    return name if "." in name else name.replace("_", " ")


def say(value: object) -> str:
    """Write a value for people: thousands apart, four significant digits, a dash for what is missing."""
    if value is None:
        return "–"  # noqa: RUF001 -- an en dash is what tables use
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(say(item) for item in value) or say(None)
    return str(value)


class ConsoleProgress:
    """Shows stage, count, rate, time left and the numbers that work reports."""

    def __init__(self, console: RichConsole) -> None:
        self._console = console
        self._live: Live | None = None
        self._stage, self._unit, self._total, self._done, self._found = "", "", 0, 0, 0
        self._numbers: dict[str, float | str] = {}
        self._began = self._said = 0.0

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a stage."""
        self.finish()
        self._stage, self._unit, self._total, self._done, self._found = stage, unit, total, done, done
        self._numbers = {}
        self._began = self._said = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(Text(self._line()), console=self._console, refresh_per_second=4, transient=False)
            self._live.start()

    def advance(self, amount: int = 1, **numbers: float | str) -> None:
        """Count finished units."""
        self._done += amount
        self._numbers.update(numbers)
        now = time.monotonic()
        if self._live is not None:
            self._live.update(Text(self._line()))
        elif now - self._said >= PLAIN_EVERY_S:
            self._said = now
            self._console.print(self._line(), markup=False)

    def note(self, message: str) -> None:
        """Say one line that stays."""
        self._console.print(message, markup=False)

    def finish(self) -> None:
        """End the stage with one line that stays."""
        if not self._stage:
            return
        if self._live is not None:
            self._live.update(Text(self._line()))
            self._live.stop()
            self._live = None
        else:
            self._console.print(self._line(), markup=False)
        self._stage = ""

    def _line(self) -> str:
        elapsed = time.monotonic() - self._began
        rate = (self._done - self._found) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self._stage:<9}", f"{say(self._done)}/{say(self._total)} {self._unit}"]
        parts += [f"{name.replace('_', ' ')} {say(value)}" for name, value in self._numbers.items()]
        if rate > 0:
            parts.append(f"{say(round(rate)) if rate >= 100 else f'{rate:.2g}'} {self._unit}/s")
        if rate > 0 and self._done < self._total:
            parts.append(f"eta {duration((self._total - self._done) / rate)}")
        else:
            parts.append(duration(elapsed))
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """Write seconds as 42 s, 3 min 20 s or 5 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
