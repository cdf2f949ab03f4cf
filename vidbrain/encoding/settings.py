"""How features are fitted to BOLD: everything that a user decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vidbrain.encoding.design.delays import check_delays
from vidbrain.encoding.design.matrix import TILE
from vidbrain.encoding.design.reduce import Reduce, check_reduction
from vidbrain.encoding.design.response import Response
from vidbrain.encoding.products import Device
from vidbrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How features are fitted to BOLD."""

    delays: tuple[int, ...] = (1, 2, 3, 4, 5)
    """TRs by which features are delayed (finite impulse response); never across runs."""
    response: Response = "fir"
    """How features become BOLD: a weight for each delay, or a canonical response in place of delays."""
    reduce: Reduce = "none"
    """Fewer features: principal components of the training rows of each fold, or a random projection."""
    components: int | None = None
    """Components of each layer, with --reduce."""
    trim_trs: tuple[int, int] = (0, 0)
    """Volumes at the begin and at the end of each run that are not used."""
    clean: bool = True
    """Take out of the features what was taken out of the BOLD: the confounds that its store names, mean and trend."""
    test: tuple[str, ...] = ()
    """Patterns of runs that are only tested, such as `*ses-005*`; by default each run is tested by the others."""
    leave_out: Literal["run", "session", "level", "recording"] = "run"
    """What is left out as a whole. Levels and recordings need features that were made from video."""
    max_folds: int = 10
    """Folds at most; more runs (or sessions) than that are dealt to so many folds, neighbours together."""
    split: Literal["whole", "leaky-tr"] = "whole"
    """whole: runs or sessions are left out. leaky-tr: single TRs at random, which inflates r: to show by how much."""
    n_inner_blocks: int = 5
    """Inner folds where one run is left for training: contiguous blocks of it."""
    purge_trs: int = 10
    """TRs left out of training at each side of held-out rows of the same run."""
    n_alphas: int = 20
    """Ridge penalties that each voxel chooses from."""
    alpha_decades: float = 8.0
    """Width of their grid, in powers of ten around the mean eigenvalue."""
    alpha_per: Literal["voxel", "parcel", "all"] = "voxel"
    """Who shares an alpha. A shared one takes a second pass over the BOLD."""
    alpha_tolerance: float = 0.0
    """Largest relative error of a prediction while alphas are compared; 0 compares exactly. The final r is exact."""
    bands: bool = False
    """Give each layer a weight of its own (banded ridge), chosen for each voxel with its alpha."""
    n_candidates: int = 20
    """Weightings of the layers that each voxel chooses from."""
    partition: bool = False
    """With --bands: also fit without each layer, for what it explains alone."""
    form: Literal["auto", "primal", "dual", "hat"] = "auto"
    """Which matrix is decomposed; auto takes the fewest operations."""
    device: Device = "cpu"
    """Where matrices of voxels are multiplied; cuda needs torch and a GPU."""
    n_permutations: int = 1000
    """Draws of the null for p; the smallest possible p is 1 / (1 + this). 0 for no p."""
    null: Literal["shift", "block", "refit"] = "shift"
    """Draws turn each run in a circle, or permute blocks of its TRs; refit fits so many turned voxels anew."""
    block_trs: int = 15
    """TRs of a block, much longer than the noise remembers."""
    keep_moments: bool = False
    """Keep the sums of blocks that `vidbrain compare` resamples: 20 bytes a voxel and block."""
    seed: int = 0
    """Of shifts, weightings and random splits."""
    shared_runs_only: bool = False
    """Use the runs that features and BOLD share, instead of refusing when some are missing."""
    voxels_per_block: int = 4096
    """Voxels of one task, rounded up to a multiple of 512; the result does not depend on it."""

    def __post_init__(self) -> None:
        least = {
            "n_alphas": 1,
            "n_permutations": 0,
            "n_inner_blocks": 2,
            "purge_trs": 0,
            "voxels_per_block": 1,
            "max_folds": 2,
            "n_candidates": 1,
            "block_trs": 2,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}, not {getattr(self, name)}")
        check_delays(self.delays)
        if min(self.trim_trs) < 0:
            raise ConfigError(f"trim_trs are numbers of volumes from 0, not {self.trim_trs}", hint="--trim-trs 5 5")
        check_reduction(self.reduce, self.components)
        if not 0 < self.alpha_decades <= 16:
            raise ConfigError(f"alpha_decades must be above 0 and at most 16, not {self.alpha_decades:g}")
        if not 0 <= self.alpha_tolerance < 0.1:
            raise ConfigError(f"alpha_tolerance must be at least 0 and below 0.1, not {self.alpha_tolerance:g}")
        if self.partition and not self.bands:
            raise ConfigError("partition compares weighted layers", hint="give --bands too")
        if self.bands and self.alpha_per != "voxel":
            raise ConfigError("with bands every voxel chooses for itself", hint="leave out --alpha-per")
        if self.null == "refit" and self.alpha_per != "voxel":
            raise ConfigError("refitted voxels choose alphas of their own", hint="--null shift, or --alpha-per voxel")
        if self.reduce == "pca" and self.form == "hat":
            raise ConfigError("hat blocks cannot have components of their own folds", hint="--form primal or dual")
        if self.bands and self.form == "hat":
            raise ConfigError("hat blocks cannot be weighted anew", hint="--form primal or dual")

    @property
    def block(self) -> int:
        """Voxels of one task."""
        return -(-self.voxels_per_block // TILE) * TILE
