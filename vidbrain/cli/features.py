"""``vidbrain features``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vidbrain import cluster
from vidbrain.cli.console import Console, Flag
from vidbrain.errors import ConfigError
from vidbrain.features.arrays import ArraySource
from vidbrain.features.buttons import ButtonSource
from vidbrain.features.catalog import LookConfig, SourceConfig, make_source
from vidbrain.features.drivers import extract_drivers, list_drivers
from vidbrain.features.extract import ExtractConfig, estimate_bytes, estimate_memory, extract, frames_without_rows
from vidbrain.features.runs import frame_rate, plan_runs
from vidbrain.features.sources import receptive_field_s
from vidbrain.features.timed import TimedSource, estimate_timed_bytes, extract_timed, plan_timed
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.roots import data_root


def features(
    source: str,
    /,
    *,
    shards: Path | None = None,
    out: Path | None = None,
    vqvae: Path | None = None,
    gpt: Path | None = None,
    truth: Path | None = None,
    game: Path | None = None,
    config: Annotated[SourceConfig, Parameter(name="*", consume_multiple=True)] = SourceConfig(),  # noqa: B008 -- frozen
    look: Annotated[LookConfig, Parameter(name="*", consume_multiple=True)] = LookConfig(),  # noqa: B008 -- frozen
    clock: Annotated[ExtractConfig, Parameter(name="*")] = ExtractConfig(),  # noqa: B008 -- frozen
    workers: int = 0,
    scheduler: str = "local",
    trust: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Write activations and controls, one row for each TR.

    Example: `vidbrain features motion --shards shards/demo/data --out shards/demo/features/motion`

    Parameters
    ----------
    source
        model: the trained VQ-VAE and GPT; untrained: the same with fresh weights; pixels: small pictures; luminance:
        brightness, contrast and change; motion: motion energy; buttons: what the player pressed; drivers: the planted
        drivers of simulated fMRI; hf:FOLDER: a V-JEPA 2 or VideoMAE model; timm:FOLDER: an image model;
        module:package.factory: a network or source of your own; arrays:FOLDER: rows with times. hf and timm may stand
        behind untrained: for fresh weights.
    shards
        Data set of shards, with all frames of its recordings; default `DATA/data`, below the data root. For arrays and
        buttons: a data set whose runs they must have.
    out
        Folder to write; default `DATA/features/SOURCE`.
    vqvae
        Folder of the trained VQ-VAE; default `DATA/runs/vqvae`.
    gpt
        Folder of the trained GPT; default `DATA/runs/gpt` where that exists.
    truth
        Simulated derivatives, for drivers; default `DATA/game/derivatives/simulated-fmriprep`.
    game
        BIDS tree of game play, for buttons, and for a GPT that is told them; default `DATA/game`.
    config
        Layers and pooling.
    look
        What networks of other people's are shown.
    clock
        Of the scanner.
    workers
        Processes that share the runs; 0 for none but this one, which is faster up to some hours of video. Values do not
        depend on it, but for the last digits of networks. With a GPU a network stays in this process.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    trust
        Import and run the code that module: names.
    dry_run
        Print what would be done, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    out = out or data_root() / "features" / folder_name(source)
    if source == "drivers":
        _drivers(console, truth, out, config, dry_run=dry_run)
        return
    timed = _timed(source, game, config)
    if timed is not None:
        plans = None if shards is None else plan_runs(open_manifest(shards), clock.tr_s, clock.slice_time_ref)
        if dry_run:
            n_trs = plan_timed(timed, clock.tr_s, plans, clock.slice_time_ref)
            sizes = {layer: len(names) for layer, names in timed.feature_names.items()}
            facts = {"runs": len(n_trs), "volumes": sum(n_trs.values()), "features": sizes}
            console.print_result({**facts, "bytes_at_most": estimate_timed_bytes(timed, n_trs)})
            return
        with cluster.client(scheduler, workers) as client:
            record = extract_timed(timed, out, clock, expected=plans, client=client, progress=console.progress())
        _print(console, out, record)
        return
    shards = shards or data_root() / "data"
    if source in ("model", "untrained"):
        vqvae = vqvae or data_root() / "runs" / "vqvae"
        default = data_root() / "runs" / "gpt"
        gpt = gpt or (default if default.is_dir() else None)
        game = game or data_root() / "game"
    made = make_source(source, shards, config, vqvae=vqvae, gpt=gpt, game=game, look=look, trust=trust)
    if dry_run:
        manifest = open_manifest(shards)
        runs, fps = plan_runs(manifest, clock.tr_s, clock.slice_time_ref), frame_rate(manifest)
        window = made.window
        rows = f"{window.n_slices} rows at the {window.time} of what they see"
        console.print_result(
            {
                "runs": len(runs),
                "frames": sum(run.n_frames for run in runs),
                "frames_without_row": frames_without_rows(window, runs),
                "volumes": sum(run.n_trs for run in runs),
                "window": f"{window.n_frames} frames, every {window.step}th, {rows}",
                "window_s": {layer.name: sum(receptive_field_s(layer, window, fps)) for layer in made.layers},
                "features": made.n_features,
                "bytes_at_most": estimate_bytes(made, runs),
                "memory_bytes_at_most": estimate_memory(made, manifest, runs),
            }
        )
        return
    inline = 0 if made.in_process else workers
    with cluster.client(scheduler, inline) as client:
        record = extract(made, shards, out, clock, client=client, progress=console.progress())
    _print(console, out, record)


def folder_name(source: str) -> str:
    """Name the folder of a source's features: ``hf:models/vjepa2`` becomes ``hf-vjepa2``."""
    spelled, _, rest = source.rpartition(":")
    return re.sub(r"[^\w.-]+", "-", f"{spelled}:{Path(rest).name}".strip(":"))


def _timed(source: str, game: Path | None, config: SourceConfig) -> TimedSource | None:
    spelled, _, rest = source.partition(":")
    if spelled not in ("buttons", "arrays") or (spelled == "arrays") != bool(rest):
        return None
    if config.pooling is not None or config.stride is not None or config.time != "centre":
        raise ConfigError(f"{spelled} are rows with times of their own", hint="leave out --pool, --time and --stride")
    if spelled == "buttons":
        return ButtonSource(game or data_root() / "game", config.layers)
    if config.layers:
        raise ConfigError("arrays are a single layer", hint="leave out --layers")
    return ArraySource(Path(rest))


def _drivers(console: Console, truth: Path | None, out: Path, config: SourceConfig, *, dry_run: bool) -> None:
    if config.pooling is not None or config.stride is not None or config.time != "centre":
        raise ConfigError("drivers are not pooled", hint="leave out --pool, --grid, --time and --stride")
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
