"""What a report is made from: everything that lies under a data root, read once; what is missing says why."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.store import BoldStore, open_bold
from vidbrain.bold.truth import measured_ceiling, open_truth
from vidbrain.encoding.result import open_result
from vidbrain.errors import AlignmentError, StorageError
from vidbrain.storage.atomic import read_json
from vidbrain.storage.info import INFO, read_info

ROLES = {
    "trained": "trained model",
    "untrained": "same model, untrained",
    "pixels": "pixels",
    "motion": "motion energy",
    "drivers": "planted drivers",
}
"""What a feature set can be, in the order of the report, with the name shown."""

_SPELLINGS = (
    ("untrained", ("untrained", "random")),
    ("drivers", ("driver", "truth", "planted")),
    ("motion", ("motion",)),
    ("pixels", ("pixel",)),
    ("trained", ("trained", "gpt", "vqvae", "model")),
)
"""Parts of a set's name that give its role; the first that fits counts."""


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Where the artefacts are; only `results` and `bold` must exist.

    Attributes
    ----------
    name
        Of the data set, for the title.
    results
        Folder with one encoding result a feature set.
    bold
        The BOLD store that the results were made from.
    truth
        What was planted, of simulated data.
    data, codes
        Shards, and codes in the shards' layout.
    runs
        Folder of trained models and samples.
    features
        Folder of feature sets.
    summary
        JSON with the wall seconds of the stages.
    """

    name: str
    results: Path
    bold: Path
    truth: Path | None = None
    data: Path | None = None
    codes: Path | None = None
    runs: Path | None = None
    features: Path | None = None
    summary: Path | None = None

    @classmethod
    def of(cls, root: str | Path) -> ReportInputs:
        """Name the artefacts of a data root in the usual layout."""
        root = Path(root)
        return cls(
            name=root.resolve().name,
            results=root / "results",
            bold=root / "bold",
            truth=root / "game" / "derivatives" / "simulated-fmriprep" / "truth",
            data=root / "data",
            codes=root / "codes",
            runs=root / "runs",
            features=root / "features",
            summary=root / "summary.json",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSet:
    """Scores of one feature set.

    Attributes
    ----------
    name
        Its folder.
    role
        Key of `ROLES`, or ``"other"``.
    title
        Shown.
    r, alpha, q : (voxel,) float64
        Mean r over held-out runs, chosen penalty, and q of r; NaN where unknown.
    info
        Root record of the result.
    """

    name: str
    role: str
    title: str
    r: NDArray[np.float64]
    alpha: NDArray[np.float64]
    q: NDArray[np.float64]
    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelRecord:
    """What a run folder says of one trained model.

    Attributes
    ----------
    name
        Its folder.
    info, config, summary
        Its JSON records; empty where there is none.
    losses
        ``(steps, losses)`` by split.
    """

    name: str
    info: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any]
    losses: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything that the page shows.

    Attributes
    ----------
    name
        Of the data set.
    sets
        Feature sets in the order of `ROLES`.
    store
        The BOLD store: grid, affine, counts.
    kinds : (voxel,) int64
        Planted kind of each voxel, or None.
    kind_names
        By code.
    ceiling : (voxel,) float64
        Noise ceiling, or None.
    models
        By name.
    samples
        Arrays of the samples file, or None.
    artefacts
        Root records in the order of the data flow, by shown name.
    summary
        Of the whole path; empty where there is none.
    missing
        Why something is not shown, by panel: ``"truth"``, ``"samples"``, ``"models"``, ``"times"``, ``"data"``.
    """

    name: str
    sets: list[ScoreSet]
    store: BoldStore
    kinds: NDArray[np.int64] | None
    kind_names: tuple[str, ...]
    ceiling: NDArray[np.float64] | None
    models: dict[str, ModelRecord]
    samples: dict[str, NDArray[Any]] | None
    artefacts: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether the BOLD was simulated: its record says so, or a planted truth exists."""
        return self.kinds is not None or is_simulated(self.store.info)

    def role(self, role: str) -> ScoreSet | None:
        """The set with a role, if there is one."""
        return next((scores for scores in self.sets if scores.role == role), None)

    @property
    def main(self) -> ScoreSet:
        """The set that the maps show: the trained model, else the first."""
        return self.role("trained") or self.sets[0]

    def voxels(self) -> Iterator[tuple[str | None, NDArray[np.bool_]]]:
        """Kinds of voxels with their masks, planted kinds first; without a truth, all voxels as None."""
        if self.kinds is None:
            yield None, np.ones(self.store.n_voxels, bool)
            return
        codes = [code for code in range(1, len(self.kind_names)) if (self.kinds == code).any()]
        for code in [*codes, 0]:
            if (self.kinds == code).any():
                yield self.kind_names[code], self.kinds == code


def is_simulated(info: Mapping[str, Any]) -> bool:
    """Whether a root record, or anything nested in it, says that its data are simulated."""
    for key, value in info.items():
        if "simulated" in key.lower() and value not in (False, None, "", 0):
            return True
        if isinstance(value, str) and "simulated" in value.lower():
            return True
        if isinstance(value, Mapping) and is_simulated(value):
            return True
    return False


def role_of(name: str) -> str:
    """What a feature set is, from its name."""
    lower = name.lower()
    return next((role for role, parts in _SPELLINGS if any(part in lower for part in parts)), "other")


def gather(inputs: ReportInputs) -> Evidence:
    """Read everything.

    Raises
    ------
    StorageError
        If there is no result or no BOLD store, or something there is damaged.
    AlignmentError
        If a result or the truth belongs to other voxels than the BOLD store.
    """
    folders = _finished(inputs.results)
    if not folders:
        raise StorageError(
            "there is no encoding result to report on",
            where=inputs.results,
            hint="vidbrain encode … makes one; vidbrain demo runs the whole path",
        )
    store = open_bold(inputs.bold)
    sets = sorted((_scores(folder, store) for folder in folders), key=lambda s: (_rank(s.role), s.name))
    missing: dict[str, str] = {}
    kinds, kind_names, ceiling = _truth(inputs.truth, store, missing)
    models = _models(inputs.runs, missing)
    return Evidence(
        name=inputs.name,
        sets=_distinct(sets),
        store=store,
        kinds=kinds,
        kind_names=kind_names,
        ceiling=ceiling,
        models=models,
        samples=_samples(inputs.runs, missing),
        artefacts=_artefacts(inputs, missing),
        summary=_summary(inputs.summary, missing),
        missing=missing,
    )


def _finished(folder: Path | None) -> list[Path]:
    """Folders below that hold a root record, by name; unfinished ones are not read."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if (path / INFO).is_file())


def _rank(role: str) -> int:
    return list(ROLES).index(role) if role in ROLES else len(ROLES)


def _distinct(sets: list[ScoreSet]) -> list[ScoreSet]:
    """Show the folder's name too where two sets have the same role."""
    titles = [scores.title for scores in sets]
    return [
        ScoreSet(**{**vars(s), "title": f"{s.title} ({s.name})" if titles.count(s.title) > 1 else s.title})
        for s in sets
    ]


def _scores(folder: Path, store: BoldStore) -> ScoreSet:
    result = open_result(folder)
    dataset = result.dataset
    n_voxels = int(dataset.sizes["voxel"])
    if n_voxels != store.n_voxels:
        raise AlignmentError(
            f"the result has {n_voxels} voxels, the BOLD store has {store.n_voxels}",
            where=folder,
            likely="the result was made from another BOLD store",
            hint="give the command vidbrain encode again with this BOLD store",
        )
    role = role_of(folder.name)
    values = {
        name: np.asarray(dataset[source].values, np.float64) if source in dataset else np.full(n_voxels, math.nan)
        for name, source in (("r", "r_mean"), ("alpha", "alpha"), ("q", "q"))
    }
    return ScoreSet(name=folder.name, role=role, title=ROLES.get(role, folder.name), info=dict(result.info), **values)


def _truth(
    root: Path | None, store: BoldStore, missing: dict[str, str]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...], NDArray[np.float64] | None]:
    if root is None or not root.is_dir():
        missing["truth"] = (
            "There is no planted truth beside these data, so planted maps and a noise ceiling are left out: "
            "people who play do not repeat a run, and without repeats no ceiling can be measured."
        )
        return None, (), None
    truth = open_truth(root)
    kinds = np.asarray(truth.kind, np.int64)
    if len(kinds) != store.n_voxels:
        raise AlignmentError(
            f"the planted truth has {len(kinds)} voxels, the BOLD store has {store.n_voxels}",
            where=root,
            likely="the BOLD store was made from another simulation",
            hint="give the commands vidbrain bold simulate and vidbrain bold ingest again",
        )
    ceiling = np.asarray(measured_ceiling(truth, store), np.float64)
    return kinds, ("noise", "visual", "motor", "event"), np.where(np.isfinite(ceiling), ceiling, 0.0)


def _models(runs: Path | None, missing: dict[str, str]) -> dict[str, ModelRecord]:
    models = {}
    for folder in _finished(runs):
        if not (folder / "metrics.jsonl").is_file():
            continue
        records = {
            name: read_json(folder / f"{name}.json") if (folder / f"{name}.json").is_file() else {}
            for name in ("info", "config", "summary")
        }
        models[folder.name] = ModelRecord(name=folder.name, losses=_losses(folder / "metrics.jsonl"), **records)
    if not models:
        missing["models"] = "No trained model lies beside this result; vidbrain train vqvae makes one."
    elif not any("gpt" in name.lower() for name in models):
        missing["gpt"] = "There is no GPT beside this result; vidbrain train gpt makes one."
    return models


def _losses(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step, split, loss = int(row["step"]), str(row["split"]), row.get("loss")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                continue  # a killed run may end in half a line
            raise StorageError(f"line {number} is not a record of a loss: {error}", where=path) from error
        if loss is not None and math.isfinite(loss):
            # Steps after the last checkpoint are trained again by a resumed run: the later record counts.
            found.setdefault(split, {})[step] = float(loss)
    return {
        split: (np.array(sorted(rows), np.float64), np.array([rows[step] for step in sorted(rows)]))
        for split, rows in found.items()
    }


def _samples(runs: Path | None, missing: dict[str, str]) -> dict[str, NDArray[Any]] | None:
    path = None if runs is None else runs / "samples" / "samples.npz"
    if path is None or not path.is_file():
        missing["samples"] = "No samples were drawn from the models, so there are no frames to show."
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise StorageError(f"the samples cannot be read: {error}", where=path) from error
    for first, second in (("original", "reconstruction"), ("true", "sampled")):
        for name in (first, second):
            video = arrays.get(name)
            if video is not None and (video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3):
                raise StorageError(f"{name} is {video.dtype} {video.shape}, expected uint8 (N, T, H, W, 3)", where=path)
        if (first in arrays) != (second in arrays) or (
            first in arrays and arrays[first].shape != arrays[second].shape
        ):
            raise StorageError(f"{first} and {second} do not belong together", where=path)
    return arrays


def _artefacts(inputs: ReportInputs, missing: dict[str, str]) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    if inputs.data is not None and (inputs.data / "dataset.json").is_file():
        records["shards"] = read_info(inputs.data, "shards", name="dataset.json")
    else:
        missing["data"] = "The shards do not lie beside this result."
    if inputs.bold is not None and (inputs.bold / INFO).is_file():
        records["BOLD"] = _record(inputs.bold / INFO)
    for title, folder in (("model", inputs.runs), ("features", inputs.features), ("result", inputs.results)):
        for path in _finished(folder):
            records[f"{title} {path.name}"] = _record(path / INFO)
        if title == "model" and inputs.codes is not None and (inputs.codes / "dataset.json").is_file():
            records["codes"] = _record(inputs.codes / "dataset.json")
    return records


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict):
        raise StorageError("the root record is not a mapping", where=path)
    return record


def _summary(path: Path | None, missing: dict[str, str]) -> dict[str, Any]:
    if path is None or not path.is_file():
        missing["times"] = "Stages were not timed together; vidbrain demo writes their wall seconds."
        return {}
    return _record(path)
