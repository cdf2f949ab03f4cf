"""NIfTI series in and out by blocks of time: a whole 4-D array is never in memory.

A ``.nii.gz`` can only be read from its beginning, so a series is read in one pass, volume after volume, in the type of
the file; values are scaled where they are used.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, NDArray

from vidbrain.bold.forms.packed import Unpacked
from vidbrain.bold.forms.series import Rectangle, rows_at_once
from vidbrain.errors import BoldError, StorageError

_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_NO_TIME = ("hz", "ppm", "rads")
_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    zlib.error,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
)
"""What nibabel raises on files that are damaged: each part of a header has its own."""
_SHORTEST_TR_MS = 250.0
"""From here on a number that is called seconds is taken for milliseconds."""


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """What the header of a NIfTI series says.

    Attributes
    ----------
    path
        The file.
    shape
        (ni, nj, nk) of a volume.
    n_trs
        Volumes.
    affine
        (4, 4) voxel indices to millimetres, as rows of floats.
    tr_s
        Repetition time as the header says it, possible or not; None where it holds none.
    dtype
        Type on disk with its byte order, as NumPy writes it (``">i2"``).
    slope, inter
        Value = slope * stored + inter.
    """

    path: Path
    shape: tuple[int, int, int]
    n_trs: int
    affine: tuple[tuple[float, ...], ...]
    tr_s: float | None
    dtype: str
    slope: float
    inter: float
    offset: int

    @property
    def n_voxels(self) -> int:
        """Voxels of a volume, inside and outside the brain."""
        return int(np.prod(self.shape))

    @property
    def volume_bytes(self) -> int:
        """Size of a volume on disk, unpacked."""
        return self.n_voxels * np.dtype(self.dtype).itemsize

    @property
    def form(self) -> str:
        """Name of the format."""
        return "NIfTI"

    @property
    def n_columns(self) -> int:
        """Voxels of a volume, inside and outside the brain."""
        return self.n_voxels

    def layout(self) -> None:
        """A mask chooses the voxels."""

    def rectangles(self) -> Iterator[Rectangle]:
        """Whole volumes, from the first to the last, in one pass."""
        for first, stored in read_blocks(self, rows_at_once(self.n_voxels, self.dtype)):
            yield Rectangle(first, 0, stored)


def series_facts(path: Path) -> SeriesFacts:
    """Read the header of a 4-D NIfTI file.

    Raises
    ------
    BoldError
        If it is not a readable NIfTI file, not four-dimensional, not of a real number type, or (unpacked files) shorter
        than its header says.
    StorageError
        If the file cannot be opened.
    """
    image = _load(path)
    try:
        return _facts(path, image)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _facts(path: Path, image: Any) -> SeriesFacts:  # noqa: ANN401 -- nibabel has no types
    header, stored = image.header, image.dataobj
    shape = header.get_data_shape()
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 4 or min(shape) < 1:
        raise BoldError(
            f"expected a 4-D series, found a shape of {shape}", where=path, hint="give *_desc-preproc_bold files"
        )
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise BoldError(f"holds {dtype} values, not real numbers", where=path)
    zoom, (_, unit) = float(header["pixdim"][4]), header.get_xyzt_units()
    facts = SeriesFacts(
        path=path,
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        n_trs=int(shape[3]),
        affine=tuple(tuple(float(x) for x in row) for row in header.get_best_affine()),
        tr_s=_seconds(zoom, unit),
        dtype=dtype.str,
        # From the array proxy: loading an image takes the scale out of its header.
        slope=float(stored.slope),
        inter=float(stored.inter),
        offset=int(stored.offset),
    )
    needed = facts.offset + facts.volume_bytes * facts.n_trs
    if path.suffix != ".gz" and path.stat().st_size < needed:
        raise BoldError(
            f"the file is cut off: {path.stat().st_size} bytes where its header promises {needed}",
            where=path,
            hint="fetch or make the file again",
        )
    return facts


def _seconds(zoom: float, unit: str) -> float | None:
    if zoom == 0 or unit in _NO_TIME:
        return None
    # Many tools leave the unit empty and mean seconds; some write milliseconds and call them seconds.
    value = zoom * _SECONDS.get(unit, 1.0)
    return round(value if not value >= _SHORTEST_TR_MS else value / 1000.0, 6)


def _load(path: Path) -> Any:  # noqa: ANN401 -- nibabel has no types
    if not path.is_file():
        raise StorageError("there is no such file", where=path, hint="check the path")
    try:
        image = nibabel.load(path)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    if not isinstance(image, nibabel.Nifti1Pair) or not path.name.endswith((".nii", ".nii.gz")):
        raise BoldError(f"expected a NIfTI file (.nii, .nii.gz), found {type(image).__name__}", where=path)
    return image


def _damaged(path: Path, error: Exception) -> BoldError:
    return BoldError(
        f"not a readable NIfTI file: {type(error).__name__}: {error}",
        where=path,
        likely="a damaged header",
        hint="fetch or make the file again",
    )


def read_blocks(facts: SeriesFacts, block: int = 32) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read a series from its begin to its end.

    Parameters
    ----------
    facts
        As `series_facts` found them.
    block
        Volumes at once.

    Yields
    ------
    first : int
        Index of the block's first volume.
    stored : (n, ni * nj * nk)
        In the type of the file, unscaled, first index fastest (`vidbrain.bold.voxels.flat_index`).

    Raises
    ------
    BoldError
        If the file ends early or its checksum is wrong; known only at the end of the pass.
    """
    try:
        with facts.path.open("rb") as raw:
            stream: Any = Unpacked(raw) if facts.path.suffix == ".gz" else raw
            _exactly(stream, facts.offset, facts.path)
            for first in range(0, facts.n_trs, block):
                n = min(block, facts.n_trs - first)
                data = _exactly(stream, n * facts.volume_bytes, facts.path)
                yield first, data.view(facts.dtype).reshape(n, facts.n_voxels)
            # To the very end: only there is the checksum of a packed file compared.
            rest = memoryview(bytearray(1 << 20))
            while stream.readinto(rest):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BoldError(
            f"the packed file is damaged or cut off: {error}", where=facts.path, hint="fetch or make the file again"
        ) from error


def _exactly(stream: Any, n_bytes: int, path: Path) -> NDArray[np.uint8]:  # noqa: ANN401 -- a file or an Unpacked
    data = np.empty(n_bytes, np.uint8)
    filled = 0
    while filled < n_bytes:
        n = stream.readinto(data.data[filled:])
        if not n:
            raise BoldError(
                "the file ends before the last volume that its header promises",
                where=path,
                hint="fetch or make the file again",
            )
        filled += n
    return data


def image_grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of a NIfTI image, from its header; axes of length 1 after the third are dropped."""
    image = _load(path)
    shape = tuple(int(size) for size in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape, np.asarray(image.affine, np.float64)


def read_volume(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a small 3-D NIfTI file: values and affine.

    Raises
    ------
    BoldError
        If it cannot be read or is not three-dimensional.
    """
    image = _load(path)
    try:
        values = np.asarray(image.dataobj, np.float64)
    except _UNREADABLE as error:
        raise BoldError(f"the image is damaged: {error}", where=path, hint="fetch or make the file again") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise BoldError(f"expected a 3-D image, found a shape of {values.shape}", where=path)
    return values, np.asarray(image.affine, np.float64)


def resampled_volume(path: Path, shape: tuple[int, int, int], affine: ArrayLike) -> NDArray[np.float64]:
    """Read a 3-D NIfTI file on another grid, by linear interpolation with `nilearn.image.resample_img`.

    Parameters
    ----------
    path
        The image.
    shape, affine
        Of the grid wanted.

    Returns
    -------
    (ni, nj, nk) float64
        0 outside the image.

    Raises
    ------
    BoldError
        If the image cannot be read or is not three-dimensional.
    """
    values, found = read_volume(path)
    if values.shape == tuple(shape) and np.allclose(found, affine, atol=1e-3):
        return values
    from nilearn.image import resample_img

    image = resample_img(
        nibabel.Nifti1Image(values, found),
        target_affine=np.asarray(affine, np.float64),
        target_shape=shape,
        interpolation="linear",
    )
    return np.asarray(image.dataobj, np.float64)


def smoothed(volumes: NDArray[np.float64], affine: ArrayLike, fwhm_mm: float) -> NDArray[np.float64]:
    """Smooth volumes with `nilearn.image.smooth_img`; values that are not finite count as 0, as there.

    Parameters
    ----------
    volumes : (n, ni, nj, nk)
        One after the other.
    affine
        Voxel indices to millimetres.
    fwhm_mm
        Full width at half maximum in millimetres.
    """
    from nilearn.image import smooth_img

    image = smooth_img(nibabel.Nifti1Image(np.moveaxis(volumes, 0, -1), np.asarray(affine)), fwhm_mm)
    return np.moveaxis(np.asarray(image.dataobj, np.float64), -1, 0)
