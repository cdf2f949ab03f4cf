"""Checkpoints: a folder a step, whole or absent; weights as safetensors, the rest loaded without unpickling code."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidbrain.errors import ModelError
from vidbrain.models.gpt import GPT
from vidbrain.models.pretrained import WEIGHTS, load_weights, save_pretrained
from vidbrain.models.vqvae import VQVAE
from vidbrain.storage.atomic import as_storage_error, remove, replacing, sweep, write_bytes

FOLDER, BEST, STATE, METRICS = "checkpoints", "best", "state.pt", "metrics.jsonl"
KEEP = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a training folder."""

    root: Path

    def sweep(self) -> None:
        """Remove what a killed run left half-written. One process calls it, before any of them writes."""
        sweep(self.root)
        sweep(self.root / FOLDER)

    def save(self, step: int, model: VQVAE | GPT, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, then remove all but the last two."""
        with replacing(self._path(step)) as part:
            part.mkdir(parents=True)
            save_pretrained(model, part)
            # As bytes: a full disk is then an error of the system, not of the library.
            buffer = io.BytesIO()
            torch.save({"step": step, **state}, buffer)
            (part / STATE).write_bytes(buffer.getbuffer())
        for old in self.steps()[:-KEEP]:
            remove(self._path(old))

    def save_best(self, model: VQVAE | GPT) -> None:
        """Replace the model with the lowest held-out loss."""
        with replacing(self.root / BEST) as part:
            part.mkdir(parents=True)
            save_pretrained(model, part)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        folder = self.root / FOLDER
        found = [re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(match[1]) for match in found if match)

    def load_last(self, model: VQVAE | GPT) -> dict[str, Any] | None:
        """Load the last checkpoint into the model; return the training state, or None where there is none.

        Raises
        ------
        ModelError
            If the state is damaged or holds anything but plain values and tensors.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self._path(steps[-1])
        load_weights(model, folder / WEIGHTS)
        return load_state(folder / STATE)

    def _path(self, step: int) -> Path:
        return self.root / FOLDER / f"step-{step:08d}"


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state of plain values and tensors; a pickle that would run code is refused.

    Raises
    ------
    ModelError
        If it cannot be read or holds anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickles of other writers, which are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A hostile pickle can raise anything. The library's own text advises to load such a file all the same.
        raise ModelError(
            "the training state is refused: it holds more than plain values and tensors"
            if isinstance(error, pickle.UnpicklingError)
            else f"the training state cannot be read: {type(error).__name__}",
            where=path,
            likely="the file is damaged, or was not written by this program",
            hint=f"remove {path.parent.name} to go on from the checkpoint before it",
        ) from error
    if not isinstance(state, dict):
        raise ModelError(f"the training state is a {type(state).__name__}, not a mapping", where=path)
    return state


class Metrics:
    """Append-only rows of numbers, one JSON object a line."""

    def __init__(self, root: Path) -> None:
        self.path = root / METRICS

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a last line that was cut by a kill is left out.

        Raises
        ------
        ModelError
            If another line is no row of numbers.
        """
        rows: list[dict[str, Any]] = []
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line, parse_constant=_no_number)
            except (ValueError, RecursionError) as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                raise self._damaged(number) from error
            whole = isinstance(row, dict) and type(row.get("step")) is int and row.get("split") in ("train", "val")
            if not whole or type(row.get("loss", "")) not in (float, int, type(None)):
                raise self._damaged(number)
            rows.append(row)
        return rows

    def _damaged(self, number: int) -> ModelError:
        return ModelError(
            f"line {number} of the metrics is no row of numbers with step, split and loss",
            where=self.path,
            likely="the file was edited, or the disk damaged it",
            hint="remove that line; the same command then goes on",
        )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise as_storage_error(error, self.path) from error

    def keep_until(self, step: int) -> None:
        """Drop, atomically, the rows beyond a step: a resumed run writes them again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        write_bytes(self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept).encode())


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
