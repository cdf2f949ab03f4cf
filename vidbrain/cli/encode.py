"""``vidbrain encode``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vidbrain import cluster
from vidbrain.bold.store import BoldStore, open_bold
from vidbrain.cli.console import Console, Flag
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.maps import write_maps
from vidbrain.encoding.parcel_maps import write_parcel_maps
from vidbrain.encoding.prepare import prepare
from vidbrain.encoding.result import EncodingResult
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.features.store import FeatureStore, open_features
from vidbrain.storage.roots import data_root

EDGE_WARNING = 0.1
"""Share of voxels at the smallest alpha above which the grid should reach lower."""


def encode(
    features: Path,
    bold: Path | None = None,
    /,
    *,
    out: Path | None = None,
    layer: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    name: str | None = None,
    parcels: str | None = None,
    config: Annotated[EncodeConfig, Parameter(name="*", consume_multiple=True)] = EncodeConfig(),  # noqa: B008 -- frozen
    workers: int | None = None,
    scheduler: str = "local",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Predict every voxel from features, on held-out runs.

    Example: `vidbrain encode shards/demo/features/pixels shards/demo/bold --out shards/demo/results/pixels`

    Parameters
    ----------
    features
        Set of features, as `vidbrain features` writes it.
    bold
        BOLD store; default bold in the data root.
    out
        Folder to write; default results/NAME in the data root.
    layer
        Layer, or several to put side by side; not needed if the set has one.
    name
        Of the result and in the names of its maps; default the name of the features' folder.
    parcels
        Set of parcels of the BOLD store that results keep, and that share alphas with --alpha-per parcel; default the
        one in use.
    config
        How features are fitted.
    workers
        Worker processes; default one per core. The result does not depend on it.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    dry_run
        Print the plan and what it would take, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    name = name or features.resolve().name
    bold, out = bold or data_root() / "bold", out or data_root() / "results" / name
    feature_store, bold_store = open_features(features), open_bold(bold, parcels)
    if dry_run:
        prepared = prepare(feature_store, bold_store, config, layer=layer or None)
        facts = prepared.estimate(config, workers or cluster.available_cores())
        console.print_result({"root": str(out), "layers": list(prepared.layers), "runs": list(prepared.runs), **facts})
        return
    with cluster.client(scheduler, workers) as client:
        result = fit_encoding(
            feature_store,
            bold_store,
            config,
            out,
            layer=layer or None,
            client=client,
            progress=console.progress(),
        )
    # Parcels of a surface fill no volume.
    fills = "parcels_of" in bold_store.info and all(bold_store.shape)
    at = out / "maps"
    maps = write_parcel_maps(result, bold_store, at, desc=name) if fills else write_maps(result, at, desc=name)
    facts = summary(result, maps)
    if config.split == "leaky-tr":
        facts |= inflation(facts, feature_store, bold_store, config, out, layer, workers, scheduler, console)
    low = facts["alpha_at_smallest_share"]
    if low is not None and low > EDGE_WARNING and config.n_alphas > 1:
        console.note(f"{low:.0%} of voxels chose the smallest alpha: widen the grid with --alpha-decades")
    console.print_result(facts, title="simulated BOLD" if result.simulated else None)


def inflation(
    facts: dict[str, Any],
    features: FeatureStore,
    bold: BoldStore,
    config: EncodeConfig,
    out: Path,
    layer: tuple[str, ...],
    workers: int | None,
    scheduler: str,
    console: Console,
) -> dict[str, Any]:
    """Fit the honest split too, and say by how much the leaky one inflates r."""
    with cluster.client(scheduler, workers) as client:
        honest = fit_encoding(
            features,
            bold,
            replace(config, split="whole"),
            out / "whole",
            layer=layer or None,
            client=client,
            progress=console.progress(),
        )
    median = honest.info["summary"]["median_r"]
    both = median is not None and facts["median_r"] is not None
    console.note("TRs of one run train and test here: r is inflated by neighbours in time, and no finding")
    return {"median_r_whole_runs": median, "median_r_inflation": facts["median_r"] - median if both else None}


def summary(result: EncodingResult, maps: list[Path]) -> dict[str, Any]:
    """Facts of a finished result, for people and scripts."""
    design = result.info["design"]
    return {
        "root": str(result.root),
        "simulated": result.simulated,
        "form": result.info["form"],
        "n_rows": design["n_rows"],
        "n_columns": design["n_columns"],
        **result.info["summary"],
        "maps": [str(path) for path in maps],
        "fingerprint": result.info["fingerprint"],
    }
