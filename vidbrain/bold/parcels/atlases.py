"""Atlas files: label images, probabilistic maps and surface labels, with the names of their parcels.

An atlas is brought to the voxels of a store here; what a store then keeps is the work of
`vidbrain.bold.parcels.parcellation`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidbrain.bold.forms.nifti import read_blocks, read_volume, series_facts
from vidbrain.bold.voxels import centres_mm, flat_index
from vidbrain.errors import AlignmentError, BoldError, StorageError

Resample = Literal["refuse", "nearest"]
"""An atlas on another grid is refused, or read at the atlas voxel that is nearest to each voxel's centre."""

_SCHAEFER = re.compile(r"^\d+Networks_(?:[LR]H_)?([A-Za-z]+)")
_SPACE = re.compile(r"(?:^|_)(?:space|tpl)-([0-9a-zA-Z]+)")
_INDEX = ("index", "label", "value", "component", "id")
_NAME = ("name", "region", "label_name", "difumo_names", "abbreviation")


@dataclass(frozen=True)
class Label:
    """What an atlas calls one of its parcels.

    Attributes
    ----------
    name
        Of the parcel.
    network
        That it belongs to; empty where none is known.
    """

    name: str
    network: str = ""


def space_of(path: Path) -> str | None:
    """Space that a file's name states (``space-…``, or ``tpl-…`` of TemplateFlow), or None."""
    found = _SPACE.search(path.name)
    return found[1] if found else None


def labels_at(
    path: Path, ijk: NDArray[np.int32], shape: tuple[int, int, int], affine: ArrayLike, resample: Resample
) -> NDArray[np.int32]:
    """Read a label image at the voxels of a store.

    Parameters
    ----------
    path
        3-D image of whole numbers; 0 is no parcel.
    ijk : (n_voxels, 3)
        Voxels of the store.
    shape, affine
        Of the store's grid.
    resample
        What to do with an image on another grid.

    Returns
    -------
    (n_voxels,) int32

    Raises
    ------
    BoldError
        If the image cannot be read or holds anything but labels.
    AlignmentError
        If it lies on another grid and `resample` is ``refuse``.
    """
    values, theirs = read_volume(path)
    labels: NDArray[np.float64] = np.rint(values)
    if not np.isfinite(values).all() or np.abs(values - labels).max(initial=0) > 1e-3 or labels.min(initial=0) < 0:
        raise BoldError(
            "the image holds values that are no labels: labels are whole numbers from 0",
            where=path,
            likely="a statistical map, or one map of a probabilistic atlas",
            hint="give a label image (*_dseg.nii.gz), or a 4-D image with one map a parcel",
        )
    if labels.max(initial=0) > np.iinfo(np.int32).max:
        raise BoldError(
            f"the image holds the label {labels.max():.0f}; the largest that is kept is {np.iinfo(np.int32).max}",
            where=path,
            hint="give the parcels smaller numbers",
        )
    place = places_in(path, values.shape, theirs, ijk, shape, affine, resample)
    flat = labels.ravel(order="F").astype(np.int32)
    return np.where(place >= 0, flat[np.maximum(place, 0)], np.int32(0))


def maps_at(
    path: Path, ijk: NDArray[np.int32], shape: tuple[int, int, int], affine: ArrayLike, resample: Resample
) -> Iterator[NDArray[np.float64]]:
    """Read the maps of a probabilistic atlas at the voxels of a store, one after another.

    Parameters
    ----------
    path
        4-D image with a map a parcel; a block of maps is in memory at once.
    ijk, shape, affine, resample
        As in `labels_at`.

    Yields
    ------
    (n_voxels,) float64

    Raises
    ------
    BoldError
        If the image cannot be read or holds values that are not finite.
    AlignmentError
        As in `labels_at`.
    """
    facts = series_facts(path)
    place = places_in(path, facts.shape, facts.affine, ijk, shape, affine, resample)
    for _, stored in read_blocks(facts, block=8):
        for volume in stored:
            stored_here = volume[np.maximum(place, 0)].astype(np.float64)
            values = np.where(place >= 0, facts.slope * stored_here + facts.inter, 0.0)
            if not np.isfinite(values).all():
                raise BoldError("a map of the atlas is not finite inside the brain", where=path)
            yield values


def places_in(
    path: Path,
    atlas_shape: tuple[int, ...],
    atlas_affine: ArrayLike,
    ijk: NDArray[np.int32],
    shape: tuple[int, int, int],
    affine: ArrayLike,
    resample: Resample,
) -> NDArray[np.int64]:
    """Find the atlas voxel of every voxel of a store.

    Returns
    -------
    (n_voxels,) int64
        Place in the flattened atlas (first index fastest); -1 outside of its image.

    Raises
    ------
    AlignmentError
        If the grids differ and `resample` is ``refuse``.
    """
    known = (ijk >= 0).all(axis=1)  # a column that is no voxel (a vertex) lies nowhere in a volume
    if is_same_grid(atlas_shape, atlas_affine, shape, affine):
        return np.where(known, flat_index(np.maximum(ijk, 0), shape), -1)
    if resample == "refuse":
        mine, theirs = np.diag(np.asarray(affine))[:3], np.diag(np.asarray(atlas_affine))[:3]
        raise AlignmentError(
            f"the atlas lies on another grid: {tuple(atlas_shape)} voxels of {_size(theirs)} mm, "
            f"the BOLD store on {tuple(shape)} of {_size(mine)} mm",
            where=path,
            hint="--resample nearest, if both lie in the same space; the choice is recorded",
        )
    mm = centres_mm(ijk, affine)
    forth = np.asarray(atlas_affine, np.float64)
    if not np.isfinite(forth).all() or np.linalg.matrix_rank(forth) < 4:
        raise BoldError("the atlas' affine puts all voxels into one plane, or is not finite", where=path)
    back = np.linalg.inv(forth)
    # Half a voxel belongs to the upper neighbour, as in nilearn's (and SciPy's) nearest neighbour.
    nearest = np.floor(mm @ back[:3, :3].T + back[:3, 3] + 0.5 + 1e-9).astype(np.int64)
    within: NDArray[np.bool_] = (nearest >= 0) & (nearest < np.array(atlas_shape[:3]))
    inside = np.asarray(known & within.all(axis=1), bool)
    return np.where(inside, flat_index(np.where(inside[:, None], nearest, 0), tuple(atlas_shape[:3])), -1)


def is_same_grid(shape: tuple[int, ...], affine: ArrayLike, other_shape: tuple[int, ...], other: ArrayLike) -> bool:
    """Whether two images lie voxel on voxel, to a thousandth of a millimetre."""
    return tuple(shape) == tuple(other_shape) and np.allclose(affine, other, atol=1e-3)


def _size(edges: NDArray[np.float64]) -> str:
    return "x".join(f"{abs(edge):g}" for edge in edges)


def surface_labels(path: Path) -> tuple[NDArray[np.int32], dict[int, Label]]:
    """Read a ``.label.gii`` file: the label of every vertex, and the names.

    Returns
    -------
    label : (n_vertices,) int32
        0 is no parcel, also where the file's own table calls another key unknown (``???``, ``Unknown``).
    table
        By label.

    Raises
    ------
    BoldError
        If it is no GIFTI file with one array of labels.
    """
    try:
        image = nibabel.load(path)
        arrays = image.get_arrays_from_intent("NIFTI_INTENT_LABEL")
    except (OSError, ValueError, AttributeError, nibabel.filebasedimages.ImageFileError) as error:
        raise BoldError(f"not a readable GIFTI file: {error}", where=path) from error
    if len(arrays) != 1 or np.ndim(arrays[0].data) != 1:
        raise BoldError(f"expected one array of labels, found {len(arrays)}", where=path, hint="give a *.label.gii")
    table = {int(label.key): str(label.label or "") for label in image.labeltable.labels}
    empty = [key for key, name in table.items() if key <= 0 or name.lower() in ("???", "unknown", "medial_wall", "")]
    labels = np.asarray(arrays[0].data, np.int32)
    labels = np.where(np.isin(labels, empty) | (labels < 0), np.int32(0), labels)
    return labels, {key: Label(name, network_of(name)) for key, name in table.items() if key not in empty}


def both_hemispheres(path: Path) -> tuple[Path, Path]:
    """Find the label files of the left and the right hemisphere by the name of either.

    Raises
    ------
    StorageError
        If the name says neither, or the other file is missing.
    """
    for left, right in (("hemi-L", "hemi-R"), ("lh.", "rh."), (".L.", ".R.")):
        for mine, other, order in ((left, right, 1), (right, left, -1)):
            if mine in path.name:
                partner = path.with_name(path.name.replace(mine, other))
                if not partner.is_file():
                    raise StorageError("the labels of the other hemisphere are missing", where=partner)
                return (path, partner) if order == 1 else (partner, path)
    raise StorageError("the name does not say which hemisphere it is", where=path, hint="hemi-L_… and hemi-R_…")


def read_names(path: Path) -> dict[int, Label]:
    """Read names of parcels from a table.

    A TSV or CSV with a header (``index`` and ``name``, as BIDS has it; a column whose title begins with ``network``
    or ``yeo_networks`` is the network), or a colour table without one (number, name, colours), as FreeSurfer and
    the Schaefer atlas ship.

    Raises
    ------
    BoldError
        If no line of it holds a number and a name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BoldError(
            f"the table of names is not UTF-8: {error.reason} at byte {error.start}",
            where=path,
            hint="write it again in UTF-8, for instance by `iconv -f latin1 -t utf-8`",
        ) from error
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("#")]
    delimiter = next((mark for mark in "\t,;" if lines and mark in lines[0]), None)
    rows = [line.split() for line in lines] if delimiter is None else list(csv.reader(lines, delimiter=delimiter))
    if not rows:
        raise BoldError("the table of names is empty", where=path)
    head = [title.strip().lower() for title in rows[0]]
    index, name, network = 0, 1, -1
    if not head[0].lstrip("-").isdigit():
        index = next((head.index(title) for title in _INDEX if title in head), 0)
        name = next((head.index(title) for title in _NAME if title in head), 1)
        network = next((at for at, title in enumerate(head) if re.match(r"network|yeo_networks", title)), -1)
        rows = rows[1:]
    table: dict[int, Label] = {}
    for row in rows:
        if len(row) <= max(index, name, network) or not re.fullmatch(r"\d+(\.0*)?", row[index].strip()):
            continue
        text = row[name].strip()
        table[int(float(row[index]))] = Label(text, row[network].strip() if network >= 0 else network_of(text))
    if not table:
        raise BoldError(
            "no line of the table holds a number and a name",
            where=path,
            hint="give a TSV with the columns index and name",
        )
    return table


def names_beside(path: Path) -> Path | None:
    """Table that lies beside an atlas under the same name (``.tsv``, ``.csv``, ``.txt``), or None."""
    stem = re.sub(r"\.(nii|nii\.gz|label\.gii|gii)$", "", path.name)
    return next((p for end in (".tsv", ".csv", ".txt") if (p := path.with_name(stem + end)).is_file()), None)


def network_of(name: str) -> str:
    """Network in a name of the Schaefer atlas (``7Networks_LH_Vis_1`` lies in ``Vis``); empty for other names."""
    found = _SCHAEFER.match(name)
    return found[1] if found else ""
