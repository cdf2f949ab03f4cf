"""What the spool says of a recording: a record beside its bytes, judged before any of them is used.

A spool may stay for weeks. What lies in it is used only where its record is whole, is of this codec, of frames of this
size and of the recording as it is now, and where length and checksums say that the bytes are those that were written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidbrain.records import Recording
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.segments import Segments
from vidbrain.storage.atomic import PART, as_storage_error, remove, write_json

FORMAT_VERSION = 1
_SAMPLE_BYTES = 1 << 16
_NAME = re.compile(rf"[0-9a-f]{{24}}\.(bin|json)({re.escape(PART)}.*)?")


def spool_path(spool: str | Path, recording: str, suffix: str) -> Path:
    """Path of a recording's record (``json``) or bytes (``bin``)."""
    # A key may be longer than a file name may be.
    return Path(spool) / f"{hashlib.sha256(recording.encode()).hexdigest()[:24]}.{suffix}"


def is_spool(folder: Path) -> bool:
    """Whether there is a spool to clear: a folder, or a link to one that holds something of ours."""
    return any(_ours(folder)) if folder.is_symlink() else folder.is_dir()


def clear_spool(folder: Path) -> None:
    """Remove a spool. Of a link to another disk what it leads to goes as far as it is ours, and the link stays."""
    if folder.is_symlink():
        for path in list(_ours(folder)):
            remove(path)
    elif folder.is_dir():  # a file of this name is somebody else's
        remove(folder)


def _ours(folder: Path) -> Iterator[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return (path for path in found if _NAME.fullmatch(path.name))


@dataclass(frozen=True)
class Place:
    """Where a segment lies in the spool's file.

    Attributes
    ----------
    n_stored
        Frames.
    offset
        Of its first byte.
    parts
        Lengths of its parts, which follow one another.
    crc32
        Of all of them.
    """

    n_stored: int
    offset: int
    parts: list[int]
    crc32: int

    @property
    def n_bytes(self) -> int:
        """Of all parts."""
        return sum(self.parts)


@dataclass(frozen=True)
class Origin:
    """What the bytes of a spooled recording come from, beyond its name.

    Attributes
    ----------
    codec, frame_size, fit
        Of the settings.
    source
        Digest of the recording's file, by its length and its first and last 64 KiB.
    rom
        SHA-256 of the ROM where recorded input is replayed, else None.
    """

    codec: str
    frame_size: int
    fit: str
    source: str
    rom: str | None


@dataclass(frozen=True)
class Spooled:
    """A recording in the spool.

    Attributes
    ----------
    origin
        What it was made from.
    n_bytes
        Length of the file that holds the segments.
    segments
        Their places, by key.
    """

    origin: Origin
    n_bytes: int
    segments: dict[str, Place]

    def holds(self, segments: Segments) -> bool:
        """Whether all of these are there."""
        found = ((self.segments.get(segment.key), segment.n_stored) for segment in segments)
        return all(place is not None and place.n_stored == n_stored for place, n_stored in found)

    def write(self, path: Path) -> None:
        """Write the record."""
        write_json(path, {"format_version": FORMAT_VERSION, **asdict(self)})


def read_spooled(path: Path) -> Spooled | None:
    """Read a record; None if there is none that this version can use: the recording is then spooled again.

    Raises
    ------
    StorageError
        If it cannot be read.
    """
    try:
        record = json.loads(path.read_bytes())
        if record.pop("format_version") != FORMAT_VERSION:
            return None
        places = {key: Place(**place) for key, place in record.pop("segments").items()}
        found = Spooled(Origin(**record.pop("origin")), segments=places, **record)
    except (FileNotFoundError, IsADirectoryError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    except OSError as error:
        raise as_storage_error(error, path) from error
    return found if _is_possible(found) else None


def _is_possible(found: Spooled) -> bool:
    places = found.segments.values()
    return _is_count(found.n_bytes) and all(_is_place(place, found.n_bytes) for place in places)


def _is_place(place: Place, n_held: int) -> bool:
    numbers = (place.n_stored, place.offset, place.crc32)
    if not (isinstance(place.parts, list) and place.parts and all(map(_is_count, (*numbers, *place.parts)))):
        return False
    return place.offset + place.n_bytes <= n_held


def _is_count(value: Any) -> bool:  # noqa: ANN401 -- any JSON value
    return type(value) is int and 0 <= value < 2**63


def origin_of(recording: Recording, config: ShardConfig, rom: str | None) -> Origin:
    """Say what a recording's spooled bytes would come from now; `rom` is as in `Origin`.

    Raises
    ------
    StorageError
        If its file cannot be read.
    """
    source = _file_digest(Path(recording.video or recording.movie or ""))
    return Origin(config.codec, config.frame_size, config.fit, source, rom)


def _file_digest(path: Path) -> str:
    """Name a file's content without reading all of it: edits of a recording change its length, its head or its tail."""
    try:
        with path.open("rb") as handle:
            n_bytes = handle.seek(0, 2)
            hashed = hashlib.sha256(str(n_bytes).encode())
            for at in (0, max(0, n_bytes - _SAMPLE_BYTES)):
                handle.seek(at)
                hashed.update(handle.read(_SAMPLE_BYTES))
    except OSError as error:
        raise as_storage_error(error, path) from error
    return hashed.hexdigest()
