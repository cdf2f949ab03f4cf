"""What a report is made from: everything that lies under a data root, read once; what is missing says why."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.simulation.drivers import KINDS
from vidbrain.bold.simulation.truth import measured_ceiling, open_truth
from vidbrain.bold.store import BoldStore, open_bold
from vidbrain.encoding.result import open_result
from vidbrain.errors import AlignmentError, EncodingError, StorageError
from vidbrain.report.evidence import ROLES, Evidence, ModelRecord, ScoreSet, role_of
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.atomic import read_json
from vidbrain.storage.info import INFO


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


def gather(inputs: ReportInputs) -> Evidence:
    """Read everything.

    Raises
    ------
    StorageError
        If there is no result or no BOLD store, or something there is damaged.
    AlignmentError
        If a result or the truth belongs to other voxels than the BOLD store.
    EncodingError
        If no voxel is alive.
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
    evidence = Evidence(
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
    if not evidence.alive.any():
        raise EncodingError(
            f"none of the {store.n_voxels} voxels has a score: all are constant or not finite",
            where=inputs.bold,
            hint="check the mask and the BOLD series, and give vidbrain bold ingest again",
        )
    return evidence


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
    for folder in sorted(_finished(runs), key=lambda path: (path.name != "vqvae", path.name)):
        if not (folder / "metrics.jsonl").is_file():
            continue
        summary = _record(folder / "summary.json") if (folder / "summary.json").is_file() else {}
        models[folder.name] = ModelRecord(name=folder.name, summary=summary, losses=_losses(folder / "metrics.jsonl"))
    if not models:
        missing["models"] = "No trained model lies beside this result; vidbrain train vqvae makes one."
    elif not any(model.kind == "gpt" for model in models.values()):
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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise StorageError(f"the samples cannot be read: {error}", where=path) from error
    for first, second in (("original", "reconstruction"), ("true", "sampled")):
        for name in (first, second):
            video = arrays.get(name)
            if video is not None and (video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3):
                raise StorageError(f"{name} is {video.dtype} {video.shape}, expected uint8 (N, T, H, W, 3)", where=path)
        if (first in arrays) != (second in arrays) or (first in arrays and arrays[first].shape != arrays[second].shape):
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
