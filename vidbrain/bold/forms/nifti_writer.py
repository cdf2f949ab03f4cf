"""NIfTI files whose bytes depend on nothing but their content."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import TracebackType
from typing import Any

import nibabel
import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_stored(values: NDArray[np.floating[Any]], slope: float | None) -> NDArray[Any]:
    """Round values to int16 steps of `slope`, or to float32 where it is None."""
    if slope is None:
        return values.astype(np.float32)
    return np.clip(np.rint(values / slope), -32768, 32767).astype(np.int16)


class SeriesWriter:
    """Writes a packed 4-D NIfTI file block by block; equal values give equal bytes.

    Parameters
    ----------
    path
        A temporary name that ends in anything: the file is always packed.
    shape
        (ni, nj, nk, n_trs).
    affine : (4, 4)
        Voxel indices to millimetres.
    tr_s
        Repetition time in seconds.
    slope
        Value of one stored int16 step; None stores float32.
    mni
        Whether the affine leads to a standard (MNI) space.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int, int],
        affine: ArrayLike,
        tr_s: float,
        slope: float | None,
        *,
        mni: bool = True,
    ) -> None:
        self.shape, self.slope = shape, slope
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.float32 if slope is None else np.int16)
        header.set_data_shape(shape)
        code = "mni" if mni else "aligned"
        header.set_qform(np.asarray(affine), code=code)
        header.set_sform(np.asarray(affine), code=code)
        header.set_xyzt_units("mm", "sec")
        header["pixdim"][4] = tr_s
        header.set_slope_inter(1.0 if slope is None else slope, 0.0)
        header["magic"] = header.single_magic
        header.set_data_offset(header.single_vox_offset)
        self._left = shape[3]
        self._raw = path.open("wb")
        # No file name and no time in the gzip header: they would differ from run to run. Level 1: BOLD is mostly noise.
        self._stream = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=self._raw, mtime=0)
        self._stream.write(header.binaryblock + b"\0\0\0\0")

    def write(self, values: NDArray[np.floating[Any]]) -> None:
        """Append volumes.

        Parameters
        ----------
        values : (n, ni, nj, nk)
            In the units of the data.
        """
        self.put(as_stored(values, self.slope))

    def put(self, stored: NDArray[Any]) -> None:
        """Append volumes as they shall be stored, (n, ni, nj, nk): int16, or float32."""
        if stored.shape[1:] != self.shape[:3] or len(stored) > self._left:
            raise ValueError(f"{stored.shape} does not fit what is left of {self.shape}")
        for volume in stored:
            self._stream.write(volume.tobytes(order="F"))
        self._left -= len(stored)

    def __enter__(self) -> SeriesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._raw:
            self._stream.close()
        if kind is None and self._left:
            raise ValueError(f"{self._left} volumes were never written")


def write_volume(path: Path, values: NDArray[Any], affine: ArrayLike) -> None:
    """Write a packed 3-D NIfTI file whose bytes depend on nothing but its content."""
    image = nibabel.Nifti1Image(values, np.asarray(affine))
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(np.asarray(affine), code="mni")
    image.set_sform(np.asarray(affine), code="mni")
    path.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))
