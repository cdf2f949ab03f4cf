"""``vidbrain group``."""

from __future__ import annotations

from pathlib import Path

from vidbrain.cli.console import Console, Flag
from vidbrain.encoding.group import group_results, subjects_of
from vidbrain.encoding.result import open_result
from vidbrain.storage.roots import data_root


def group(results: list[Path], /, *, out: Path | None = None, json: Flag = False) -> None:
    """Put results of a few subjects together: mean r, in how many it replicates, and maps.

    Example: `vidbrain group shards/results/sub-01 shards/results/sub-02 --out shards/results/group`

    Parameters
    ----------
    results
        Results of `vidbrain encode`, one a subject, in one standard space.
    out
        Folder to write; default group in the data root.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    out = out or data_root() / "group"
    info = group_results(subjects_of([open_result(root) for root in results]), out)
    console.print_result(
        {"root": str(out), "subjects": info["subjects"], **info["summary"], "fingerprint": info["fingerprint"]},
        title="simulated BOLD" if info["simulated"] else None,
    )
