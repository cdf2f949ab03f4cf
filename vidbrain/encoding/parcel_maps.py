"""Results of parcels as NIfTI maps: every voxel of a parcel has its value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidbrain.bold.parcels.series import paint
from vidbrain.bold.store import MEMBERS, BoldStore
from vidbrain.encoding.maps import STATISTICS, nifti_bytes, sidecar, stem
from vidbrain.encoding.result import EncodingResult
from vidbrain.storage.atomic import write_bytes, write_json
from vidbrain.storage.zarrs import open_dataset, write_dataset


def write_parcel_maps(
    result: EncodingResult,
    store: BoldStore,
    out: str | Path,
    *,
    desc: str,
    statistics: Sequence[str] = ("r", "r2", "q", "alpha"),
) -> list[Path]:
    """Write one map a statistic, float32, NaN outside the parcels, and the voxels of each parcel beside the result.

    Parameters
    ----------
    result
        Of the parcels in `store`.
    store
        As `vidbrain.bold.parcels.series.write_parcel_store` wrote it.
    out
        Folder.
    desc
        Name of the feature set, as in `vidbrain.encoding.maps.write_maps`.
    statistics
        Keys of `vidbrain.encoding.maps.STATISTICS`.

    Returns
    -------
    list of Path
        The ``.nii.gz`` files; each has a ``.json`` beside it.
    """
    # What each parcel holds stays with the result, for maps of several subjects.
    write_dataset(result.root / MEMBERS, open_dataset(store.root / MEMBERS).load())
    label = "".join(c for c in desc if c.isascii() and c.isalnum())
    written = []
    for name in statistics:
        variable, description = STATISTICS[name]
        path = Path(out) / f"{stem(result, label)}_stat-{name}_statmap.nii.gz"
        volume = paint(store, result.dataset[variable].values).astype(np.float32)
        write_bytes(path, nifti_bytes(volume, result.affine))
        record = sidecar(result, desc, description) | {"Parcels": store.info["parcels_of"]}
        write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), record)
        written.append(path)
    return written
