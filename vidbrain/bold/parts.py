"""Parts of a run: voxels that share a Zarr shard and a checksum, and the checksum of a run, which is of theirs."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

PART_VOXELS = 16384
"""Most voxels that share a checksum and a Zarr shard."""
CHUNK_VOXELS = 1024
"""Voxels in a chunk; a chunk holds the whole run."""
_PART_VALUES = 16_000_000


def part_voxels(n_trs: int) -> int:
    """Voxels of a run that share a checksum and a Zarr shard: whole chunks of at most 64 MB together, at least one."""
    return max(1, min(PART_VOXELS // CHUNK_VOXELS, _PART_VALUES // (n_trs * CHUNK_VOXELS))) * CHUNK_VOXELS


def part_sha256(values: NDArray[np.float32]) -> str:
    """Checksum of a part's values in C order, as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").data).hexdigest()


def array_sha256(values: NDArray[np.float32]) -> str:
    """Checksum of a run: of the checksums of its parts, `part_voxels` columns each."""
    width = part_voxels(len(values))
    return run_sha256([part_sha256(values[:, first : first + width]) for first in range(0, values.shape[1], width)])


def run_sha256(digests: list[str]) -> str:
    """Checksum of a run, of the checksums of its parts."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()
