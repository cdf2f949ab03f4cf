"""The planted drivers of a simulation as features: what the best possible model of the simulated brain would know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain.errors import StorageError
from vidbrain.features.sources import choose_layers
from vidbrain.features.store import KIND, is_written, write_run
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import check_writable, sweep
from vidbrain.storage.info import expected_fingerprint, is_done, read_info, write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.storage.zarrs import open_dataset

NAME = "drivers"

DRIVER_LAYERS = {"drivers.convolved": "convolved", "drivers.raw": "drivers"}
"""Layers, and the variables of the truth's stores. The convolved ones have passed the haemodynamic response: encode
them with no delay. The raw ones are means over each volume, to be delayed as other features are."""


def list_drivers(truth: str | Path, layers: Sequence[str] = ("drivers.convolved",)) -> dict[str, Any]:
    """Say what `extract_drivers` would write: layers, runs, volumes and drivers. Raises as it does."""
    names = choose_layers(layers, list(DRIVER_LAYERS), NAME)
    _, info = _read_truth(truth)
    return {
        "layers": list(names),
        "runs": len(info["runs"]),
        "volumes": sum(info["runs"].values()),
        "drivers": len(info["driver_names"]),
        "tr_s": float(info["tr_s"]),
    }


def extract_drivers(
    truth: str | Path,
    out: str | Path,
    *,
    layers: Sequence[str] = ("drivers.convolved",),
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write the planted drivers of every simulated run as a feature set. Every volume is valid: rest is known, too.

    Parameters
    ----------
    truth
        Folder ``truth`` of the simulated derivatives, or the derivatives that hold it.
    out
        Folder of the feature set.
    layers
        Names in `DRIVER_LAYERS`.
    progress
        Told of runs.

    Returns
    -------
    dict
        The root record.

    Raises
    ------
    StorageError
        If there is no finished truth, a run's drivers are missing or damaged, or another process writes there.
    ModelError
        If there is no such layer.
    ResumeError
        If a finished set lies there that was made otherwise.
    """
    names = choose_layers(layers, list(DRIVER_LAYERS), NAME)
    root, info = _read_truth(truth)
    out = Path(out)
    runs, tr_s, drivers = dict(info["runs"]), float(info["tr_s"]), list(info["driver_names"])
    settings = {
        "source": NAME,
        "tr_s": tr_s,
        "layers": [{"name": name, "n_features": len(drivers)} for name in names],
        "settings": {"simulated": True},
    }
    made_from = {"truth": str(info["fingerprint"])}
    if is_done(out, KIND, config=settings, made_from=made_from):
        sweep_lock(out)
        return read_info(out, KIND)
    check_writable(out, sum(runs.values()) * len(names) * 8 * len(drivers))
    with locked(out):
        fingerprint = expected_fingerprint(KIND, settings, made_from)
        progress.start(NAME, len(runs), "runs")
        for run, n_trs in runs.items():
            data = open_dataset(root / "drivers" / f"{run}.zarr")
            for name in names:
                if is_written(out, name, run, fingerprint):
                    continue
                values = np.asarray(data[DRIVER_LAYERS[name]].values, np.float32)
                if values.shape != (n_trs, len(drivers)):
                    raise StorageError(
                        f"{run} has drivers of shape {values.shape}, its record says {(n_trs, len(drivers))}",
                        where=root / "drivers" / f"{run}.zarr",
                        hint="simulate again",
                    )
                attributes = {"tr_s": tr_s, "driver_names": drivers, "simulated": True, "fingerprint": fingerprint}
                write_run(out, name, run, features=values, valid=np.ones(n_trs, np.bool_), attributes=attributes)
            progress.advance()
        progress.finish()
        for name in names:
            sweep(out / name)
        facts = {
            "runs": list(runs),
            "n_trs": list(runs.values()),
            "n_features": {name: len(drivers) for name in names},
            "driver_names": drivers,
        }
        return write_info(out, KIND, config=settings, made_from=made_from, facts=facts)


def _read_truth(truth: str | Path) -> tuple[Path, dict[str, Any]]:
    root = Path(truth)
    if (root / "truth").is_dir():
        root = root / "truth"
    return root, read_info(root, "truth")
