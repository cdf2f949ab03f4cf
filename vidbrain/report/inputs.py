"""What a report is made from: everything that lies under a data root, read once; what is missing says why."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.drivers import KINDS
from vidbrain.bold.store import BoldStore, open_bold
from vidbrain.bold.truth import measured_ceiling, open_truth
from vidbrain.encoding.result import open_result
from vidbrain.errors import AlignmentError, StorageError
from vidbrain.report.words import count, find, percent, score
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.atomic import read_json
from vidbrain.storage.info import INFO

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
    r, q : (voxel,) float64
        Mean r over held-out runs, and the false discovery rate at which it is above chance.
    alpha : (fold, voxel) float64
        Chosen penalties.
    dead : (voxel,) bool
        Constant voxels; they have no score.
    info
        Root record of the result.
    """

    name: str
    role: str
    title: str
    r: NDArray[np.float64]
    q: NDArray[np.float64]
    alpha: NDArray[np.float64]
    dead: NDArray[np.bool_]
    info: dict[str, Any]

    def edge_shares(self) -> tuple[float, float]:
        """Share of live voxels and folds whose penalty is the smallest or the largest of the grid."""
        chosen = self.alpha[:, ~self.dead]
        low, high = (np.isclose(chosen, edge, rtol=1e-4) for edge in (self.info["alphas"][0], self.info["alphas"][-1]))
        return (float(low.mean()), float(high.mean())) if chosen.size else (math.nan, math.nan)


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

    @property
    def title(self) -> str:
        """Shown."""
        return {"vqvae": "VQ-VAE", "gpt": "GPT"}.get(self.name, self.name)

    @property
    def n_parameters(self) -> int | None:
        """Trainable numbers."""
        return find(("n_parameters", "parameters", "n_params"), self.summary, self.info, self.config)

    @property
    def n_steps(self) -> int | None:
        """Optimizer steps: as recorded, else the last one with a loss."""
        recorded = find(("n_steps", "steps", "step"), self.summary, self.info)
        return recorded or int(max((steps[-1] for steps, _ in self.losses.values()), default=0)) or None

    @property
    def references(self) -> dict[str, float]:
        """Levels that a loss is compared with, by name."""
        level = find(("unigram_entropy", "unigram_entropy_nats", "unigram_loss"), self.summary, self.info)
        return {} if level is None else {"unigram entropy": float(level)}

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Other numbers worth a word, by name."""
        notes = []
        used = find(("code_use", "codes_used", "codebook_use"), self.summary, self.info)
        if used is not None:
            notes.append(("codes in use", percent(used) if used <= 1 else count(used)))
        notes += [(name, score(level, 3)) for name, level in self.references.items()]
        return notes

    def loss(self, split: str, position: int) -> float | None:
        """First (0) or last (-1) loss of a split."""
        return float(self.losses[split][1][position]) if split in self.losses else None


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
    data
        Counts of the shards; empty where there are none.
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
    data: dict[str, Any]
    artefacts: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether the BOLD was simulated: its record says so, or a planted truth exists."""
        return self.store.simulated or self.kinds is not None

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Voxels that have a score in every set."""
        return ~np.logical_or.reduce([scores.dead for scores in self.sets])

    def role(self, role: str) -> ScoreSet | None:
        """The set with a role, if there is one."""
        return next((scores for scores in self.sets if scores.role == role), None)

    @property
    def main(self) -> ScoreSet:
        """The set that the maps show: the trained model, else the first."""
        return self.role("trained") or self.sets[0]

    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds by stage, as the summary holds them."""
        stages = find(("wall_s", "stages", "stage_seconds", "seconds"), self.summary)
        seconds: dict[str, float] = {}
        for name, value in stages.items() if isinstance(stages, Mapping) else ():
            wall = find(("wall_s", "seconds"), value) if isinstance(value, Mapping) else value
            if isinstance(wall, int | float) and math.isfinite(wall):
                seconds[str(name)] = float(wall)
        return seconds

    def voxels(self) -> Iterator[tuple[str | None, NDArray[np.bool_]]]:
        """Kinds of live voxels with their masks, planted kinds first; without a truth, all of them as None."""
        if self.kinds is None:
            yield None, self.alive
            return
        for code in [*range(1, len(self.kind_names)), 0]:
            mask = self.alive & (self.kinds == code)
            if mask.any():
                yield self.kind_names[code], mask


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
        data=_data(inputs.data, missing),
        artefacts=_artefacts(inputs),
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
    made_from = result.info["made_from"].get("bold")
    dataset = result.dataset.load()
    ijk = np.stack([dataset[axis].values for axis in "ijk"], axis=1)
    if made_from != store.info["fingerprint"] or not np.array_equal(ijk, store.ijk):
        raise AlignmentError(
            f"the result was made from BOLD {made_from}, the store is {store.info['fingerprint']}",
            where=folder,
            likely="the BOLD store was made again after this result",
            hint="remove this result and give the command vidbrain encode again",
        )
    role = role_of(folder.name)
    return ScoreSet(
        name=folder.name,
        role=role,
        title=ROLES.get(role, folder.name),
        r=dataset["r_mean"].values.astype(np.float64),
        q=dataset["q"].values.astype(np.float64),
        alpha=dataset["fold_alpha"].values.astype(np.float64),
        dead=dataset["dead"].values.astype(bool),
        info=result.info,
    )


def _truth(
    root: Path | None, store: BoldStore, missing: dict[str, str]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...], NDArray[np.float64] | None]:
    if root is None or not root.is_dir():
        missing["truth"] = (
            "There is no planted truth beside these data, so planted maps and a noise ceiling are left out: "
            "people who play do not repeat a run, and without repeats no ceiling can be measured."
        )
        return None, (), None
    truth = open_truth(root).aligned(store)
    return truth.kind.astype(np.int64), KINDS, measured_ceiling(truth, store)


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
    except (OSError, ValueError, zipfile.BadZipFile) as error:
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


def _data(root: Path | None, missing: dict[str, str]) -> dict[str, Any]:
    if root is None or not (root / "dataset.json").is_file():
        missing["data"] = "The shards that the models were trained on do not lie beside this result."
        return {}
    manifest = open_manifest(root)
    segments = manifest.segments
    seconds = float((segments["n_frames"] / segments["fps"]).sum())
    named = segments["run"] != ""
    return {
        "frames": int(segments["n_frames"].sum()),
        "held_out_frames": int(segments.loc[segments["split"] == "val", "n_frames"].sum()),
        "hours": seconds / 3600,
        "fps": float(segments["n_frames"].sum()) / seconds,
        "height": manifest.height,
        "width": manifest.width,
        "recordings": int(segments["recording"].nunique()),
        "subjects": int(segments.loc[named, "subject"].nunique()),
        "sessions": int(segments.loc[named, ["subject", "session"]].drop_duplicates().shape[0]),
        "runs": int(segments.loc[named, "run"].nunique()),
        "segments": len(segments),
        "shards": int(segments["shard"].nunique()),
        "n_bytes": int(segments["n_bytes"].sum()),
    }


def _artefacts(inputs: ReportInputs) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    if inputs.data is not None and (inputs.data / "dataset.json").is_file():
        records["shards"] = _record(inputs.data / "dataset.json")
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
