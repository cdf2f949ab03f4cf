"""fMRI series become a BOLD store: everything is checked, then every run is read once, cleaned, written whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vidbrain.bold.bids import RunFiles, grey_matter, refuse_absent, refuse_missing
from vidbrain.bold.checks import agreed_tr_s, chosen_voxels, reference_of, refuse_other_grids, refuse_short
from vidbrain.bold.clean import CleanConfig, read_confounds, refuse_unsolvable
from vidbrain.bold.datasets import description, identity, is_simulated
from vidbrain.bold.forms.cifti import write_template
from vidbrain.bold.forms.nifti import SeriesFacts
from vidbrain.bold.forms.series import Series
from vidbrain.bold.forms.sources import find_series, open_series
from vidbrain.bold.layout import Layout
from vidbrain.bold.raw import events_above, events_end, raw_runs
from vidbrain.bold.run import IngestRow, ingest_run, is_ingested, run_record
from vidbrain.bold.spool import HELD_BYTES
from vidbrain.bold.store import GRID, KIND, TEMPLATE, lost_folders, read_record
from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import BoldError, ConfigError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import RunKey
from vidbrain.storage.atomic import check_writable, remove, sweep
from vidbrain.storage.info import is_done, write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.storage.objects import open_root
from vidbrain.storage.roots import find_json
from vidbrain.storage.zarrs import write_dataset


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Which series are taken and how they are cleaned."""

    space: str | None = None
    """Space to take where there are several, for instance `MNI152NLin2009cAsym` or `T1w`."""
    subject: str | None = None
    """One subject's label; default all, who then need one common grid."""
    tr_s: float | None = None
    """Repetition time in seconds; must agree with headers and sidecars where they hold one."""
    voxels: Literal["brain", "grey"] = "brain"
    """Voxels of a volume to keep: those inside every run's brain mask, or of these the grey matter of every subject."""
    grey_above: float = 0.5
    """With `--voxels grey`, the probability of grey matter above which a voxel is kept."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Cleaning."""

    def __post_init__(self) -> None:
        if not 0 <= self.grey_above < 1:
            raise ConfigError(f"grey_above must be a probability below 1, not {self.grey_above}")


def ingest(
    source: str | Path,
    out: str | Path,
    config: IngestConfig | None = None,
    *,
    mask: str | Path | None = None,
    events: str | Path | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Turn fMRI series into a BOLD store.

    Parameters
    ----------
    source
        Folder of derivatives, or folder or file of arrays, see `vidbrain.bold.forms.sources.find_series`.
    out
        Folder of the store.
    config
        Which series, and how they are cleaned.
    mask
        3-D image on the grid of the series, above 0.5 inside; default the voxels that every run's brain mask holds.
    events
        BIDS tree whose events the series must cover; default the tree in which `source` lies under ``derivatives/``.
    client
        Who does the work.
    progress
        Who listens.

    Returns
    -------
    dict
        Facts for a summary.

    Raises
    ------
    BoldError
        If anything is missing, damaged or does not fit; whatever headers and tables show is known before work starts.
    ResumeError
        If the store was made with other settings.
    StorageError
        If another process writes there, or the place cannot be written.
    """
    config = config or IngestConfig()
    client = client or Client()
    source, out = Path(source), Path(out)
    mask_path = None if mask is None else Path(mask)

    runs, series, tr_s, tree = _checked(source, out, config, mask_path, None if events is None else Path(events))
    grey = _grey_images(source, runs) if config.voxels == "grey" else []

    settings = to_mapping(config)
    made_from = {files.run.label: _inputs_of(files, facts) for files, facts in zip(runs, series, strict=True)}
    made_from |= {"mask": identity(mask_path)} if mask_path is not None else {}
    made_from |= {path.name: identity(path) for path in grey}
    if is_done(out, KIND, config=settings, made_from=made_from):
        lost = lost_folders(out, [files.run.label for files in runs])
        if not lost:
            sweep_lock(out)
            progress.note(f"the BOLD store is there already: {out}")
            return summary(read_record(out))
        progress.note(f"the BOLD store lacks {', '.join(lost[:6])}: made again")
    masks = [mask_path] if mask_path else [files.mask for files in runs if files.mask is not None]
    layout = _layout(series[0], masks, grey, config)
    left_out = [] if tree is None else _left_out(tree, runs, config.subject)
    if left_out:
        progress.note(f"{len(left_out)} runs have raw series but none here: {', '.join(map(str, left_out[:6]))}")
    name = fingerprint(KIND, settings, made_from)
    rows = [
        IngestRow(
            root=out,
            files=files,
            series=facts,
            tr_s=tr_s,
            slice_time_ref=reference_of(files, facts.n_trs, tr_s),
            clean=config.clean,
            fingerprint=name,
        )
        for files, facts in zip(runs, series, strict=True)
    ]
    info = write_store(
        out,
        layout,
        rows,
        settings=settings,
        made_from=made_from,
        facts={
            "simulated": is_simulated(source),
            "source": str(description(source).get("Name", "unnamed derivatives")),
            "mask": _mask_words(mask_path, config) if series[0].layout() is None else "every column of the source",
            "events_checked": tree is not None and not {files.run for files in runs}.isdisjoint(events_end(tree)),
            "runs_without_series": [run.label for run in left_out],
        },
        client=client,
        progress=progress,
    )
    return summary(info)


def write_store(
    out: Path,
    layout: Layout,
    rows: Sequence[IngestRow],
    *,
    settings: Mapping[str, Any],
    made_from: Mapping[str, str],
    facts: Mapping[str, Any],
    client: Client,
    progress: Progress,
) -> dict[str, Any]:
    """Write every run that is not whole yet, then the root record; nobody else writes there meanwhile.

    Parameters
    ----------
    out
        Folder of the store.
    layout
        What the columns are.
    rows
        The runs.
    settings, made_from, facts
        For the root record.
    client, progress
        Who does the work, and who listens.

    Returns
    -------
    dict
        The root record.

    Raises
    ------
    StorageError
        If another process writes there, or the place cannot be written or is too small.
    """
    _refuse_full_disk(out, len(layout), [row.series for row in rows])
    first = rows[0]
    with locked(out):
        sweep(out)
        write_dataset(out / GRID, layout.dataset())
        if layout.kind == "parcels" and first.series.form == "CIFTI":
            write_template(first.series.path, out / TEMPLATE)
        todo = [row for row in rows if not is_ingested(row)]
        progress.start("ingest", len(rows), "runs", done=len(rows) - len(todo))
        for _ in client.run(ingest_run, todo, weight=lambda row: float(row.series.n_trs)):
            progress.advance()
        progress.finish()
        _remove_other_runs(rows)
        return write_info(
            out,
            KIND,
            config=settings,
            made_from=made_from,
            facts={
                "space": first.files.space,
                "form": first.series.form,
                "layout": layout.kind,
                "shape": list(layout.shape),
                "affine": [list(row) for row in layout.affine],
                "tr_s": first.tr_s,
                "n_voxels": len(layout),
                "voxel_order": "Morton curve" if layout.kind == "volume" else "as in the source",
                "dead_voxels": "constant or not finite in a run: kept as zeros, flagged `dead` in that run",
                **facts,
                "runs": [run_record(row) for row in rows],
            },
        )


def _remove_other_runs(rows: Sequence[IngestRow]) -> None:
    """Remove what a killed ingest of more runs left; nothing but a whole run that carries its own name is touched."""
    kept = {row.path.resolve() for row in rows} | {row.series.path.resolve() for row in rows}
    for folder in sorted(rows[0].root.glob("*.zarr")):
        if folder.resolve() in kept:
            continue
        try:
            record = find_json(open_root(folder), "zarr.json")
        except StorageError:  # nothing says that it is ours
            continue
        attributes = (record.get("attributes") if isinstance(record, dict) else None) or {}
        is_run = {"run", "part_sha256", "fingerprint", "format_version"} <= set(attributes)
        if is_run and folder.name == f"{attributes['run']}.zarr":
            remove(folder)


def _checked(
    source: Path, out: Path, config: IngestConfig, mask: Path | None, events: Path | None
) -> tuple[list[RunFiles], list[Series], float, Path | None]:
    """Everything that headers and tables can show: runs, their headers, the repetition time, the raw tree."""
    runs = find_series(source, space=config.space, subject=config.subject, desc=config.clean.desc, without=out)
    refuse_missing(runs, need_mask=mask is None, need_confounds=bool(config.clean.components))
    series = [open_series(files) for files in runs]
    refuse_other_grids(series)
    if not isinstance(series[0], SeriesFacts):
        if config.clean.fwhm_mm:
            raise ConfigError(f"only volumes can be smoothed, not {series[0].form}", hint="--clean.fwhm-mm 0")
        if mask is not None or config.voxels != "brain":
            raise ConfigError(f"only volumes can be masked, not {series[0].form}", hint="leave --mask and --voxels out")
    tr_s = agreed_tr_s(runs, series, config.tr_s)
    tree = events_above(source) if events is None else events
    if tree is not None:
        refuse_short(runs, series, tr_s, events_end(tree))
    if not config.clean.changes_nothing:
        for files, facts in zip(runs, series, strict=True):
            refuse_unsolvable(read_confounds(files, facts.n_trs, tr_s, config.clean), files.bold)
    return runs, series, tr_s, tree


def summary(info: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know of a store, from its root record."""
    return {
        "simulated": info["simulated"],
        "runs": len(info["runs"]),
        "volumes": sum(run["n_trs"] for run in info["runs"]),
        "voxels": info["n_voxels"],
        "dead_voxels": max(run["n_dead"] for run in info["runs"]),
        "tr_s": info["tr_s"],
        "space": info["space"],
        "confounds": info["config"]["clean"]["confounds"],
        "high_pass": info["config"]["clean"]["high_pass"],
        "fingerprint": info["fingerprint"],
    }


def _inputs_of(files: RunFiles, series: Series) -> str:
    paths = (files.bold, files.right, files.mask, files.confounds)
    # Of the sidecar what decides the clock, where it does.
    said = {"start_s": files.sidecar_start_s, "tr_s": files.sidecar_tr_s if series.tr_s is None else None}
    clock = {name: value for name, value in said.items() if value is not None}
    named = [None if path is None else [path.name, _identity(path)] for path in paths]
    return fingerprint(named, files.member, *([clock] if clock else []))


def _identity(path: Path) -> str:
    if path.is_dir():  # a Zarr
        return fingerprint([[str(p.relative_to(path)), identity(p)] for p in sorted(path.rglob("*")) if p.is_file()])
    return identity(path)


def _grey_images(source: Path, runs: list[RunFiles]) -> list[Path]:
    """One image a subject; names every subject that has none."""
    by_subject = {files.run.subject: grey_matter(source, files) for files in runs}
    missing = [f"sub-{subject}" for subject, path in by_subject.items() if path is None]
    if missing:
        raise BoldError(
            f"no grey matter probability (*_label-GM_probseg.nii.gz) of {', '.join(missing)} in space {runs[0].space}",
            where=source,
            hint="fetch the anat folders; or give any probability image with --mask",
        )
    found = [path for path in by_subject.values() if path is not None]
    refuse_absent(source, found)
    return found


def _layout(series: Series, masks: list[Path], grey: list[Path], config: IngestConfig) -> Layout:
    if isinstance(series, SeriesFacts):
        return chosen_voxels(masks, series, grey, config.grey_above)
    layout = series.layout()
    assert layout is not None  # only volumes need a mask
    return layout


def _left_out(tree: Path, runs: list[RunFiles], subject: str | None) -> list[RunKey]:
    """Runs that were scanned but have no series here: fMRIPrep failed, or their files were not fetched."""
    found = {files.run for files in runs}
    wanted = None if subject is None else subject.removeprefix("sub-")
    return [run for run in raw_runs(tree) if run not in found and (wanted is None or run.subject == wanted)]


def _mask_words(mask: Path | None, config: IngestConfig) -> str:
    brain = "inside every run's brain mask" if mask is None else f"inside {mask.name}"
    grey = f", grey matter probability above {config.grey_above:g}" if config.voxels == "grey" else ""
    return brain + grey


def _refuse_full_disk(out: Path, n_columns: int, series: list[Series]) -> None:
    """Zarr hardly packs noise; runs that do not fit in memory go through temporary files."""
    stored = int(4.4 * n_columns * sum(facts.n_trs for facts in series))
    largest = max(8 * n_columns * facts.n_trs for facts in series)
    check_writable(out, stored + (2 * largest if largest > HELD_BYTES else 0))
