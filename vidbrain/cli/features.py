"""``vidbrain features``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vidbrain import cluster
from vidbrain.cli.console import Console, Flag
from vidbrain.errors import ConfigError
from vidbrain.features.catalog import SourceConfig, SourceName, make_source
from vidbrain.features.drivers import extract_drivers, list_drivers
from vidbrain.features.extract import ExtractConfig, estimate_bytes, extract, plan_runs
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.roots import data_root


def features(
    source: SourceName,
    /,
    *,
    shards: Path | None = None,
    out: Path | None = None,
    vqvae: Path | None = None,
    gpt: Path | None = None,
    truth: Path | None = None,
    config: Annotated[SourceConfig, Parameter(name="*", consume_multiple=True)] = SourceConfig(),  # noqa: B008 -- frozen
    clock: Annotated[ExtractConfig, Parameter(name="*")] = ExtractConfig(),  # noqa: B008 -- frozen
    workers: int = 0,
    scheduler: str = "local",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Write activations and controls, one row for each TR.

    Example: `vidbrain features motion --shards shards/demo/data --out shards/demo/features/motion`

    Parameters
    ----------
    source
        model: the trained VQ-VAE and GPT; untrained: the same with fresh weights; pixels: small pictures;
        motion: motion energy; drivers: the planted drivers of simulated fMRI.
    shards
        Data set of shards, with all frames of its recordings; default `DATA/data`, below the data root.
    out
        Folder to write; default `DATA/features/SOURCE`.
    vqvae
        Folder of the trained VQ-VAE; default `DATA/runs/vqvae`.
    gpt
        Folder of the trained GPT; default `DATA/runs/gpt` where that exists.
    truth
        Simulated derivatives, for drivers; default `DATA/game/derivatives/simulated-fmriprep`.
    config
        Layers and pooling.
    clock
        Of the scanner.
    workers
        Processes that share the runs; 0 for none but this one, which is faster up to some hours of video. Values do not
        depend on it, but for the last digits of networks. With a GPU a network stays in this process.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    dry_run
        Print what would be done, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    out = out or data_root() / "features" / source
    if source == "drivers":
        _drivers(console, truth, out, config, dry_run=dry_run)
        return
    shards = shards or data_root() / "data"
    if source in ("model", "untrained"):
        vqvae = vqvae or data_root() / "runs" / "vqvae"
        default = data_root() / "runs" / "gpt"
        gpt = gpt or (default if default.is_dir() else None)
    made = make_source(source, shards, config, vqvae=vqvae, gpt=gpt)
    if dry_run:
        runs = plan_runs(open_manifest(shards), clock.tr_s, clock.slice_time_ref)
        console.print_result(
            {
                "runs": len(runs),
                "frames": sum(run.n_frames for run in runs),
                "volumes": sum(run.n_trs for run in runs),
                "window": f"{made.window.n_frames} frames, every {made.window.step}th, {made.window.n_slices} rows",
                "features": {layer.name: layer.n_features for layer in made.layers},
                "bytes_at_most": estimate_bytes(made, runs),
            }
        )
        return
    inline = 0 if made.in_process else workers
    with cluster.client(scheduler, inline) as client:
        record = extract(made, shards, out, clock, client=client, progress=console.progress())
    _print(console, out, record)


def _drivers(console: Console, truth: Path | None, out: Path, config: SourceConfig, *, dry_run: bool) -> None:
    if config.pooling is not None or config.stride is not None:
        raise ConfigError("drivers are not pooled", hint="leave out --pool, --grid and --stride")
    truth = truth or data_root() / "game" / "derivatives" / "simulated-fmriprep"
    layers = config.layers or ("drivers.convolved",)
    if dry_run:
        console.print_result({"truth": str(truth), **list_drivers(truth, layers)})
    else:
        _print(console, out, extract_drivers(truth, out, layers=layers, progress=console.progress()))


def _print(console: Console, out: Path, record: dict[str, Any]) -> None:
    console.print_result(
        {
            "root": str(out),
            "runs": len(record["runs"]),
            "volumes": sum(record["n_trs"]),
            "features": record["n_features"],
            "fingerprint": record["fingerprint"],
        }
    )
