"""``vidbrain bold``: simulate, ingest, parcellate, list, verify and export fMRI data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from vidbrain import cluster
from vidbrain.bold.ingest import IngestConfig
from vidbrain.bold.parcels.atlases import Resample
from vidbrain.bold.simulation.experiment import SimulateConfig
from vidbrain.cli.console import Console, Flag
from vidbrain.errors import ConfigError, StorageError
from vidbrain.storage.roots import data_root

app = App(name="bold", help="Simulate, ingest, parcellate, list, verify and export fMRI data.")


@app.command
def simulate(
    bids: Path | None = None,
    /,
    *,
    out: Path | None = None,
    features: str | None = None,
    layer: str | None = None,
    n_subjects: int | None = None,
    mask: Path | None = None,
    store: Path | None = None,
    config: Annotated[SimulateConfig, Parameter(name="*")] = SimulateConfig(),  # noqa: B008 -- frozen
    workers: int | None = None,
    scheduler: str = "local",
    json: Flag = False,
) -> None:
    """Write simulated fMRIPrep derivatives, with a planted truth, from a replayed BIDS tree or any feature set.

    Example: `vidbrain bold simulate shards/demo/game`

    Parameters
    ----------
    bids
        BIDS tree with events and replays; default game in the data root.
    out
        Folder of the derivatives; default `BIDS/derivatives/simulated-fmriprep`, from features `DATA/simulated`.
    features
        Folder or URL of a feature set that drives the brain, in place of game play.
    layer
        Of the features; default the only one.
    n_subjects
        From features: so many subjects all see every run; default each run has the subject of its name.
    mask
        3-D image of the voxels to simulate, in MNI space; default nilearn's brain at --resolution-mm.
    store
        Folder of a BOLD store to write in place of NIfTI series, cleaned as `vidbrain bold ingest` does by default.
    config
        Scanner and planted brain.
    workers
        Processes; default one per core.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    json
        Print JSON.
    """
    from vidbrain.bold.simulation import simulate as stage
    from vidbrain.features.store import open_features

    console = Console(json=json)
    if features is not None and bids is not None:
        raise ConfigError("the brain is driven by game play or by features, not by both", hint="leave out one of them")
    if features is None and (layer is not None or n_subjects is not None):
        raise ConfigError("--layer and --n-subjects belong to --features", hint="give --features FOLDER")
    progress = console.progress()
    with cluster.client(scheduler, workers) as client:
        if features is None:
            tree = bids or data_root() / "game"
            target = out or tree / stage.DERIVATIVE
            facts = stage.simulate(tree, target, config, mask=mask, store=store, client=client, progress=progress)
        else:
            target = out or data_root() / "simulated"
            facts = stage.simulate_features(
                open_features(features), target, config, layer=layer, n_subjects=n_subjects, mask=mask, store=store,
                client=client, progress=progress,
            )  # fmt: skip
    facts |= {} if store is None else {"store": str(store)}
    console.print_result(facts, title="Simulated fMRI")


@app.command
def ingest(
    derivatives: Path | None = None,
    /,
    *,
    out: Path | None = None,
    mask: Path | None = None,
    events: Path | None = None,
    config: Annotated[IngestConfig, Parameter(name="*")] = IngestConfig(),  # noqa: B008 -- frozen
    workers: int | None = None,
    scheduler: str = "local",
    json: Flag = False,
) -> None:
    """Turn fMRI series into a BOLD store: cleaned, chunked, lazily readable.

    Example: `vidbrain bold ingest shards/demo/game/derivatives/simulated-fmriprep --out shards/demo/bold`

    Parameters
    ----------
    derivatives
        Folder that fMRIPrep (or `vidbrain bold simulate`) wrote: volumes, GIFTI surfaces or CIFTI, one space of them;
        or HDF5 time series (`sub-*_timeseries.h5`), or .npy, .npz and .zarr arrays named by run; or a raw BIDS tree
        (with --mask); or one such file. Default game/derivatives/simulated-fmriprep in the data root.
    out
        Folder of the store; default `bold` in the data root.
    mask
        3-D image of the voxels to keep; default those inside every run's brain mask.
    events
        BIDS tree whose events the series must cover; default the tree around the derivatives.
    config
        Which series, and how they are cleaned.
    workers
        Processes; default one per core.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    json
        Print JSON.
    """
    from vidbrain.bold import ingest as stage

    console = Console(json=json)
    derivatives = derivatives or data_root() / "game" / "derivatives" / "simulated-fmriprep"
    target = out or data_root() / "bold"
    with cluster.client(scheduler, workers) as client:
        facts = stage.ingest(
            derivatives, target, config, mask=mask, events=events, client=client, progress=console.progress()
        )
    console.print_result(facts, title=f"BOLD store {target}")


@app.command
def parcels(
    store: Path | None = None,
    /,
    *,
    atlas: str = "own",
    n: int = 400,
    name: str | None = None,
    names: Path | None = None,
    space: str | None = None,
    resample: Resample = "refuse",
    series: Path | None = None,
    workers: int | None = None,
    scheduler: str = "local",
    json: Flag = False,
) -> None:
    """Add parcels and networks to the voxels of a BOLD store, without writing its series again.

    Example: `vidbrain bold parcels shards/demo/bold --atlas own --n 400`

    Parameters
    ----------
    store
        Folder of the store; default `bold` in the data root.
    atlas
        NIfTI labels (3-D), probabilistic maps (4-D) or surface labels (.label.gii); or `own`: recursive bisection.
    n
        Parcels of our own.
    name
        Of the set; default from the file's name. The set added last is in use.
    names
        Table of names (TSV, CSV or colour table); default the one beside the atlas.
    space
        Space of the atlas, where its file name does not say the right one.
    resample
        An atlas on another grid: refuse it, or take its nearest voxel.
    series
        Also write the series of the parcels as a store of their own, into this folder.
    workers
        Processes that write it; default one per core.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    json
        Print JSON.
    """
    from vidbrain.bold.parcels.placement import add_parcels
    from vidbrain.bold.parcels.series import write_parcel_store
    from vidbrain.bold.store import open_bold

    console = Console(json=json)
    root = store or data_root() / "bold"
    facts = add_parcels(open_bold(root), atlas, name=name, names=names, n=n, space=space, resample=resample)
    if series is not None:
        with cluster.client(scheduler, workers) as client:
            written = write_parcel_store(open_bold(root), series, client=client, progress=console.progress())
        facts |= {"series": str(series), "runs": written["runs"]}
    console.print_result(facts, title=f"Parcels of {root}")


@app.command(name="ls")
def list_runs(
    store: str | None = None, /, *, parcels: str | None = None, verify: Flag = False, json: Flag = False
) -> None:
    """List what a BOLD store holds: its runs, or the parcels of a set.

    Example: `vidbrain bold ls shards/demo/bold`

    Parameters
    ----------
    store
        Folder or URL of the store; default `bold` in the data root.
    parcels
        Name of a set of parcels: list its parcels in place of the runs.
    verify
        Read everything and compare checksums; stops at the first difference, `vidbrain bold verify` names all.
    json
        Print JSON.
    """
    from vidbrain.bold.parcels.parcellation import parcel_rows, read_parcels, read_sets
    from vidbrain.bold.store import open_bold

    console = Console(json=json)
    bold = open_bold(store or data_root() / "bold", parcels)
    if parcels is not None:
        console.print_rows(parcel_rows(read_parcels(bold)), title=f"parcels {parcels} of {bold.root}")
        return
    sets = read_sets(bold.root)["sets"]
    if len(sets) > 1:
        console.note(f"sets of parcels: {', '.join(sets)}; {bold.parcels_in_use} is in use, --parcels lists one")
    for _, damage in bold.damages() if verify else ():
        if damage is not None:
            raise damage
    rows = [
        {
            "run": run["label"],
            "volumes": run["n_trs"],
            "minutes": round(run["n_trs"] * bold.tr_s / 60, 2),
            "voxels": bold.n_voxels,
            "layout": bold.info.get("layout", "volume"),
            "space": bold.info.get("space"),
            "kept": run.get("n_kept"),
            "dead": run.get("n_dead"),
            "parcels": bold.parcels_in_use or bold.info.get("parcels_of"),
            "simulated": bold.simulated,
            **({"checksum": "right"} if verify else {}),
        }
        for run in bold.info["runs"]
    ]
    console.print_rows(rows, title=f"BOLD store {bold.root}")


@app.command
def verify(store: str | None = None, /, *, json: Flag = False) -> None:
    """Read every byte of a BOLD store and compare its checksums; names every run and set of parcels that is damaged.

    Example: `vidbrain bold verify shards/demo/bold`

    Parameters
    ----------
    store
        Folder or URL of the store; default `bold` in the data root.
    json
        Print JSON.
    """
    from vidbrain.bold.store import open_record

    console = Console(json=json)
    bold = open_record(store or data_root() / "bold")
    progress = console.progress()
    progress.start("verify", len(bold.runs), "runs")
    rows: list[dict[str, Any]] = []
    for part, damage in bold.damages():
        what = None if damage is None else damage.message
        rows.append({"part": part, "whole": damage is None, "what": what, "where": damage and damage.where})
        if part in bold.runs:
            progress.advance()
    progress.finish()
    console.print_rows(rows, title=f"BOLD store {bold.root}")
    damaged = [row["part"] for row in rows if not row["whole"]]
    if damaged:
        raise StorageError(
            f"{len(damaged)} of {len(rows)} parts are damaged: {', '.join(damaged[:6])}",
            where=bold.root,
            hint="copy the store again; or remove the folders of these runs and give the ingest command again",
        )


@app.command
def export(
    store: str | None = None,
    /,
    *,
    out: Path,
    run: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    json: Flag = False,
) -> None:
    """Write runs of a BOLD store as NIfTI, GIFTI or CIFTI, whichever they came in.

    Example: `vidbrain bold export shards/demo/bold --out exported`

    Parameters
    ----------
    store
        Folder or URL of the store; default `bold` in the data root.
    out
        Folder to write.
    run
        Labels of runs, in any spelling; default all.
    json
        Print JSON.
    """
    from vidbrain.bold.export import export_runs
    from vidbrain.bold.store import open_bold

    console = Console(json=json)
    bold = open_bold(store or data_root() / "bold")
    paths = export_runs(bold, out, run, progress=console.progress())
    console.print_rows([{"file": str(path), "bytes": path.stat().st_size} for path in paths], title=f"exported {out}")
