"""Does one feature set predict better than another? Differences of held-out r, resampled with the same blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.config import to_mapping
from vidbrain.encoding.inference.bootstrap import BlockMoments, draw_weights, paired_difference
from vidbrain.encoding.inference.multiple import benjamini_hochberg
from vidbrain.encoding.inference.null import SPREAD
from vidbrain.encoding.result import LEVEL, EncodingResult
from vidbrain.errors import AlignmentError, ConfigError, EncodingError
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.info import is_done, read_info, write_info
from vidbrain.storage.zarrs import open_dataset, write_dataset

KIND = "comparison"
STORE = "comparison.zarr"
BLOCK = 4096
"""Voxels that are resampled at a time."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How differences are resampled."""

    n_resamples: int = 1000
    """Bootstrap resamples of the blocks of each run."""
    level: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Of the resamples."""

    def __post_init__(self) -> None:
        if self.n_resamples < 20:
            raise ConfigError(f"n_resamples must be at least 20, not {self.n_resamples}")
        if not 0 < self.level < 1:
            raise ConfigError(f"level must lie between 0 and 1, not {self.level:g}")


def compare(
    a: EncodingResult, b: EncodingResult, config: CompareConfig, out: str | Path, *, progress: Progress = SILENT
) -> dict[str, Any]:
    """Write, for each voxel, r of `a` less r of `b` with its interval, p and q.

    Both results must be of the same BOLD, tested on the same TRs, and hold the moments of their blocks. Voxels that
    are dead have no difference (NaN).

    Parameters
    ----------
    a, b
        Opened results.
    config
        What decides the comparison.
    out
        Folder to write.
    progress
        Listener.

    Returns
    -------
    dict
        The root record, with a summary.

    Raises
    ------
    AlignmentError
        If the results are of other BOLD or other TRs.
    EncodingError
        If a result holds no moments.
    ResumeError
        If `out` holds another comparison.
    """
    out = Path(out)
    settings = to_mapping(config)
    made_from = {"a": str(a.info["fingerprint"]), "b": str(b.info["fingerprint"])}
    check_comparable(a, b)
    if is_done(out, KIND, config=settings, made_from=made_from):
        return read_info(out, KIND)
    part = a.dataset["block_part"].values
    n_blocks = np.bincount(part).tolist()
    weights = draw_weights(n_blocks, config.n_resamples, config.seed)
    n_voxels = a.dataset.sizes["voxel"]
    # Test runs that trained nothing do not depend on one another; cross-validated folds do.
    spread = 1.0 if a.info["config"]["test"] else SPREAD
    pieces = []
    progress.start("compare", n_voxels, "voxels")
    for start in range(0, n_voxels, BLOCK):
        voxels = slice(start, min(start + BLOCK, n_voxels))
        one, other = (moments_of(result, voxels) for result in (a, b))
        pieces.append(paired_difference(one, other, weights, level=config.level, spread=spread))
        progress.advance(voxels.stop - voxels.start)
    progress.finish()

    def whole(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    alive = ~(a.dataset["dead"].values | b.dataset["dead"].values)
    p = np.where(alive, whole("p"), np.nan)
    q = np.full(n_voxels, np.nan)
    q[alive] = benjamini_hochberg(p[alive])
    arrays = {
        "difference": whole("estimate"),
        "standard_error": whole("standard_error"),
        "low": whole("basic_low"),
        "high": whole("basic_high"),
        "p": p,
        "q": q,
    }
    dataset = xr.Dataset(
        {name: ("voxel", np.where(alive, values, np.nan).astype(np.float32)) for name, values in arrays.items()},
        coords={axis: ("voxel", a.dataset[axis].values) for axis in "ijk"},
        attrs={"parts": list(a.info["parts"]), "level": config.level},
    )
    write_dataset(out / STORE, dataset)
    found_q, difference = q[alive] < LEVEL, arrays["difference"][alive]
    facts = {
        "simulated": a.simulated or b.simulated,
        "summary": {
            "n_voxels": n_voxels,
            "median_difference": float(np.median(difference)) if alive.any() else None,
            "a_better_share": float(np.mean(found_q & (difference > 0))) if alive.any() else None,
            "b_better_share": float(np.mean(found_q & (difference < 0))) if alive.any() else None,
        },
    }
    return write_info(out, KIND, config=settings, made_from=made_from, facts=facts)


def open_comparison(root: str | Path) -> xr.Dataset:
    """Open a finished comparison.

    Raises
    ------
    StorageError
        If it is missing or unfinished.
    """
    read_info(root, KIND)
    return open_dataset(Path(root) / STORE)


def moments_of(result: EncodingResult, voxels: slice) -> list[BlockMoments]:
    """Read the moments of some voxels, part by part."""
    part, n_trs = result.dataset["block_part"].values, result.dataset["block_n_trs"].values
    sums = np.asarray(result.dataset["moments"][:, :, voxels].values, np.float32)
    return [BlockMoments(n_trs[part == number], sums[part == number]) for number in np.unique(part)]


def check_comparable(a: EncodingResult, b: EncodingResult) -> None:
    """Refuse results that do not judge the same TRs of the same BOLD.

    Raises
    ------
    AlignmentError
        If they do not.
    EncodingError
        If one holds no moments.
    """
    for result in (a, b):
        if "moments" not in result.dataset:
            raise EncodingError(
                "this result holds no moments to resample",
                where=result.root,
                hint="encode again with --keep-moments, into another folder",
            )
    if a.info["made_from"]["bold"] != b.info["made_from"]["bold"]:
        raise AlignmentError(
            f"{a.root} and {b.root} were made from different BOLD", hint="encode both with the same store"
        )
    same = a.info["parts"] == b.info["parts"] and all(
        np.array_equal(a.dataset[name].values, b.dataset[name].values) for name in ("block_part", "block_n_trs")
    )
    if not same:
        raise AlignmentError(
            f"{a.root} and {b.root} were not tested on the same TRs",
            likely="their folds, delays or blocks differ, or one feature set lacks video where the other has it",
            hint="encode both with the same --delays, --test and --block-trs",
        )
