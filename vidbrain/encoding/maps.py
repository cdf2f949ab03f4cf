"""Results as maps with names and sidecars of BIDS derivatives: NIfTI, GIFTI, CIFTI, or a table."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidbrain.bold.export import surface_files
from vidbrain.bold.forms.cifti import brain_models, cifti_image
from vidbrain.bold.layout import Layout
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
    """Write one map a statistic, float32, NaN where there is no voxel; equal results give equal bytes.

    Volumes become ``.nii.gz``, surfaces a ``.shape.gii`` a hemisphere, grayordinates ``.dscalar.nii``; parcels and
    other columns, which have no place of their own, rows of one ``.tsv``.

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
        What was written; each has a ``.json`` beside it.

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
    layout = Layout.from_dataset(result.dataset)
    if layout.kind in ("parcels", "columns"):
        path = Path(out) / f"{stem(result, label)}_statmap.tsv"
        write_bytes(path, table_bytes(result, layout, statistics))
        columns = {name: {"Description": STATISTICS[name][1]} for name in statistics}
        write_json(path.with_suffix(".json"), sidecar(result, desc, "Encoding model of each column") | columns)
        return [path]
    written = []
    for name in statistics:
        variable, description = STATISTICS[name]
        values = result.dataset[variable].values
        if layout.kind == "volume":
            images = {"": (".nii.gz", nifti_bytes(result.to_volume(values), result.affine))}
        else:
            images = map_files(values, layout, name)
        for hemisphere, (end, data) in images.items():
            path = Path(out) / f"{stem(result, label, hemisphere)}_stat-{name}_statmap{end}"
            write_bytes(path, data)
            write_json(path.with_name(path.name.split(".")[0] + ".json"), sidecar(result, desc, description))
            written.append(path)
    return written


def map_files(values: NDArray[Any], layout: Layout, name: str) -> dict[str, tuple[str, bytes]]:
    """Files of one map of a surface or of grayordinates: end of the name and content, by hemisphere (or ``""``)."""
    if layout.kind == "surface":
        files = surface_files(values[None], layout, fill=np.nan)
        return {hemisphere: (".shape.gii", content) for hemisphere, content in files.items()}
    image = cifti_image(values[None], brain_models(layout), names=(name,))
    return {"": (".dscalar.nii", image.to_bytes())}


def table_bytes(result: EncodingResult, layout: Layout, statistics: Sequence[str]) -> bytes:
    """Write a row a column of the BOLD: its number from 1, its name where it has one, and the statistics."""
    names = layout.parcels or tuple(str(number) for number in range(1, len(layout) + 1))
    table = pd.DataFrame({"index": np.arange(1, len(layout) + 1), "name": names})
    for name in statistics:
        table[name] = result.dataset[STATISTICS[name][0]].values
    return table.to_csv(sep="\t", index=False, na_rep="n/a").encode()


def stem(result: EncodingResult, label: str, hemisphere: str = "") -> str:
    """File name up to the statistic: the entities that all runs share, hemisphere, space and feature set."""
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
    if hemisphere:
        parts.append(f"hemi-{hemisphere}")
    space, *resolution = str(result.info["space"] or "").split(":")
    # A store may say more in words; entities are letters and digits. Native space has no name in BIDS.
    parts += [f"space-{space}"] * (space not in ("", "func")) + [
        item for item in resolution if re.fullmatch(r"(den|res)-\w+", item)
    ]
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
