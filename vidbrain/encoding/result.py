"""What an encoding model leaves behind: r, alpha, p and q of each voxel, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from vidbrain.errors import EncodingError
from vidbrain.storage.info import read_info
from vidbrain.storage.zarrs import open_dataset

KIND = "encoding"
STORE = "result.zarr"
LEVEL = 0.05
"""False discovery rate at which a voxel counts as significant."""


@dataclass(frozen=True)
class EncodingResult:
    """One set of features against one BOLD store.

    Attributes
    ----------
    root
        Folder.
    info
        Root record: settings, fingerprints of features and BOLD, alphas, grid, summary; ``simulated`` if the BOLD is.
    dataset
        ``r`` (part, voxel) float32, correlation in each held-out part (a run; the attribute ``parts`` names them);
        ``r_mean``, its mean over parts; ``r_pooled``, over all parts at once; ``r2``, pooled over parts; ``alpha``,
        geometric mean over folds, and ``fold_alpha`` (fold, voxel); ``p``, one-sided; ``q``, its false discovery rate
        over live voxels (Benjamini-Hochberg), ``q_any``, the same under any dependence (Benjamini-Yekutieli), and
        ``p_fwe``, its family-wise error by the greatest voxel, all NaN where no permutation was asked for; ``dead``
        (r = 0, q = 1); ``i j k`` (voxel). With several bands (attribute ``bands``) also ``gamma`` (band, voxel), their
        weights, and ``r2_split`` (band, voxel), their shares of R²; after a partition ``r2_unique`` (band, voxel), what
        R² loses without a band. If they were kept, ``moments`` (block, moment, voxel) with ``block_n_trs`` and
        ``block_part``, see `bootstrap`.
    """

    root: Path
    info: dict[str, Any]
    dataset: xr.Dataset

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs that were used."""
        return tuple(self.info["runs"])

    @property
    def simulated(self) -> bool:
        """Whether the BOLD is simulated; say so wherever the result is shown."""
        return bool(self.info["simulated"])

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""
        return np.array(self.info["affine"], np.float64)

    def to_volume(self, values: ArrayLike, fill: float = np.nan) -> NDArray[np.float32]:
        """Put one value a voxel into a float32 volume; `fill` outside the mask.

        Raises
        ------
        EncodingError
            If the columns of the BOLD store are no voxels of a volume.
        """
        if self.info.get("layout", "volume") != "volume":
            raise EncodingError(
                f"the BOLD store holds a {self.info['layout']} layout, no volume",
                where=self.root,
                hint="see the GIFTI, CIFTI or TSV maps, or the columns of result.zarr",
            )
        values = np.asarray(values)
        if values.shape != self.dataset["i"].shape:
            raise ValueError(f"expected {self.dataset['i'].shape} values, got {values.shape}")
        volume = np.full(tuple(self.info["shape"]), fill, np.float32)
        volume[tuple(self.dataset[axis].values for axis in "ijk")] = values
        return volume


def open_result(root: str | Path) -> EncodingResult:
    """Open a finished encoding result.

    Raises
    ------
    StorageError
        If it is missing, unfinished, or of a newer version.
    """
    root = Path(root)
    return EncodingResult(root, read_info(root, KIND), open_dataset(root / STORE))


def make_dataset(
    arrays: Mapping[str, NDArray[Any]],
    q: Mapping[str, NDArray[np.float64]],
    alphas: NDArray[np.float64],
    ijk: NDArray[np.int32],
) -> xr.Dataset:
    """Put voxel arrays together as the data set of a result.

    Parameters
    ----------
    arrays
        As in `score.BlockScores`.
    q
        ``q``, ``q_any`` and ``p_fwe`` (voxel).
    alphas : (r,)
    ijk : (voxel, 3)
    """
    log_alpha = np.log10(alphas)[arrays["alpha_index"]]
    by_voxel = {
        "r_mean": arrays["r"].mean(axis=0, dtype=np.float64).astype(np.float32),
        "r_pooled": arrays["r_pooled"],
        "r2": arrays["r2"],
        "alpha": (10 ** log_alpha.mean(axis=0)).astype(np.float32),
        "p": arrays["p"].astype(np.float32),
        **{name: values.astype(np.float32) for name, values in q.items()},
        "dead": arrays["dead"],
    }
    by_band = {}
    if len(arrays["r2_split"]) > 1:
        by_band = {"gamma": arrays["gamma"], "r2_split": arrays["r2_split"]}
    if len(arrays["r2_without"]):
        by_band["r2_unique"] = arrays["r2"] - arrays["r2_without"]
    by_block: dict[str, Any] = {}
    if len(arrays["moments"]):
        by_block = {
            "moments": (("block", "moment", "voxel"), arrays["moments"]),
            "block_n_trs": (("block",), arrays["block_n_trs"]),
            "block_part": (("block",), arrays["block_part"]),
        }
    return xr.Dataset(
        {
            "r": (("part", "voxel"), arrays["r"]),
            "fold_alpha": (("fold", "voxel"), (10**log_alpha).astype(np.float32)),
            **{name: (("voxel",), values) for name, values in by_voxel.items()},
            **{name: (("band", "voxel"), values) for name, values in by_band.items()},
            **by_block,
        },
        coords={axis: (("voxel",), ijk[:, column].astype(np.int32)) for column, axis in enumerate("ijk")},
    )


def summarise(dataset: xr.Dataset, alphas: NDArray[np.float64]) -> dict[str, Any]:
    """Facts for people: median r, share of significant voxels, and how often alpha was at an edge of its grid."""
    alive = ~dataset["dead"].values
    if not alive.any():
        names = ("median_r", "r_99th_percentile", "significant_share", "median_r2")
        edges_of = ("alpha_at_smallest_share", "alpha_at_largest_share")
        return {"n_voxels": len(alive), "n_dead": len(alive), **dict.fromkeys((*names, *edges_of))}
    r, q = dataset["r_mean"].values[alive], dataset["q"].values[alive]
    chosen = dataset["fold_alpha"].values[:, alive]
    edges = alphas.astype(np.float32)[[0, -1]]
    middle = np.sqrt(alphas[0] * alphas[-1])
    return {
        "n_voxels": len(alive),
        "n_dead": int((~alive).sum()),
        "median_r": float(np.median(r)),
        "r_99th_percentile": float(np.percentile(r, 99)),
        "significant_share": float(np.mean(q < LEVEL)) if np.isfinite(q).all() else None,
        "median_r2": float(np.median(dataset["r2"].values[alive])),
        "alpha_at_smallest_share": float(np.mean(np.isclose(chosen, edges[0], rtol=1e-4) & (chosen < middle))),
        "alpha_at_largest_share": float(np.mean(np.isclose(chosen, edges[1], rtol=1e-4) & (chosen > middle))),
    }
