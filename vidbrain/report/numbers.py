"""The numbers of the report: medians over voxels of each kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.report.evidence import Evidence, ScoreSet


@dataclass(frozen=True, eq=False)
class Medians:
    """Medians over voxels.

    Attributes
    ----------
    kinds
        Mask (voxel,) by kind, planted kinds first; None stands for all voxels where nothing was planted.
    ceiling_of_voxels : (voxel,) float64
        Or None.
    """

    kinds: dict[str | None, NDArray[np.bool_]]
    ceiling_of_voxels: NDArray[np.float64] | None

    @classmethod
    def of(cls, evidence: Evidence) -> Medians:
        """Sort the voxels of the evidence."""
        return cls(dict(evidence.voxels()), evidence.ceiling)

    def r(self, scores: ScoreSet, kind: str | None) -> float:
        """Median r of a feature set in voxels of a kind."""
        return float(np.median(scores.r[self.kinds[kind]]))

    def ceiling(self, kind: str | None) -> float | None:
        """Median noise ceiling in voxels of a kind, where it is known."""
        if self.ceiling_of_voxels is None:
            return None
        return float(np.median(self.ceiling_of_voxels[self.kinds[kind]]))

    def significant(self, scores: ScoreSet, kind: str | None) -> float | None:
        """Share of voxels of a kind with q < 0.05, where q is known."""
        q = scores.q[self.kinds[kind]]
        return float((q < 0.05).mean()) if np.isfinite(q).any() else None

    def as_facts(self, evidence: Evidence) -> dict[str, Any]:
        """Median r by feature set and kind, for the summary of the command."""
        return {
            s.name: {"all" if kind is None else kind: round(self.r(s, kind), 6) for kind in self.kinds}
            for s in evidence.sets
        }
