"""What a BIDS data set says of itself, and what a file's content is known by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def dataset_root(path: Path) -> Path | None:
    """The folder that holds ``sub-…`` of a file, or None where the file lies in no such folder."""
    folder = next((folder for folder in path.parents if folder.name.startswith("sub-")), None)
    return None if folder is None else folder.parent


def is_simulated(source: str | Path) -> bool:
    """Whether the derivatives say of themselves that they are simulated."""
    return "simulated" in str(description(source)).lower()


def description(source: str | Path) -> dict[str, Any]:
    """``dataset_description.json`` of the derivatives, or an empty mapping."""
    source = Path(source)
    folder = (dataset_root(source) or source.parent) if source.is_file() else source
    try:
        value = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def identity(path: Path, *, whole_bytes: int = 64 << 20, block_bytes: int = 1 << 16, n_between: int = 64) -> str:
    """Name a file's content; never its time, which a copy changes.

    Parameters
    ----------
    path
        The file.
    whole_bytes
        Up to this size every byte counts.
    block_bytes, n_between
        Of a larger file its size, the first and the last block count, and so many that lie evenly between. A change
        that lies between them all is not seen in an unpacked file; the end of a gzip file holds the checksum and the
        length of everything before it.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        if size <= whole_bytes:
            while block := stream.read(1 << 20):
                digest.update(block)
        else:
            for k in range(n_between + 2):
                stream.seek((size - block_bytes) * k // (n_between + 1))
                digest.update(stream.read(block_bytes))
    return digest.hexdigest()[:16]
