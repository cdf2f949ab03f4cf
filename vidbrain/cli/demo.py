"""``vidbrain demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidbrain import cluster
from vidbrain.cli.console import Console, Flag, duration, say
from vidbrain.demo import read_recipe, run_demo
from vidbrain.storage.roots import data_root


def demo(
    root: Path | None = None,
    /,
    *,
    recipe: Path | None = None,
    workers: int | None = None,
    scheduler: str = "local",
    json: Flag = False,
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
    vqvae, gpt = summary["vqvae"], summary["gpt"]
    console.print_result(
        {
            "data": f"{say(summary['frames'])} frames in {summary['shards']} shards, {say(summary['clips'])} clips",
            "VQ-VAE": f"{vqvae['psnr_db']:.1f} dB on held-out recordings, {vqvae['psnr_gain_db']:+.1f} dB over the "
            f"mean frame; {vqvae['codes_used']:.0%} of {vqvae['codes']} codes in use",
            "GPT": f"{gpt['loss']['held_out']['last']:.2f} nats a code on held-out recordings; "
            f"guessing by frequency {gpt['unigram_loss']:.2f}",
            "time": f"{duration(total)}, the slowest stage {max(summary['wall_s'], key=summary['wall_s'].__getitem__)}",
            "summary": root / "summary.json",
            "page": root / "report.html",
        }
    )


def rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a kind of voxel."""
    table = []
    for kind, values in summary["r"].items():
        shown = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in values.items()}
        table.append({"voxels": kind, **shown})
    return table
