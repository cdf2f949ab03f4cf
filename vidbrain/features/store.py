"""The feature store: one Zarr for each layer and run, under one root record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.config import did_you_mean, fingerprint
from vidbrain.errors import AlignmentError, ModelError, StorageError
from vidbrain.storage.info import INFO, is_done, read_info
from vidbrain.storage.objects import Root
from vidbrain.storage.roots import locate, safe_name
from vidbrain.storage.zarrs import open_dataset, write_dataset
from vidbrain.video.clock import MIDDLE, volume_times

KIND = "features"


@dataclass(frozen=True)
class Standing:
    """A finished set in whose place another one is asked for, from the same source, settings and inputs.

    Attributes
    ----------
    record
        Its root record.
    whole
        Whether it has every layer that is asked for.
    settings, made_from
        Of the set once the layers that it lacks are added.
    """

    record: dict[str, Any]
    whole: bool
    settings: dict[str, Any]
    made_from: dict[str, str]


def standing_record(root: str | Path, settings: Mapping[str, Any], made_from: Mapping[str, str]) -> Standing | None:
    """Compare what is asked for with the finished set that lies there; None where there is none.

    Raises
    ------
    ResumeError
        If a set lies there that was made otherwise; the message names what differs.
    """
    if not (Path(root) / INFO).is_file():
        return None
    record = read_info(root, KIND)
    old = {str(layer["name"]): layer for layer in record["config"].get("layers", [])}
    asked = {str(layer["name"]): layer for layer in settings["layers"]}
    config = {**settings, "layers": list({**old, **asked}.values())}
    inputs = {**record["made_from"], **made_from}
    same = (
        fingerprint({**record["config"], "layers": config["layers"]}) == fingerprint(config)
        and all(fingerprint(old[name]) == fingerprint(asked[name]) for name in old.keys() & asked.keys())
        and all(inputs[name] == digits for name, digits in record["made_from"].items())
    )
    if not same:
        is_done(root, KIND, config=config, made_from=inputs)  # raises, and says what differs
    return Standing(record, asked.keys() <= old.keys(), config, inputs)


@dataclass(frozen=True)
class FeatureStore:
    """An opened, finished set of features.

    Attributes
    ----------
    root
        Its folder or URL.
    info
        The root record: source, window, pooling, TR, layers, and the fingerprints of data set and weights.
    """

    root: Path | Root
    info: dict[str, Any]

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return [str(layer["name"]) for layer in self.info["config"]["layers"]]

    @property
    def runs(self) -> list[str]:
        """Labels of the runs."""
        return list(self.info["runs"])

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""
        return float(self.info["config"]["tr_s"])

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        return str(self.info["fingerprint"])

    def read(self, layer: str, run: str) -> xr.Dataset:
        """Features of one layer during one run, in memory.

        Returns
        -------
        xarray.Dataset
            ``features (tr, feature)`` float32; ``valid (tr)`` bool, False where a volume has no video (its features
            are 0 and must be masked); ``time_s (tr)``, the time that each stands for. From video also
            ``n_frames (tr)``, the frames in each volume, and ``recording (tr)``, the position in the attribute
            ``recordings`` of the one that most of them are of, -1 for none. Attributes: ``tr_s``, ``layer``, ``run``;
            from video also ``row_s`` (what one row of the source stands for), ``window_s`` (its receptive field),
            ``sees_before_s``, ``sees_after_s``.

        Raises
        ------
        ModelError
            If there is no such layer.
        AlignmentError
            If there is no such run.
        """
        if layer not in self.layers:
            raise ModelError(
                f"these features have no layer {layer!r}{did_you_mean(layer, self.layers)}",
                where=self.root,
                hint=f"layers: {', '.join(self.layers)}",
            )
        if run not in self.runs:
            raise AlignmentError(
                f"these features have no run {run!r}{did_you_mean(run, self.runs)}",
                where=self.root,
                hint="runs are those of the shards that the features were made from",
            )
        path = self.root / safe_name(layer) / f"{safe_name(run)}.zarr"
        dataset = open_dataset(path)
        lacking = [name for name in ("features", "valid", "time_s") if name not in dataset.variables]
        try:
            loaded = dataset.load()
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            lacking = [f"whole chunks ({error})"]
        # Zarr reads what is not there as NaN, the whole array, for it is one chunk.
        if not lacking and loaded["features"].size and loaded["features"].isnull().all():
            lacking = ["its chunk"]
        if lacking or loaded["features"].shape != (*loaded["valid"].shape, loaded.sizes.get("feature")):
            what = f"without {', '.join(lacking)}" if lacking else "of another shape"
            raise StorageError(
                f"the features are damaged: {what}",
                where=path,
                hint="remove this folder and info.json, and give `vidbrain features` again",
            )
        return loaded


def open_features(root: str | Path | Root) -> FeatureStore:
    """Open a finished set of features, in a folder or at a URL such as ``s3://bucket/features/pixels``.

    Raises
    ------
    StorageError
        If it is missing, unfinished, of another kind or of a newer version.
    """
    place = locate(root)
    return FeatureStore(place, read_info(place, KIND))


def store_path(root: str | Path, layer: str, run: str) -> Path:
    """Folder of the Zarr of one layer and run."""
    return Path(root) / safe_name(layer) / f"{safe_name(run)}.zarr"


def write_run(
    root: str | Path,
    layer: str,
    run: str,
    *,
    features: NDArray[np.float32],
    valid: NDArray[np.bool_],
    attributes: Mapping[str, Any],
    n_frames: NDArray[np.int64] | None = None,
    recording: NDArray[np.int32] | None = None,
) -> None:
    """Write one layer's features of one run; the store appears whole or not at all.

    Parameters
    ----------
    root, layer, run
        Where.
    features : (n_trs, n_features) float32
        One row for each volume.
    valid : (n_trs,) bool
        Which volumes have features.
    attributes
        JSON values; ``tr_s`` and ``fingerprint`` are needed. ``slice_time_ref`` is the middle where it is not given.
    n_frames : (n_trs,) int64
        Frames in each volume, where the features come from video.
    recording : (n_trs,) int32
        Recording that most of them are of, by its position in the attribute ``recordings``; -1 where there is none.
    """
    variables: dict[str, Any] = {"features": (("tr", "feature"), features), "valid": ("tr", valid)}
    if n_frames is not None:
        variables["n_frames"] = ("tr", n_frames.astype(np.int32))
    if recording is not None:
        variables["recording"] = ("tr", recording)
    times_s = volume_times(len(features), float(attributes["tr_s"]), float(attributes.get("slice_time_ref", MIDDLE)))
    dataset = xr.Dataset(
        variables, coords={"time_s": ("tr", times_s)}, attrs={"layer": layer, "run": run, **attributes}
    )
    write_dataset(store_path(root, layer, run), dataset)


def is_written(root: str | Path, layer: str, run: str, fingerprint: str) -> bool:
    """Whether the store of a layer and run is there, whole, from these settings and inputs."""
    path = store_path(root, layer, run)
    return path.is_dir() and open_dataset(path).attrs.get("fingerprint") == fingerprint
