"""Results as NIfTI maps with names and sidecars of BIDS derivatives."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.result import LEVEL, EncodingResult
from vidbrain.errors import ConfigError
from vidbrain.records import RunKey
from vidbrain.storage.atomic import write_bytes, write_json

STATISTICS = {
    "r": ("r_mean", "Pearson r of predicted and measured BOLD, mean over held-out runs"),
    "r2": ("r2", "Explained variance of held-out BOLD, pooled over runs"),
    "p": ("p", "One-sided p of r, by the null that the settings name"),
    "q": ("q", "Smallest false discovery rate (Benjamini-Hochberg) at which the voxel is significant"),
    "alpha": ("alpha", "Ridge penalty, geometric mean over folds"),
}


def write_maps(
    result: EncodingResult, out: str | Path, *, desc: str, statistics: Sequence[str] = ("r", "r2", "q", "alpha")
) -> list[Path]:
    """Write one map a statistic, float32, NaN outside the mask; equal results give equal bytes.

    Parameters
    ----------
    result
        Opened result.
    out
        Folder.
    desc
        Name of the feature set; letters and digits are kept for the ``desc-`` entity.
    statistics
        Keys of `STATISTICS`.

    Returns
    -------
    list of Path
        The ``.nii.gz`` files; each has a ``.json`` beside it.

    Raises
    ------
    ConfigError
        If `desc` has no letter or digit, or a statistic is unknown.
    """
    label = "".join(c for c in desc if c.isascii() and c.isalnum())
    unknown = [name for name in statistics if name not in STATISTICS]
    if not label or unknown:
        raise ConfigError(
            f"no letter or digit in {desc!r}" if not label else f"unknown statistic {unknown[0]!r}",
            hint=f"statistics: {', '.join(STATISTICS)}",
        )
    written = []
    for name in statistics:
        variable, description = STATISTICS[name]
        path = Path(out) / f"{stem(result, label)}_stat-{name}_statmap.nii.gz"
        write_bytes(path, nifti_bytes(result.to_volume(result.dataset[variable].values), result.affine))
        write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar(result, desc, description))
        written.append(path)
    return written


def stem(result: EncodingResult, label: str) -> str:
    """File name up to the statistic: the entities that all runs share, space and feature set."""
    keys = [RunKey.parse(run) for run in result.runs]
    parts = []
    for entity, values in (
        ("sub", {key.subject for key in keys}),
        ("ses", {key.session for key in keys}),
        ("task", {key.task for key in keys}),
    ):
        value = values.pop()
        if not values and value is not None:
            parts.append(f"{entity}-{value}")
    if result.info["space"]:
        parts.append(f"space-{result.info['space']}")
    return "_".join([*parts, f"desc-{label}"])


def sidecar(result: EncodingResult, desc: str, description: str) -> dict[str, Any]:
    """What the map shows and where it comes from."""
    info = result.info
    title = f"SIMULATED BOLD. {description}" if result.simulated else description
    return {
        "Description": title,
        "Simulated": result.simulated,
        "FeatureSet": desc,
        "Layers": info["config"]["layers"],
        "Runs": list(result.runs),
        "RepetitionTime": info["tr_s"],
        "DelaysTR": info["config"]["delays"],
        "SignificanceLevel": LEVEL,
        "Fingerprint": info["fingerprint"],
        "MadeFrom": info["made_from"],
        "GeneratedBy": [{"Name": "vidbrain"}],
    }


def nifti_bytes(volume: NDArray[np.float32], affine: NDArray[np.float64]) -> bytes:
    """Compress a volume as NIfTI-1; the bytes are a pure function of the arguments."""
    image = nibabel.Nifti1Image(np.asarray(volume, np.float32), affine)
    image.set_sform(affine, code=4)  # 4: MNI space
    image.set_qform(affine, code=4)
    image.header.set_xyzt_units("mm")
    # gzip's header would hold the time of writing.
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)
