"""Series without a brain around them: HDF5 time series as CNeuroMod extracts them, plain .npy, .npz and .zarr arrays.

None of them says its repetition time. Rows are volumes; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import zarr
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from vidbrain.bold.forms.nifti import read_volume
from vidbrain.bold.forms.series import Rectangle, rows_at_once
from vidbrain.bold.layout import Layout, masked_volume, named_parcels, plain_columns
from vidbrain.errors import BoldError, StorageError

ENDS = (".h5", ".hdf5", ".npy", ".npz", ".zarr")
"""What names of such files end in."""
_NAME = "bold"
"""Array of an .npz or a Zarr group that holds several."""


@dataclass(frozen=True, kw_only=True)
class ArraySeries:
    """A two-dimensional array, (n_trs, n_columns).

    Attributes
    ----------
    path
        The file; a Zarr is a folder.
    member
        Data set of an HDF5 file, array of an .npz or of a Zarr group; empty where there is none.
    n_trs, n_columns
        Its shape.
    dtype
        Its type.
    tr_s
        None: no such file says one.
    """

    path: Path
    member: str
    n_trs: int
    n_columns: int
    dtype: str
    tr_s: float | None = None

    @property
    def form(self) -> str:
        """Name of the format."""
        return {".h5": "HDF5", ".hdf5": "HDF5", ".zarr": "Zarr"}.get(self.path.suffix, "NumPy")

    @property
    def slope(self) -> float:
        """Arrays have no scale."""
        return 1.0

    @property
    def inter(self) -> float:
        """Arrays have no offset."""
        return 0.0

    def layout(self) -> Layout:
        """Parcels or voxels, where an image beside an HDF5 file tells them and has as many; else plain columns."""
        beside = _images_beside(self.path) if self.form == "HDF5" else {}
        if (mask := beside.get("mask")) is not None:
            values, affine = read_volume(mask)
            # As nilearn takes them: C order.
            ijk = np.argwhere(values > 0.5).astype(np.int32)
            if len(ijk) == self.n_columns:
                rows = tuple(tuple(float(x) for x in row) for row in affine)
                ni, nj, nk = values.shape
                return masked_volume(ijk, np.arange(len(ijk)), (ni, nj, nk), rows)
        if (labels := beside.get("dseg")) is not None:
            found = np.unique(read_volume(labels)[0])
            found = found[found > 0]
            if len(found) == self.n_columns:
                return named_parcels(tuple(f"label {int(label)}" for label in found))
        return plain_columns(self.n_columns)

    def rectangles(self) -> Iterator[Rectangle]:
        """Some volumes at a time; of a Fortran-ordered .npy all time of some columns."""
        try:
            if self.path.suffix in (".npy", ".npz"):
                yield from self._numpy()
                return
            step = rows_at_once(self.n_columns, self.dtype)
            with _opened(self.path, self.member) as array:
                for first in range(0, self.n_trs, step):
                    yield Rectangle(first, 0, np.asarray(array[first : first + step]))
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise _damaged(self.path, error) from error

    def _numpy(self) -> Iterator[Rectangle]:
        with _npy_stream(self.path, self.member) as stream:
            _, columns_first, dtype = _npy_header(stream)
            width, length = (self.n_trs, self.n_columns) if columns_first else (self.n_columns, self.n_trs)
            step = rows_at_once(width, self.dtype)
            for first in range(0, length, step):
                n = min(step, length - first)
                data = stream.read(n * width * dtype.itemsize)
                block = np.frombuffer(data, dtype).reshape(n, width)
                yield Rectangle(0, first, block.T) if columns_first else Rectangle(first, 0, block)


def array_series(path: Path, member: str = "") -> ArraySeries:
    """Read the header of an array.

    Parameters
    ----------
    path
        ``.h5``, ``.npy``, ``.npz`` or ``.zarr``.
    member
        Which array of the file; default the only one, or the one that is called ``bold``.

    Raises
    ------
    BoldError
        If there is no such array, or it is not two-dimensional, or not of real numbers, or a Zarr lacks chunks.
    """
    if not path.exists():
        raise StorageError("there is no such file", where=path, hint="check the path")
    try:
        if path.suffix in (".npy", ".npz"):
            member = _only(path, zipfile.ZipFile(path).namelist(), member) if path.suffix == ".npz" else ""
            with _npy_stream(path, member) as stream:
                shape, _, dtype = _npy_header(stream)
        else:
            member = _only(path, array_names(path), member)
            with _opened(path, member) as array:
                shape, dtype = tuple(array.shape), np.dtype(array.dtype)
                if isinstance(array, zarr.Array):
                    _refuse_gaps(path, array)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    if len(shape) != 2 or min(shape) < 1 or dtype.kind not in "iuf":
        raise BoldError(
            f"expected volumes by columns of real numbers, found {dtype} of shape {shape}",
            where=f"{path}:{member}" if member else path,
        )
    return ArraySeries(path=path, member=member, n_trs=shape[0], n_columns=shape[1], dtype=dtype.str)


def _refuse_gaps(path: Path, array: zarr.Array[Any]) -> None:
    # Zarr reads a chunk that is not there as fill values: lost volumes would be taken for data.
    there, promised = array.nchunks_initialized, array.nchunks
    if there < promised:
        raise BoldError(
            f"{promised - there} of {promised} chunks are missing",
            where=path,
            likely="a copy that was not finished; or chunks of nothing but the fill value, which Zarr leaves out",
            hint="copy it again; or write it with the Zarr setting array.write_empty_chunks",
        )


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an HDF5 file or a Zarr group, sorted; one empty name for a Zarr array.

    Raises
    ------
    BoldError
        If the file cannot be read.
    """
    try:
        if path.suffix == ".zarr":
            node = zarr.open(path, mode="r")
            return [""] if isinstance(node, zarr.Array) else sorted(name for name, _ in node.arrays())
        import h5py

        names: list[str] = []
        with h5py.File(path, "r") as file:
            file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        return sorted(names)
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _only(path: Path, names: list[str], member: str) -> str:
    known = {name.removesuffix(".npy"): name for name in names}
    wanted = member.removesuffix(".npy") or (next(iter(known)) if len(known) == 1 else _NAME)
    if wanted not in known:
        raise BoldError(
            f"no array {wanted!r} in the file; it holds {', '.join(list(known)[:8]) or 'none'}",
            where=path,
            hint=f"call the series {_NAME!r}, or keep one array in the file",
        )
    return known[wanted]


@contextlib.contextmanager
def _opened(path: Path, member: str) -> Iterator[Any]:
    if path.suffix == ".zarr":
        yield zarr.open_array(path, mode="r", path=member)
        return
    import h5py

    with h5py.File(path, "r") as file:
        yield file[member]


@contextlib.contextmanager
def _npy_stream(path: Path, member: str) -> Iterator[IO[bytes]]:
    if path.suffix == ".npy":
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        yield stream


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    return tuple(shape), bool(columns_first), np.dtype(dtype)


def _images_beside(path: Path) -> dict[str, Path]:
    """Mask and label image that lie beside a file of extracted series, where there is one of each."""
    stem = path.name.removesuffix(path.suffix).removesuffix("_timeseries")
    found = {}
    for suffix in ("mask", "dseg"):
        images = [image for end in (".nii.gz", ".nii") for image in path.parent.glob(f"*_{suffix}{end}")]
        named = [image for image in images if image.name.startswith(f"{stem}_")] or images
        if len(named) == 1:
            found[suffix] = named[0]
    return found


def _damaged(path: Path, error: Exception) -> BoldError:
    return BoldError(
        f"the array cannot be read: {type(error).__name__}: {error}", where=path, hint="fetch or make the file again"
    )


def save_npy(path: Path, values: NDArray[Any]) -> None:
    """Write an array as .npy, whatever the name ends in."""
    with path.open("wb") as stream:
        npy_format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)
