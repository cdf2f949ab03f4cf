"""What the columns of a series are: voxels of a volume, vertices of a surface, grayordinates, parcels, or just columns.

Every store calls them `voxel`; their coordinates say what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.bold.voxels import morton_code

Kind = Literal["volume", "surface", "grayordinates", "parcels", "columns"]
NOWHERE = -1
"""Index of a voxel or a vertex where a column is none."""
COORDINATES = ("structure", "vertex", "parcel")
"""Variables besides i, j and k that say what a column is."""
FACTS = ("layout", "shape", "affine", "structures", "n_vertices")
"""Attributes of a data set that say what its columns are."""
_IDENTITY = tuple(tuple(float(row == column) for column in range(4)) for row in range(4))


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the columns of a store lie, and where each is found in its source.

    Attributes
    ----------
    kind
        What the columns are.
    column : (n,) int64
        Position in the source (of a volume: first index fastest).
    ijk : (n, 3) int32
        Indices into the volume; -1 where a column is no voxel.
    shape, affine
        Of the volume; (0, 0, 0) and the identity where there is none.
    structure : (n,) int16
        Position in `structures`; None where nothing tells structures apart.
    vertex : (n,) int32
        Number in the mesh of its structure; -1 for voxels; None where there is no surface.
    structures
        Names of the CIFTI standard: ``CIFTI_STRUCTURE_CORTEX_LEFT``.
    n_vertices
        Vertices in the whole mesh of each structure; 0 for structures of voxels.
    parcels
        Name of each column, where the columns are parcels.
    """

    kind: Kind
    column: NDArray[np.int64]
    ijk: NDArray[np.int32]
    shape: tuple[int, int, int] = (0, 0, 0)
    affine: tuple[tuple[float, ...], ...] = _IDENTITY
    structure: NDArray[np.int16] | None = None
    vertex: NDArray[np.int32] | None = None
    structures: tuple[str, ...] = ()
    n_vertices: tuple[int, ...] = ()
    parcels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.column)

    def difference(self, other: Layout) -> str | None:
        """What tells two layouts apart, in words; None where nothing does."""
        if self.kind != other.kind or len(self) != len(other):
            return f"{len(other)} columns of a {other.kind} layout, where the first has {len(self)} of a {self.kind}"
        if self.shape != other.shape or not np.allclose(self.affine, other.affine, atol=1e-3):
            return "another volume grid"
        if (self.structures, self.n_vertices) != (other.structures, other.n_vertices):
            return f"the structures {', '.join(other.structures)}, where the first has {', '.join(self.structures)}"
        if self.parcels != other.parcels:
            return "other parcels"
        pairs = ((self.ijk, other.ijk), (self.structure, other.structure), (self.vertex, other.vertex))
        same = all(np.array_equal(a, b) for a, b in pairs if a is not None and b is not None)
        return None if same else "other voxels or vertices"

    def variables(self) -> dict[str, xr.Variable]:
        """Coordinates of the dimension `voxel`, each with an explanation of itself."""
        words = {"i": "first", "j": "second", "k": "third"}
        found = {
            axis: xr.Variable(
                "voxel",
                values,
                {"long_name": f"index along the {words[axis]} axis of the volume", "units": "1", "absent": NOWHERE},
            )
            for axis, values in zip("ijk", self.ijk.T, strict=True)
        }
        if self.structure is not None:
            codes = list(range(len(self.structures)))
            found["structure"] = xr.Variable(
                "voxel",
                self.structure,
                {"long_name": "brain structure", "flag_values": codes, "flag_meanings": " ".join(self.structures)},
            )
        if self.vertex is not None:
            found["vertex"] = xr.Variable(
                "voxel",
                self.vertex,
                {"long_name": "number of the vertex in the mesh of its structure", "units": "1", "absent": NOWHERE},
            )
        if self.parcels:
            found["parcel"] = xr.Variable(
                "voxel",
                np.arange(1, len(self) + 1, dtype=np.int32),
                {"long_name": "parcel, from 1", "names": list(self.parcels)},
            )
        return found

    def attributes(self) -> dict[str, Any]:
        """What the coordinates cannot say."""
        facts: dict[str, Any] = {"layout": self.kind}
        if any(self.shape):
            facts |= {"shape": list(self.shape), "affine": [list(row) for row in self.affine]}
        if self.structures:
            facts |= {"structures": list(self.structures), "n_vertices": list(self.n_vertices)}
        return facts

    def dataset(self) -> xr.Dataset:
        """All of it, for `from_dataset`."""
        column = xr.Variable("voxel", self.column, {"long_name": "position in the source"})
        return xr.Dataset({"column": column, **self.variables()}, attrs=self.attributes())

    @classmethod
    def from_dataset(cls, data: xr.Dataset) -> Layout:
        """What `dataset` or a run of a store says."""
        facts, n = data.attrs, data.sizes["voxel"]
        shape = facts.get("shape", (0, 0, 0))
        return cls(
            kind=facts.get("layout", "volume"),
            column=data["column"].values if "column" in data else np.arange(n),
            ijk=np.stack([data[axis].values for axis in "ijk"], axis=1),
            shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            affine=tuple(tuple(row) for row in facts.get("affine", _IDENTITY)),
            structure=data["structure"].values if "structure" in data else None,
            vertex=data["vertex"].values if "vertex" in data else None,
            structures=tuple(facts.get("structures", ())),
            n_vertices=tuple(facts.get("n_vertices", ())),
            parcels=tuple(data["parcel"].attrs.get("names", ())) if facts.get("layout") == "parcels" else (),
        )


def plain_columns(n: int) -> Layout:
    """Columns of which nothing is known."""
    return Layout(kind="columns", column=np.arange(n), ijk=np.full((n, 3), NOWHERE, np.int32))


def named_parcels(names: tuple[str, ...]) -> Layout:
    """Columns that are parcels."""
    n = len(names)
    return Layout(kind="parcels", column=np.arange(n), ijk=np.full((n, 3), NOWHERE, np.int32), parcels=names)


def masked_volume(
    ijk: NDArray[np.int32],
    column: NDArray[np.int64],
    shape: tuple[int, int, int],
    affine: tuple[tuple[float, ...], ...],
) -> Layout:
    """Voxels of a volume, put along the Morton curve so that neighbours share a chunk."""
    order = np.argsort(morton_code(ijk), kind="stable")
    return Layout(kind="volume", column=column[order], ijk=ijk[order], shape=shape, affine=affine)
