"""fMRIPrep derivatives as they really are: found, paired and refused before any work starts.

Run numbers are integers (``run-1`` is ``run-01``), sessions are optional, ``__dup`` repeats are ignored, several spaces
may lie side by side, confounds are called ``_timeseries`` or (before fMRIPrep 20.2) ``_regressors``, and a file of a
DataLad data set may be a name without content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vidbrain.errors import BoldError, ConfigError
from vidbrain.records import RunKey
from vidbrain.storage.atomic import PART
from vidbrain.video.gamelogs import is_absent

_SERIES = re.compile(r"^(?P<stem>.+_)desc-preproc_bold\.nii(\.gz)?$")
_ENTITIES = re.compile(r"(?:^|_)(space|res|cohort)-([0-9a-zA-Z]+)")
_MISSING_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What fMRIPrep wrote for one run in one space.

    Attributes
    ----------
    run
        Which run.
    space
        As fMRIPrep's own option writes it: ``MNI152NLin2009cAsym`` or ``MNI152NLin2009cAsym:res-2``; ``"func"`` where
        the name has no space.
    bold
        The preprocessed series.
    mask, confounds, sidecar
        Brain mask, confounds table and JSON of the series; None where there is none.
    """

    run: RunKey
    space: str
    bold: Path
    mask: Path | None
    confounds: Path | None
    sidecar: Path | None

    @property
    def sidecar_tr_s(self) -> float | None:
        """Repetition time of the JSON file, where it says one."""
        if self.sidecar is None:
            return None
        try:
            value = json.loads(self.sidecar.read_text(encoding="utf-8")).get("RepetitionTime")
        except (ValueError, AttributeError, OSError) as error:
            raise BoldError(f"the sidecar is not a JSON object: {error}", where=self.sidecar) from error
        return float(value) if isinstance(value, int | float) else None


def find_runs(source: str | Path, *, space: str | None = None, subject: str | None = None) -> list[RunFiles]:
    """Find every preprocessed run below a folder of derivatives.

    Parameters
    ----------
    source
        Folder as fMRIPrep writes it.
    space
        Which space, where there are several.
    subject
        Label without ``sub-``; default all.

    Returns
    -------
    list of RunFiles
        In the order of subject, session, task and run.

    Raises
    ------
    BoldError
        If there is no run, no such space or more than one, a run twice, or content that DataLad has not fetched.
    """
    source = Path(source)
    if not source.is_dir():
        raise BoldError(
            "there is no such folder of derivatives", where=source, hint="give the folder that fMRIPrep wrote"
        )
    found = [
        _run_files(path, match["stem"])
        for path in sorted(source.rglob("*_desc-preproc_bold.nii*"))
        if "__dup" not in path.name and PART not in path.name and (match := _SERIES.match(path.name))
    ]
    if subject is not None:
        found = [files for files in found if files.run.subject == subject.removeprefix("sub-")]
    if not found:
        whose = "" if subject is None else f" of subject {subject}"
        raise BoldError(
            f"no preprocessed BOLD{whose}: no *_desc-preproc_bold.nii.gz below it",
            where=source,
            hint="give the folder that fMRIPrep wrote, or make one with `vidbrain bold simulate`",
        )
    spaces = sorted({files.space for files in found})
    if space is None and len(spaces) > 1:
        raise BoldError(
            f"several spaces lie side by side: {', '.join(spaces)}",
            where=source,
            hint=f"choose one: --space {spaces[0]}",
        )
    if space is not None and space not in spaces:
        raise BoldError(f"no run in space {space!r}; there are {', '.join(spaces)}", where=source)
    runs = [files for files in found if files.space == (space or spaces[0])]
    seen: dict[RunKey, Path] = {}
    for files in runs:
        if files.run in seen:
            raise BoldError(
                f"{files.run} is there twice: {seen[files.run].name} and {files.bold.name}",
                where=files.bold.parent,
                hint="move one of them away",
            )
        seen[files.run] = files.bold
    _refuse_absent(
        source, [path for f in runs for path in (f.bold, f.mask, f.confounds, f.sidecar) if path is not None]
    )
    return sorted(runs, key=lambda files: _order(files.run))


def _order(run: RunKey) -> tuple[str, str, str, int]:
    return run.subject, run.session or "", run.task, -1 if run.run is None else run.run


def _run_files(bold: Path, stem: str) -> RunFiles:
    entities = dict(_ENTITIES.findall(stem))
    space = entities.get("space", "func")
    space += "".join(f":{name}-{entities[name]}" for name in ("cohort", "res") if name in entities)
    # Confounds belong to the run, whatever the space.
    run_stem = _ENTITIES.sub("", stem.rstrip("_"))
    try:
        run = RunKey.parse(bold.name)
    except ConfigError as error:
        raise BoldError(error.message, where=bold) from error
    return RunFiles(
        run=run,
        space=space,
        bold=bold,
        mask=_first(bold.with_name(f"{stem}desc-brain_mask.nii{end}") for end in (".gz", "")),
        confounds=_first(
            bold.with_name(f"{run_stem}_desc-confounds_{suffix}.tsv") for suffix in ("timeseries", "regressors")
        ),
        sidecar=_first([bold.with_name(f"{stem}desc-preproc_bold.json")]),
    )


def _first(paths: Iterable[Path]) -> Path | None:
    # A dangling link counts as there: absent content has an error of its own.
    return next((path for path in paths if path.is_symlink() or path.exists()), None)


def _refuse_absent(source: Path, paths: list[Path]) -> None:
    absent = [path for path in paths if is_absent(path)]
    if absent:
        names = [str(path.relative_to(source)) for path in absent]
        raise BoldError(
            f"{len(absent)} files are names without content: {_some(names)}",
            where=source,
            likely="a DataLad data set whose content has not been fetched",
            hint=f"datalad get -d {source} {' '.join(names[:3])}{' …' if len(names) > 3 else ''}",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MISSING_SHOWN} more" if len(names) > _MISSING_SHOWN else ""
    return ", ".join(names[:_MISSING_SHOWN]) + more


def refuse_missing(runs: list[RunFiles], *, need_mask: bool, need_confounds: bool) -> None:
    """Name every missing piece at once.

    Raises
    ------
    BoldError
        If a run lacks its brain mask or its confounds table.
    """
    missing = []
    for files in runs:
        if need_mask and files.mask is None:
            missing.append(f"{files.run}: *_desc-brain_mask.nii.gz")
        if need_confounds and files.confounds is None:
            missing.append(f"{files.run}: *_desc-confounds_timeseries.tsv")
    if missing:
        raise BoldError(
            f"{len(missing)} files are missing: {_some(missing)}",
            where=runs[0].bold.parent,
            hint="fetch them; or give a mask with --mask, or --clean.confounds none",
        )


def events_above(source: str | Path) -> Path | None:
    """The BIDS tree that holds ``derivatives/<source>``, where it has events; else None."""
    source = Path(source).resolve()
    if source.parent.name != "derivatives":
        return None
    root = source.parent.parent
    return root if any(_event_files(root)) else None


def events_end(bids_root: str | Path) -> dict[RunKey, float]:
    """Second at which the last event of each run ends, on the run's clock.

    Rows without a recording count: they were played, and their volumes exist.

    Raises
    ------
    BoldError
        If there are no events, or a table cannot be read or has no onset and duration.
    """
    ends: dict[RunKey, float] = {}
    for path in _event_files(Path(bids_root)):
        try:
            table = pd.read_csv(path, sep="\t")
            ends[RunKey.parse(path.name)] = float((table["onset"] + table["duration"]).max())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BoldError(
                f"the events table cannot be read: {type(error).__name__}: {error}",
                where=path,
                likely="a damaged table, or a DataLad file whose content has not been fetched",
            ) from error
    if not ends:
        raise BoldError("there are no *_events.tsv files", where=bids_root, hint="give the root of the BIDS tree")
    return ends


def _event_files(root: Path) -> list[Path]:
    paths = [*root.glob("sub-*/func/*_events.tsv"), *root.glob("sub-*/ses-*/func/*_events.tsv")]
    return sorted(path for path in paths if "_desc-" not in path.name and "__dup" not in path.name)


def is_simulated(source: str | Path) -> bool:
    """Whether the derivatives say of themselves that they are simulated."""
    return "simulated" in str(description(source)).lower()


def description(source: str | Path) -> dict[str, Any]:
    """``dataset_description.json`` of the derivatives, or an empty mapping."""
    try:
        value = json.loads((Path(source) / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def identity(path: Path, edge: int = 1 << 16) -> str:
    """Name a file's content without reading all of it: size, first and last 64 KiB.

    The end of a gzip file holds the checksum and the length of everything before it.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        digest.update(stream.read(edge))
        if size > edge:
            stream.seek(max(edge, size - edge))
            digest.update(stream.read(edge))
    return digest.hexdigest()[:16]
