"""Everything that a report shows, as values: scores by feature set, the planted truth, models, records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.store import BoldStore
from vidbrain.report.words import decibels, difference, find, percent, score

ROLES = {
    "trained": "trained model",
    "untrained": "untrained model",
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

    def edge_shares(self, mask: NDArray[np.bool_]) -> tuple[float, float]:
        """Share of the voxels of a mask (and of folds) whose penalty is the smallest or the largest of the grid."""
        chosen = self.alpha[:, mask]
        low, high = (np.isclose(chosen, edge, rtol=1e-4) for edge in (self.info["alphas"][0], self.info["alphas"][-1]))
        return (float(low.mean()), float(high.mean())) if chosen.size else (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelRecord:
    """What a run folder says of one trained model.

    Attributes
    ----------
    name
        Its folder.
    summary
        What training said at its end; empty where there is none.
    losses
        ``(steps, losses)`` by split.
    """

    name: str
    summary: dict[str, Any]
    losses: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    @property
    def title(self) -> str:
        """Shown."""
        return {"vqvae": "VQ-VAE", "gpt": "GPT"}.get(self.name, self.name)

    @property
    def kind(self) -> str:
        """``"vqvae"`` or ``"gpt"``."""
        return str(self.summary.get("kind", self.name))

    @property
    def n_parameters(self) -> int | None:
        """Trained numbers."""
        return self.summary.get("n_parameters")

    @property
    def n_steps(self) -> int | None:
        """Optimizer steps."""
        return self.summary.get("steps")

    @property
    def held_out(self) -> dict[str, Any]:
        """Last scores on held-out clips."""
        return self.summary.get("held_out") or {}

    @property
    def unit(self) -> str:
        """Of the loss."""
        return "nats per token" if self.kind == "gpt" else "loss"

    @property
    def references(self) -> dict[str, float]:
        """Levels that a held-out loss is compared with, by name."""
        level = find(("unigram_loss", "unigram_entropy"), self.summary)
        return {} if level is None else {"guess by code frequency": float(level)}

    @property
    def notes(self) -> list[str]:
        """Other numbers worth a word."""
        notes = [f"{name} {score(level, 3)}" for name, level in self.references.items()]
        if "psnr" in self.held_out:
            gain = difference(self.held_out["psnr_gain"], 1)
            notes.append(f"held-out PSNR {decibels(self.held_out['psnr'])}, {gain} dB over the mean frame")
        if "active" in self.held_out:
            notes.append(f"{percent(self.held_out['active'])} of the codes in use")
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

    def model(self, kind: str) -> ModelRecord | None:
        """The model of a kind, if there is one."""
        return next((model for model in self.models.values() if model.kind == kind), None)

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
