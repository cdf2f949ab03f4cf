"""``vidbrain report``: one page with maps, curves and numbers."""

from __future__ import annotations

from pathlib import Path

from vidbrain.cli.console import Console, Flag
from vidbrain.storage.roots import data_root


def report(root: Path | None = None, /, *, out: Path | None = None, json: Flag = False) -> None:
    """Write one self-contained HTML page with maps, curves and numbers.

    Example: `vidbrain report shards/demo`

    Parameters
    ----------
    root
        Data root with results/ and bold/; default $VIDBRAIN_DATA, else ./shards.
    out
        The page; default report.html in the root.
    json
        Print the facts as JSON.
    """
    from vidbrain.report.inputs import ReportInputs
    from vidbrain.report.page import write_report

    console = Console(json=json)
    folder = data_root(root)
    facts = write_report(ReportInputs.of(folder), out or folder / "report.html", progress=console.progress())
    console.print_result(facts)
