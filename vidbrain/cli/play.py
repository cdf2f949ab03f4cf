"""``vidbrain play``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain import cluster
from vidbrain.cli.console import Console, Flag
from vidbrain.storage.roots import data_root
from vidbrain.video.play import PlayConfig, plan_play
from vidbrain.video.play import play as record_play


def play(
    out: Path | None = None,
    /,
    *,
    config: Annotated[PlayConfig, Parameter(name="*")] = PlayConfig(),  # noqa: B008 -- frozen
    integration: Path | None = None,
    workers: int | None = None,
    scheduler: str = "local",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Record real game play in a BIDS tree: a console's as .bk2 files, Doom's as video.

    Example: `vidbrain play shards/demo/game --n-runs 2`

    Parameters
    ----------
    out
        Root of the BIDS tree; default game/ in the data root.
    config
        What is played.
    integration
        Folder with your own ROM and game integration.
    workers
        Worker processes; default one per core. The recordings do not depend on it.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    dry_run
        Print what would be played, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    out = out or data_root() / "game"
    if dry_run:
        console.print_result(plan_play(out, config), title=f"would play into {out}")
        return
    with cluster.client(scheduler, workers) as client:
        facts = record_play(out, config, integration=integration, client=client, progress=console.progress())
    console.print_result(facts, title=f"played into {out}")
