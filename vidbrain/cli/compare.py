"""``vidbrain compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain.cli.console import Console, Flag
from vidbrain.encoding.compare import CompareConfig
from vidbrain.encoding.compare import compare as compare_results
from vidbrain.encoding.result import open_result
from vidbrain.storage.roots import data_root


def compare(
    a: Path,
    b: Path,
    /,
    *,
    out: Path | None = None,
    config: Annotated[CompareConfig, Parameter(name="*")] = CompareConfig(),  # noqa: B008 -- frozen
    json: Flag = False,
) -> None:
    """Say where one feature set predicts better than another, by the same resampled blocks of TRs.

    Example: `vidbrain compare shards/demo/results/trained shards/demo/results/untrained`

    Parameters
    ----------
    a, b
        Results of `vidbrain encode --keep-moments` on the same BOLD; a positive difference speaks for a.
    out
        Folder to write; default comparisons/A-B in the data root.
    config
        How differences are resampled.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    out = out or data_root() / "comparisons" / f"{a.resolve().name}-{b.resolve().name}"
    info = compare_results(open_result(a), open_result(b), config, out, progress=console.progress())
    console.print_result(
        {"root": str(out), "simulated": info["simulated"], **info["summary"], "fingerprint": info["fingerprint"]},
        title="simulated BOLD" if info["simulated"] else None,
    )
