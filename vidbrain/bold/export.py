"""A BOLD store back to files that other tools read: NIfTI volumes, GIFTI hemispheres, CIFTI series, .npy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.forms.arrays import save_npy
from vidbrain.bold.forms.cifti import brain_models, cifti_image, read_axis
from vidbrain.bold.forms.gifti import CORTEX, gifti_bytes
from vidbrain.bold.forms.nifti_writer import SeriesWriter
from vidbrain.bold.layout import Layout
from vidbrain.bold.parts import part_voxels
from vidbrain.bold.store import TEMPLATE, BoldStore
from vidbrain.bold.voxels import flat_index
from vidbrain.errors import BoldError
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import check_writable, replacing, write_bytes, write_json

_BLOCK = 16


def export_runs(
    store: BoldStore, out: str | Path, runs: Sequence[str] = (), *, progress: Progress = SILENT
) -> list[Path]:
    """Write runs of a store in the form they came in, float32, each with a JSON sidecar.

    A run is held whole in memory.

    Parameters
    ----------
    store
        Volumes become ``.nii.gz``, surfaces a ``.func.gii`` a hemisphere, CIFTI ``.dtseries.nii`` or
        ``.ptseries.nii``, other columns ``.npy``.
    out
        Folder.
    runs
        Labels in any spelling; default all.
    progress
        Who listens.

    Returns
    -------
    list of Path
        What was written, without the sidecars.

    Raises
    ------
    AlignmentError
        If the store lacks a run.
    BoldError
        If the store lacks what its form needs.
    """
    labels = [store.label(run) for run in runs] or list(store.runs)
    out = Path(out)
    largest = max(store.n_trs(label) for label in labels)
    check_writable(out, 4 * store.n_voxels * largest)
    written: list[Path] = []
    progress.start("export", len(labels), "runs")
    for label in labels:
        written += _export(store, label, out)
        progress.advance()
    progress.finish()
    return written


def _export(store: BoldStore, label: str, out: Path) -> list[Path]:
    values = _read(store, label)
    stem, kind = _stem(store, label), store.layout.kind
    if kind == "volume":
        names = [f"{stem}_bold.nii.gz"]
        _write_volumes(out / names[0], values, store)
    elif kind == "surface":
        names = _write_surfaces(out, stem, values, store)
    elif kind in ("grayordinates", "parcels") and store.info.get("form") == "CIFTI":
        names = [f"{stem}_bold.{'dtseries' if kind == 'grayordinates' else 'ptseries'}.nii"]
        write_bytes(out / names[0], cifti_image(values, _axis(store), tr_s=store.tr_s).to_bytes())
    else:
        names = [f"{stem}_bold.npy"]
        with replacing(out / names[0]) as part:
            save_npy(part, values)
    for name in names:
        write_json(out / (name.split(".")[0] + ".json"), _sidecar(store, label))
    return [out / name for name in names]


def _read(store: BoldStore, label: str) -> NDArray[np.float32]:
    values = np.empty((store.n_trs(label), store.n_voxels), np.float32)
    width = part_voxels(len(values))
    for first in range(0, store.n_voxels, width):
        here = slice(first, min(first + width, store.n_voxels))
        values[:, here] = store.read(label, here)
    return values


def _stem(store: BoldStore, label: str) -> str:
    name, *extra = str(store.info.get("space", "func")).split(":")
    parts = [label] + ([f"space-{name}"] if name != "func" else [])
    return "_".join([*parts, *(item for item in extra if not item.startswith("desc-")), "desc-clean"])


def _write_volumes(path: Path, values: NDArray[np.float32], store: BoldStore) -> None:
    shape, n_trs = store.shape, len(values)
    places = flat_index(store.ijk, shape)
    in_standard_space = str(store.info.get("space", "")).startswith("MNI")
    with (
        replacing(path) as part,
        SeriesWriter(part, (*shape, n_trs), store.affine, store.tr_s, None, mni=in_standard_space) as writer,
    ):
        for first in range(0, n_trs, _BLOCK):
            block = values[first : first + _BLOCK]
            flat = np.zeros((len(block), int(np.prod(shape))), np.float32)
            flat[:, places] = block
            writer.write(flat.reshape(len(block), *shape[::-1]).transpose(0, 3, 2, 1))


def surface_files(
    values: NDArray[np.floating[Any]], layout: Layout, *, fill: float = 0.0, tr_s: float | None = None
) -> dict[str, bytes]:
    """GIFTI files of values on a surface layout.

    Parameters
    ----------
    values : (n, n_columns)
        Maps, or volumes where `tr_s` is given.
    layout
        Of the columns.
    fill
        Value of vertices that the layout does not hold.
    tr_s
        Repetition time in seconds.

    Returns
    -------
    dict of str to bytes
        By hemisphere: ``L``, ``R``.
    """
    assert layout.structure is not None
    assert layout.vertex is not None
    letters = {name: letter for letter, name in CORTEX.items()}
    files = {}
    for code, (structure, n_vertices) in enumerate(zip(layout.structures, layout.n_vertices, strict=True)):
        mine = layout.structure == code
        mesh = np.full((len(values), n_vertices), fill, np.float32)
        mesh[:, layout.vertex[mine]] = values[:, mine]
        files[letters.get(structure, structure)] = gifti_bytes(mesh, structure, tr_s=tr_s)
    return files


def _write_surfaces(out: Path, stem: str, values: NDArray[np.float32], store: BoldStore) -> list[str]:
    label, _, rest = stem.partition("_space-")
    space = f"_space-{rest}" if rest else ""
    names = []
    for hemisphere, content in surface_files(values, store.layout, tr_s=store.tr_s).items():
        names.append(f"{label}_hemi-{hemisphere}{space}_bold.func.gii")
        write_bytes(out / names[-1], content)
    return names


def _axis(store: BoldStore) -> Any:  # noqa: ANN401 -- nibabel has no types
    if store.layout.kind == "grayordinates":
        return brain_models(store.layout)
    if not isinstance(store.root, Path):
        raise BoldError("parcels are exported from a folder", where=store.root, hint="vidbrain pull it first")
    return read_axis(store.root / TEMPLATE)


def _sidecar(store: BoldStore, label: str) -> dict[str, Any]:
    data = store.open(label)
    title = "BOLD signal of a vidbrain store"
    return {
        "Description": f"SIMULATED. {title}" if store.simulated else title,
        "Simulated": store.simulated,
        "RepetitionTime": store.tr_s,
        "StartTime": float(data["time_s"][0]),
        "TaskName": data.attrs.get("task", ""),
        "Cleaning": store.info["config"].get("clean", {}),
        "Confounds": data.attrs.get("confound_names", []),
        "UnusedVolumes": np.flatnonzero(~data["kept"].values).tolist(),
        "DeadVoxels": int(data["dead"].values.sum()),
        "Sources": [data.attrs.get("source", "")],
        "Fingerprint": store.info["fingerprint"],
        "GeneratedBy": [{"Name": "vidbrain"}],
    }
