"""``vidbrain replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain import cluster
from vidbrain.cli.console import Console, Flag
from vidbrain.storage.roots import data_root
from vidbrain.video.replay import ReplayConfig, plan_replay
from vidbrain.video.replay import replay as replay_source
from vidbrain.video.sources import REPLAY


def replay(
    source: Path | None = None,
    /,
    *,
    out: Path | None = None,
    config: Annotated[ReplayConfig, Parameter(name="*")] = ReplayConfig(),  # noqa: B008 -- frozen
    integration: Path | None = None,
    workers: int | None = None,
    scheduler: str = "local",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Turn recorded game play into video and a table of each frame.

    Example: `vidbrain replay shards/demo/game`

    Parameters
    ----------
    source
        A BIDS tree with gamelogs, a folder of .bk2 files, or one file; default game/ in the data root.
    out
        Where videos and tables go; default derivatives/replay below the source.
    config
        How the recorded input becomes video.
    integration
        Folder with your own ROM and game integration (as shinobi's stimuli/).
    workers
        Worker processes; default one per core. The videos do not depend on it.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    dry_run
        Check every recording, print what would be replayed, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    source = source or data_root() / "game"
    if dry_run:
        facts = plan_replay(source, out, config, integration=integration)
        console.print_result(facts, title=f"would replay {source}")
        return
    with cluster.client(scheduler, workers) as client:
        facts = replay_source(source, out, config, integration=integration, client=client, progress=console.progress())
    console.print_result(facts, title=f"replayed into {out or source / REPLAY}")
