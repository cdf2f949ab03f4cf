"""GIFTI surface series: the left and the right hemisphere of a run, side by side as columns.

GIFTI is XML, so a hemisphere cannot be read in parts: nibabel holds one at a time. Its header is scanned without
decoding any values.
"""

from __future__ import annotations

import re
import xml.parsers.expat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.forms.series import Rectangle, rows_at_once
from vidbrain.bold.layout import NOWHERE, Layout
from vidbrain.errors import BoldError

CORTEX = {"L": "CIFTI_STRUCTURE_CORTEX_LEFT", "R": "CIFTI_STRUCTURE_CORTEX_RIGHT"}
_HEMISPHERE = re.compile(r"(?:^|[_.])(?:hemi-)?(L|R|lh|rh)(?=[_.])")
_STRUCTURES = {"CortexLeft": CORTEX["L"], "CortexRight": CORTEX["R"]}
_MESHES = ("NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE")
_MILLISECONDS = 1e-3
_SHORTEST_TR_MS = 50.0


@dataclass(frozen=True, kw_only=True)
class SurfaceSeries:
    """One run on the surface.

    Attributes
    ----------
    files
        A file a hemisphere, left before right.
    structures
        Name of each file's structure.
    n_vertices
        Vertices of each file.
    n_trs
        Volumes of all files.
    tr_s
        Repetition time of the metadata, or None.
    """

    files: tuple[Path, ...]
    structures: tuple[str, ...]
    n_vertices: tuple[int, ...]
    n_trs: int
    tr_s: float | None

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]

    @property
    def form(self) -> str:
        """Name of the format."""
        return "GIFTI"

    @property
    def n_columns(self) -> int:
        """Vertices of all files."""
        return sum(self.n_vertices)

    @property
    def dtype(self) -> str:
        """GIFTI holds float32, int32 and uint8; all are kept as float64, which holds each exactly, until cleaned."""
        return "<f8"

    @property
    def slope(self) -> float:
        """GIFTI has no scale."""
        return 1.0

    @property
    def inter(self) -> float:
        """GIFTI has no offset."""
        return 0.0

    def layout(self) -> Layout:
        """Vertices in the order of the files."""
        n = self.n_columns
        return Layout(
            kind="surface",
            column=np.arange(n),
            ijk=np.full((n, 3), NOWHERE, np.int32),
            structure=np.repeat(np.arange(len(self.files), dtype=np.int16), self.n_vertices),
            vertex=np.concatenate([np.arange(count, dtype=np.int32) for count in self.n_vertices]),
            structures=self.structures,
            n_vertices=self.n_vertices,
        )

    def rectangles(self) -> Iterator[Rectangle]:
        """Hemisphere by hemisphere, some volumes at a time."""
        first_column = 0
        for path, n_vertices in zip(self.files, self.n_vertices, strict=True):
            columns = _values(path, n_vertices, self.n_trs)
            step = rows_at_once(n_vertices, self.dtype)
            for first in range(0, self.n_trs, step):
                rows = np.stack(columns[first : first + step])
                yield Rectangle(first, first_column, rows.astype(np.float64))
            first_column += n_vertices


def _values(path: Path, n_vertices: int, n_trs: int) -> Sequence[NDArray[Any]]:
    try:
        image = nibabel.load(path)
        arrays = [np.asarray(array.data) for array in image.darrays]
    except Exception as error:  # nibabel, expat, base64 and zlib each raise their own
        raise _damaged(path, error) from error
    rows = arrays[0].T if len(arrays) == 1 and arrays[0].ndim == 2 else [array.reshape(-1) for array in arrays]
    if len(rows) != n_trs or any(row.shape != (n_vertices,) for row in rows):
        raise BoldError(f"the values do not fill {n_trs} volumes of {n_vertices} vertices", where=path)
    return list(rows)


def surface_series(files: Sequence[Path]) -> SurfaceSeries:
    """Scan the headers of one run.

    Parameters
    ----------
    files
        One file a hemisphere (``.func.gii``).

    Raises
    ------
    BoldError
        If a file is no readable GIFTI series, does not tell its hemisphere, or the hemispheres differ in length.
    """
    found = sorted((_scan(path) for path in files), key=lambda item: item.structure)
    if len({item.structure for item in found}) != len(found):
        raise BoldError(f"{len(found)} files of one hemisphere", where=files[0])
    lengths = {item.n_trs for item in found}
    if len(lengths) != 1:
        raise BoldError(
            f"the hemispheres have {' and '.join(str(item.n_trs) for item in found)} volumes",
            where=found[0].path,
            hint="fetch or make the shorter file again",
        )
    times = {item.tr_s for item in found if item.tr_s is not None}
    if len(times) > 1:
        raise BoldError(f"the hemispheres say TRs of {' and '.join(f'{t:g}' for t in times)} s", where=found[0].path)
    return SurfaceSeries(
        files=tuple(item.path for item in found),
        structures=tuple(item.structure for item in found),
        n_vertices=tuple(item.n_vertices for item in found),
        n_trs=lengths.pop(),
        tr_s=times.pop() if times else None,
    )


@dataclass(frozen=True)
class _Header:
    path: Path
    structure: str
    n_vertices: int
    n_trs: int
    tr_s: float | None


def _scan(path: Path) -> _Header:
    shapes: list[tuple[int, ...]] = []
    facts: dict[str, str] = {}
    names: list[str] = []
    inside: list[str] = []

    def begin(tag: str, attributes: dict[str, str]) -> None:
        inside.append(tag)
        if tag == "DataArray" and attributes.get("Intent") not in _MESHES:
            shapes.append(tuple(int(attributes[f"Dim{k}"]) for k in range(int(attributes["Dimensionality"]))))

    def text(data: str) -> None:
        if inside and inside[-1] == "Name":
            names.append(data)
        elif inside and inside[-1] == "Value" and names:
            facts.setdefault(names[-1], data)

    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: inside.pop()
    parser.CharacterDataHandler = text
    try:
        with path.open("rb") as stream:
            parser.ParseFile(stream)
    except (xml.parsers.expat.ExpatError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    match = _HEMISPHERE.search(path.name)
    structure = _STRUCTURES.get(facts.get("AnatomicalStructurePrimary", ""))
    if structure is None and match:
        structure = CORTEX[match[1][0].upper()]
    if structure is None:
        raise BoldError(
            "the file does not say which hemisphere it is", where=path, hint="name it …_hemi-L… or …_hemi-R…"
        )
    flat = {int(np.prod(shape)) for shape in shapes}
    if not shapes or (len(shapes) > 1 and len(flat) != 1) or 0 in flat:
        raise BoldError(f"holds no series: arrays of {shapes[:3]}", where=path)
    several = len(shapes) == 1 and len(shapes[0]) == 2
    n_vertices, n_trs = shapes[0] if several else (flat.pop(), len(shapes))
    return _Header(path, structure, n_vertices, n_trs, _seconds(facts.get("TimeStep", "")))


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # The unit is the millisecond; some tools write seconds.
    return round(value * _MILLISECONDS if value >= _SHORTEST_TR_MS else value, 6) if value > 0 else None


def _damaged(path: Path, error: Exception) -> BoldError:
    return BoldError(
        f"not a readable GIFTI file: {type(error).__name__}: {error}", where=path, hint="fetch or make the file again"
    )


def gifti_bytes(values: NDArray[Any], structure: str, *, tr_s: float | None = None) -> bytes:
    """Write values on one mesh as GIFTI.

    Parameters
    ----------
    values : (n_maps, n_vertices)
        Kept as float32; rows are volumes where `tr_s` is given.
    structure
        ``CIFTI_STRUCTURE_CORTEX_LEFT`` or ``…_RIGHT``.
    tr_s
        Repetition time in seconds.
    """
    names = {long: short for short, long in _STRUCTURES.items()}
    meta = {"AnatomicalStructurePrimary": names.get(structure, structure)}
    intent = "NIFTI_INTENT_NONE"
    if tr_s is not None:
        meta["TimeStep"], intent = f"{tr_s / _MILLISECONDS:.6f}", "NIFTI_INTENT_TIME_SERIES"
    gifti = nibabel.gifti
    arrays = [
        gifti.GiftiDataArray(np.ascontiguousarray(row, np.float32), intent=intent, datatype="NIFTI_TYPE_FLOAT32")
        for row in values
    ]
    return bytes(gifti.GiftiImage(darrays=arrays, meta=gifti.GiftiMetaData(meta)).to_bytes())
