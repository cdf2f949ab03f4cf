"""Trackers of experiments that a training may tell its rows to, beside metrics.jsonl; nothing leaves the machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from vidbrain.config import fingerprint
from vidbrain.errors import MissingExtraError

TrackerName = Literal["tensorboard", "trackio", "wandb"]
PROJECT = "vidbrain"


class Tracker(Protocol):
    """Somebody who is told rows."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Hear a row of the metrics."""

    def close(self) -> None:
        """Write what is not written yet."""


def check(names: Sequence[TrackerName]) -> None:
    """Refuse trackers that are not installed.

    Raises
    ------
    MissingExtraError
        Naming the first.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"{name} is not installed", where="track", hint=f"pip install {name}, or leave --track {name} out"
            )


def open_trackers(names: Sequence[TrackerName], out: Path, settings: Mapping[str, Any], *, step: int) -> list[Tracker]:
    """Open trackers for a run.

    Parameters
    ----------
    names
        Which.
    out
        Folder of the run.
    settings
        Of the run, for those that show them.
    step
        Last step that is done: what a killed run told beyond it comes again.
    """
    makers: dict[TrackerName, Callable[[Path, Mapping[str, Any], int], Tracker]]
    makers = {"tensorboard": _TensorBoard, "trackio": _Trackio, "wandb": _Wandb}
    return [makers[name](out, settings, step) for name in dict.fromkeys(names)]


class _TensorBoard:
    """Event files in ``tensorboard/``; those beyond the step are dropped by its reader."""

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        module: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """A run in trackio's data base on this machine ($TRACKIO_DIR), for `trackio show`."""

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        self._module: Any = importlib.import_module("trackio")
        with contextlib.redirect_stdout(sys.stderr):  # where results are printed, it would greet
            self._module.init(
                project=PROJECT,
                name=_name(out),
                config=dict(settings),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def add(self, row: Mapping[str, Any]) -> None:
        self._module.log(scalars(row), step=row["step"])

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


class _Wandb:
    """Offline runs in ``wandb/``, for `wandb sync`; each call of the training is a run of one group."""

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        module: Any = importlib.import_module("wandb")
        quiet = {"console": "off", "silent": True, "disable_git": True, "save_code": False}
        self._run = module.init(
            project=PROJECT, group=_name(out), config=dict(settings), dir=str(out), mode="offline", settings=quiet
        )

    def add(self, row: Mapping[str, Any]) -> None:
        self._run.log(scalars(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _name(out: Path) -> str:
    # Runs in two places may have the same folder name.
    return f"{out.name}-{fingerprint(str(out.resolve()))[:6]}"


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a row by the names that trackers group by, as ``train/loss``; what is null or text is left out."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    return {f"{row['split']}/{name}": float(value) for name, value in numbers.items() if math.isfinite(value)}
