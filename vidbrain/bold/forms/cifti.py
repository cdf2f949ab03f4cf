"""CIFTI-2 series: dense (grayordinates) and parcellated. On disk all time of a grayordinate lies together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ParcelsAxis, ScalarAxis, SeriesAxis
from numpy.typing import NDArray

from vidbrain.bold.forms.series import Rectangle, rows_at_once
from vidbrain.bold.layout import NOWHERE, Layout
from vidbrain.errors import BoldError, StorageError
from vidbrain.storage.atomic import write_bytes

_UNITS = {"SECOND": 1.0}


@dataclass(frozen=True, kw_only=True)
class CiftiSeries:
    """One run of grayordinates or parcels.

    Attributes
    ----------
    path
        ``.dtseries.nii`` or ``.ptseries.nii``.
    n_trs, n_columns
        Volumes; grayordinates or parcels.
    tr_s
        Step of the series axis, where its unit is the second.
    dtype
        ``<f4`` where the file holds float32; else ``<f8``, in which scaled integers are kept.
    """

    path: Path
    n_trs: int
    n_columns: int
    tr_s: float | None
    dtype: str

    @property
    def form(self) -> str:
        """Name of the format."""
        return "CIFTI"

    @property
    def slope(self) -> float:
        """Scales are applied where values are read."""
        return 1.0

    @property
    def inter(self) -> float:
        """Offsets are applied where values are read."""
        return 0.0

    def layout(self) -> Layout:
        """Grayordinates or parcels in the order of the file."""
        return layout_of(_load(self.path).header.get_axis(1))

    def rectangles(self) -> Iterator[Rectangle]:
        """All time of some columns: that is how the file is laid out."""
        stored = _load(self.path).dataobj
        step = rows_at_once(self.n_trs, self.dtype)
        try:
            for first in range(0, self.n_columns, step):
                yield Rectangle(0, first, np.asarray(stored[:, first : first + step], self.dtype))
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(self.path, error) from error


def cifti_series(path: Path) -> CiftiSeries:
    """Read the header of a CIFTI-2 series.

    Raises
    ------
    BoldError
        If it is no readable series of grayordinates or parcels.
    """
    image = _load(path)
    try:
        rows, columns = image.header.get_axis(0), image.header.get_axis(1)
    except (ValueError, IndexError, KeyError) as error:
        raise _damaged(path, error) from error
    if not isinstance(rows, SeriesAxis) or not isinstance(columns, BrainModelAxis | ParcelsAxis):
        kinds = f"{type(rows).__name__} by {type(columns).__name__}"
        raise BoldError(f"expected time by grayordinates or parcels, found {kinds}", where=path)
    if image.dataobj.shape != (len(rows), len(columns)):
        raise BoldError(f"values of {image.dataobj.shape} for {len(rows)} by {len(columns)} of the header", where=path)
    plain = image.get_data_dtype() == np.float32 and (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)
    step = _UNITS.get(rows.unit, 0.0) * float(rows.step)
    return CiftiSeries(
        path=path,
        n_trs=len(rows),
        n_columns=len(columns),
        tr_s=round(step, 6) if step > 0 else None,
        dtype="<f4" if plain else "<f8",
    )


def _load(path: Path) -> Any:  # noqa: ANN401 -- nibabel has no types
    if not path.is_file():
        raise StorageError("there is no such file", where=path, hint="check the path")
    try:
        image = nibabel.load(path)
    except Exception as error:  # nibabel and expat each raise their own
        raise _damaged(path, error) from error
    if not isinstance(image, Cifti2Image):
        raise BoldError(f"expected a CIFTI-2 file, found {type(image).__name__}", where=path)
    return image


def _damaged(path: Path, error: Exception) -> BoldError:
    return BoldError(
        f"not a readable CIFTI-2 file: {type(error).__name__}: {error}", where=path, hint="fetch or make the file again"
    )


def layout_of(axis: BrainModelAxis | ParcelsAxis) -> Layout:
    """Coordinates of a CIFTI axis."""
    n = len(axis)
    ni, nj, nk = (0, 0, 0) if axis.volume_shape is None else (int(size) for size in axis.volume_shape)
    affine = np.eye(4) if axis.affine is None else np.asarray(axis.affine, np.float64)
    rows = tuple(tuple(float(x) for x in row) for row in affine)
    if isinstance(axis, ParcelsAxis):
        return Layout(
            kind="parcels",
            column=np.arange(n),
            ijk=np.full((n, 3), NOWHERE, np.int32),
            parcels=tuple(str(name) for name in axis.name),
            shape=(ni, nj, nk),
            affine=rows,
        )
    structures = tuple(dict.fromkeys(str(name) for name in axis.name))
    codes = {name: code for code, name in enumerate(structures)}
    return Layout(
        kind="grayordinates",
        column=np.arange(n),
        ijk=np.asarray(axis.voxel, np.int32),
        structure=np.array([codes[str(name)] for name in axis.name], np.int16),
        vertex=np.asarray(axis.vertex, np.int32),
        structures=structures,
        n_vertices=tuple(int(axis.nvertices.get(name, 0)) for name in structures),
        shape=(ni, nj, nk),
        affine=rows,
    )


def brain_models(layout: Layout) -> BrainModelAxis:
    """The CIFTI axis of a layout of grayordinates."""
    assert layout.structure is not None
    assert layout.vertex is not None
    names = np.array(layout.structures, object)[layout.structure]
    meshes = {name: n for name, n in zip(layout.structures, layout.n_vertices, strict=True) if n}
    volumes = any(layout.shape)
    return BrainModelAxis(
        name=names,
        voxel=layout.ijk,
        vertex=layout.vertex,
        affine=np.array(layout.affine) if volumes else None,
        volume_shape=layout.shape if volumes else None,
        nvertices=meshes,
    )


def read_axis(path: Path) -> BrainModelAxis | ParcelsAxis:
    """Grayordinates or parcels of a file, with the vertices and voxels that each parcel holds."""
    return _load(path).header.get_axis(1)


def write_template(source: Path, path: Path) -> None:
    """Keep the columns of a series as a file of one empty map."""
    axis = read_axis(source)
    write_bytes(path, cifti_image(np.zeros((1, len(axis))), axis, names=("empty",)).to_bytes())


def cifti_image(
    values: NDArray[Any],
    columns: BrainModelAxis | ParcelsAxis,
    *,
    tr_s: float | None = None,
    names: tuple[str, ...] = (),
) -> Cifti2Image:
    """Put values on a CIFTI axis: a series where `tr_s` is given, else maps with names.

    Parameters
    ----------
    values : (n, n_columns)
        Kept as float32.
    columns
        Grayordinates or parcels.
    tr_s
        Repetition time in seconds.
    names
        Of the maps.
    """
    rows = SeriesAxis(0, tr_s, len(values), "SECOND") if tr_s is not None else ScalarAxis(list(names))
    image = Cifti2Image(np.asarray(values, np.float32), header=(rows, columns))
    dense = isinstance(columns, BrainModelAxis)
    kind = ("SERIES" if tr_s is not None else "SCALARS") if dense else ("SERIES" if tr_s is not None else "SCALAR")
    image.nifti_header.set_intent(f"NIFTI_INTENT_CONNECTIVITY_{'DENSE' if dense else 'PARCELLATED'}_{kind}")
    return image
