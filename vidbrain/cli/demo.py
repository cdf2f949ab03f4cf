"""``vidbrain demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidbrain import cluster
from vidbrain.cli.console import Console, duration
from vidbrain.demo import read_recipe, run_demo
from vidbrain.storage.roots import data_root


def demo(
    root: Path | None = None,
    /,
    *,
    recipe: Path | None = None,
    workers: int | None = None,
    scheduler: str = "local",
    json: bool = False,
) -> None:
    """Run the whole path on real game play, from nothing to a brain map.

    Parameters
    ----------
    root
        Folder to write; default demo/ in the data root.
    recipe
        TOML file with a table of settings for each stage; default the demo's own.
    workers
        Worker processes; default one per core.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    json
        Print the summary as JSON.
    """
    console = Console(json=json)
    root = root or data_root() / "demo"
    settings = read_recipe(recipe)
    progress = console.progress()
    try:
        with cluster.client(scheduler, workers) as client:
            summary = run_demo(root, settings, client=client, progress=progress)
    finally:
        progress.finish()
    if json:
        console.print_result(summary)
        return
    console.print_rows(rows(summary), title="Median r on held-out runs, simulated BOLD")
    total = sum(summary["wall_s"].values())
    console.note(
        f"{summary['frames']:,} frames, {summary['clips']:,} clips, "
        f"reconstruction {summary['vqvae']['psnr_db']:.1f} dB, {duration(total)}"
    )
    console.print_result({"summary": str(root / "summary.json"), "page": str(root / "report.html")})


def rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a kind of voxel."""
    return [{"voxels": kind, **values} for kind, values in summary["r"].items()]
