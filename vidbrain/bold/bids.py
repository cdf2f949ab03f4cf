"""BIDS and fMRIPrep derivatives as they really are: found, paired and refused before any work starts.

Run numbers are integers (``run-1`` is ``run-01``), sessions are optional, ``__dup`` repeats are ignored, several spaces
may lie side by side, as volumes, surfaces (a GIFTI file a hemisphere) or grayordinates (CIFTI); confounds are called
``_timeseries`` or (before fMRIPrep 20.2) ``_regressors``, and a file of a DataLad data set may be a name without
content.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vidbrain.bold.datasets import dataset_root
from vidbrain.errors import BoldError, ConfigError
from vidbrain.records import RunKey
from vidbrain.storage.atomic import PART
from vidbrain.video.gamelogs import is_absent

PREPROCESSED = "preproc"
"""What fMRIPrep calls its series; without `desc-` they are as the scanner left them."""
EXPORTED = "clean"
"""What `vidbrain.bold.export` calls its series."""
_VOLUME = re.compile(r"^(?P<stem>sub-.+?_)(?:desc-(?P<desc>[0-9a-zA-Z]+)_)?bold\.nii(?:\.gz)?$")
_SURFACE = re.compile(r"^(?P<stem>sub-.+?)(?:_bold)?\.func\.gii$")
_CIFTI = re.compile(r"^(?P<stem>sub-.+?)(?:_[a-z]+)?\.[dp]tseries\.nii$")
_ENTITIES = re.compile(r"(?:^|_)(space|res|cohort|den|hemi|seg|atlas|desc|stat)-([0-9a-zA-Z]+)")
_IN_SPACE = ("cohort", "res", "den", "seg", "atlas", "stat")
_MISSING_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of one run in one space.

    Attributes
    ----------
    run
        Which run.
    space
        As fMRIPrep's own option writes it: ``MNI152NLin2009cAsym`` or ``MNI152NLin2009cAsym:res-2``; ``"func"`` where
        the name has no space.
    bold
        The series; of a surface the left hemisphere.
    mask, confounds, sidecar
        Brain mask, confounds table and JSON of the series; None where there is none.
    right
        The right hemisphere of a surface.
    member
        Name of the series in a file that holds several (HDF5).
    inherited
        JSON files further up that hold for the series too (BIDS' inheritance), the nearest first.
    """

    run: RunKey
    space: str
    bold: Path
    mask: Path | None
    confounds: Path | None
    sidecar: Path | None
    right: Path | None = None
    member: str = ""
    inherited: tuple[Path, ...] = ()

    @property
    def form(self) -> str:
        """``"volume"``, ``"surface"``, ``"cifti"`` or ``"array"``."""
        name = self.bold.name
        if name.endswith(".gii"):
            return "surface"
        if name.endswith("tseries.nii"):
            return "cifti"
        return "volume" if name.endswith((".nii", ".nii.gz")) else "array"

    @property
    def paths(self) -> list[Path]:
        """Every file that is there."""
        return [p for p in (self.bold, self.right, self.mask, self.confounds, self.sidecar) if p is not None]

    @property
    def sidecar_tr_s(self) -> float | None:
        """Repetition time of the JSON file or, where it says none, of the nearest that is inherited."""
        return self._seconds("RepetitionTime")

    @property
    def sidecar_start_s(self) -> float | None:
        """Time on the run's clock that the first volume stands for (``StartTime``), where the JSON file says one.

        fMRIPrep writes it where it corrected slices: the time of the slice that the others were brought to.
        """
        return self._seconds("StartTime")

    def _seconds(self, field: str) -> float | None:
        for path in (self.sidecar, *self.inherited):
            if path is not None and (value := _said(path, field)) is not None:
                return value
        return None


def _said(path: Path, field: str) -> float | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig")).get(field)
    except (ValueError, AttributeError, OSError) as error:
        raise BoldError(
            f"the sidecar is not a JSON object: {error}", where=path, hint="mend the file, or take it away"
        ) from error
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BoldError(
            f"{field} of the sidecar is {value!r}, not a number of seconds",
            where=path,
            hint="mend the file",
        )
    return float(value)


def find_runs(
    source: str | Path, *, space: str | None = None, subject: str | None = None, desc: str = PREPROCESSED
) -> list[RunFiles]:
    """Find every series below a folder of derivatives.

    Where nothing is preprocessed, series as the scanner left them are taken (``…_bold.nii.gz`` of a raw BIDS tree), and
    then what `vidbrain.bold.export` wrote (``desc-clean``).

    Parameters
    ----------
    source
        Folder as fMRIPrep writes it.
    space
        Which space, where there are several.
    subject
        Label without ``sub-``; default all.
    desc
        What the volumes are called: ``preproc``, or ``smoothAROMAnonaggr``.

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
    paths = [path for path in sorted(source.rglob("sub-*")) if "__dup" not in path.name and PART not in path.name]
    volumes = [(path, match) for path in paths if (match := _VOLUME.match(path.name))]
    wanted = [(path, match) for path, match in volumes if match["desc"] == desc]
    surfaces = [path for path in paths if _SURFACE.match(path.name)]
    grayordinates = [path for path in paths if _CIFTI.match(path.name)]
    if desc == PREPROCESSED and not (wanted or surfaces or grayordinates):
        wanted = [(path, match) for path, match in volumes if match["desc"] is None]
        wanted = wanted or [(path, match) for path, match in volumes if match["desc"] == EXPORTED]
    found = [_volume(path, match["stem"]) for path, match in wanted]
    if desc == PREPROCESSED:
        found += _surfaces(surfaces) + [_files(path) for path in grayordinates]
    runs = choose_space(source, found, space=space, subject=subject, what=f"no *_desc-{desc}_bold.nii.gz below it")
    refuse_absent(source, [path for files in runs for path in files.paths])
    return runs


def choose_space(
    source: Path, found: list[RunFiles], *, space: str | None, subject: str | None, what: str
) -> list[RunFiles]:
    """Keep the series of one space.

    Parameters
    ----------
    source
        Folder or file, for messages.
    found
        Series of any space.
    space, subject
        As in `find_runs`.
    what
        What was looked for, for the message when there is nothing.

    Raises
    ------
    BoldError
        If nothing is left, several spaces are, or a run is there twice.
    """
    if subject is not None:
        found = [files for files in found if files.run.subject == subject.removeprefix("sub-")]
    if not found:
        whose = "" if subject is None else f" of subject {subject}"
        raise BoldError(
            f"no preprocessed BOLD{whose}: {what}",
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
    return sorted(runs, key=lambda files: run_order(files.run))


def run_order(run: RunKey) -> tuple[str, str, str, int]:
    """How runs are sorted: those without session or number first."""
    return run.subject, run.session or "", run.task, -1 if run.run is None else run.run


def run_of(path: Path, name: str | None = None) -> RunKey:
    """Which run a file belongs to.

    Raises
    ------
    BoldError
        If its name does not say.
    """
    try:
        return RunKey.parse(name or path.name)
    except ConfigError as error:
        raise BoldError(error.message, where=path, hint="name it sub-…_task-…_run-…") from error


def space_of(name: str) -> str:
    """The space that a file name tells, with what else tells such files apart."""
    entities = dict(_ENTITIES.findall(name))
    extra = "".join(f":{key}-{entities[key]}" for key in _IN_SPACE if key in entities)
    desc = entities.get("desc", PREPROCESSED)
    return entities.get("space", "func") + extra + ("" if desc in _VOLUME_DESCS else f":desc-{desc}")


_VOLUME_DESCS = (PREPROCESSED, "smoothAROMAnonaggr")


def _volume(bold: Path, stem: str) -> RunFiles:
    files = _files(bold)
    return replace(
        files,
        mask=_first(bold.with_name(f"{stem}desc-brain_mask.nii{end}") for end in (".gz", "")),
    )


def _files(bold: Path) -> RunFiles:
    # Confounds belong to the run, whatever the space.
    stem = re.sub(r"(_[a-zA-Z]+)?(\.func\.gii|\.[dp]tseries\.nii|\.nii\.gz|\.nii)$", "", bold.name)
    run_stem = _ENTITIES.sub("", stem)
    sidecar = re.sub(r"(\.func\.gii|\.[dp]tseries\.nii|\.nii\.gz|\.nii)$", ".json", bold.name)
    return RunFiles(
        run=run_of(bold),
        space=space_of(bold.name),
        bold=bold,
        mask=None,
        confounds=_first(
            bold.with_name(f"{run_stem}_desc-confounds_{suffix}.tsv") for suffix in ("timeseries", "regressors")
        ),
        sidecar=_first([bold.with_name(sidecar)]),
        inherited=_inherited(bold, sidecar),
    )


def run_files(bold: Path) -> RunFiles:
    """The files that belong to one volume or one series of grayordinates.

    Raises
    ------
    BoldError
        If it is one hemisphere of a surface, or its name does not say which run it is.
    """
    if _SURFACE.match(bold.name):
        raise BoldError("one hemisphere is no run", where=bold, hint="give the folder that holds both")
    match = _VOLUME.match(bold.name)
    return _volume(bold, match["stem"]) if match else _files(bold)


def _inherited(bold: Path, sidecar: str) -> tuple[Path, ...]:
    root = dataset_root(bold)
    folders = [bold.parent]
    while root is not None and folders[-1] != root:
        folders.append(folders[-1].parent)
    mine = set(sidecar.removesuffix(".json").split("_"))
    found: list[Path] = []
    for folder in folders:
        here = [path for path in folder.glob("*bold.json") if set(path.stem.split("_")) <= mine]
        # Of two in a folder, that which names more is nearer.
        found += sorted(here, key=lambda path: (-path.stem.count("_"), path.name))
    return tuple(path for path in found if path.name != sidecar)


def _surfaces(paths: list[Path]) -> list[RunFiles]:
    """Pair the hemispheres; names every one that has no partner."""
    pairs: dict[str, dict[str, Path]] = {}
    for path in paths:
        hemisphere = dict(_ENTITIES.findall(path.name)).get("hemi", "")
        pairs.setdefault(str(path.with_name(re.sub(r"_hemi-[LR]", "", path.name))), {})[hemisphere] = path
    single = [next(iter(pair.values())).name for pair in pairs.values() if set(pair) != {"L", "R"}]
    if single:
        raise BoldError(
            f"{len(single)} surface files lack the other hemisphere: {_some(single)}",
            where=paths[0].parent,
            hint="fetch hemi-L and hemi-R of each run",
        )
    return [replace(_files(pair["L"]), right=pair["R"]) for pair in pairs.values()]


def _first(paths: Iterable[Path]) -> Path | None:
    # A dangling link counts as there: absent content has an error of its own.
    return next((path for path in paths if path.is_symlink() or path.exists()), None)


def refuse_absent(source: Path, paths: list[Path]) -> None:
    """Name every file whose content DataLad has not fetched.

    Raises
    ------
    BoldError
        If there are any.
    """
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
        if need_mask and files.form == "volume" and files.mask is None:
            missing.append(f"{files.run}: *_desc-brain_mask.nii.gz")
        if need_confounds and files.confounds is None:
            missing.append(f"{files.run}: *_desc-confounds_timeseries.tsv")
    if missing:
        raise BoldError(
            f"{len(missing)} files are missing: {_some(missing)}",
            where=runs[0].bold.parent,
            hint="fetch them; or give a mask with --mask, or --clean.confounds none --clean.high-pass none",
        )


def grey_matter(source: str | Path, files: RunFiles) -> Path | None:
    """Probability of grey matter that fMRIPrep wrote for a run's subject in its space, or None."""
    name, *extra = files.space.split(":")
    entities = "" if name == "T1w" else f"_space-{name}"
    wanted = [f"{entities}_{part}" for part in extra if part.startswith("res-")] + [entities]
    for part in wanted:
        for path in sorted(Path(source).rglob(f"anat/sub-{files.run.subject}*_label-GM_probseg.nii.gz")):
            if _ANATOMY.sub("", path.name) == f"{part}_label-GM_probseg.nii.gz":
                return path
    return None


_ANATOMY = re.compile(r"^sub-[0-9a-zA-Z]+(?:_(?:ses|acq|run|rec|desc)-[0-9a-zA-Z]+)*")
