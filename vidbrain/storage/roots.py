"""Where data live: --data, else $VIDBRAIN_DATA, else ./shards; a folder, or a URL."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vidbrain.errors import StorageError
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.urls import is_url

ENVIRONMENT = "VIDBRAIN_DATA"


def data_root(given: str | Path | None = None) -> Path:
    """Return the data root: what was given, else ``$VIDBRAIN_DATA``, else ``./shards``."""
    return Path(given or os.environ.get(ENVIRONMENT) or "shards").expanduser()


def locate(place: str | Path | Root) -> Path | Root:
    """Give a `Path` for a folder and a `Root` for a URL: both know ``/``, `read_info` and `open_dataset`.

    Raises
    ------
    StorageError
        If it is a URL that cannot be understood, or one that holds a secret.
    """
    if isinstance(place, Root):
        return Path(place.url) if place.is_local else place
    return open_root(place) if is_url(place) else Path(place)


def read_bytes(place: Path | Root) -> bytes:
    """Read one file, or the object that a URL names.

    Raises
    ------
    ObjectMissingError
        If there is none.
    StorageError
        If it cannot be read.
    """
    return open_root(place.parent).get(place.name)


def find_json(root: Root, name: str) -> Any:  # noqa: ANN401 -- any JSON value
    """Read a JSON record; None if there is none.

    Raises
    ------
    StorageError
        If it cannot be read, or is not JSON.
    """
    try:
        return json.loads(root.get(name))
    except ObjectMissingError:
        return None
    except (ValueError, RecursionError) as error:
        raise StorageError(f"not valid JSON: {error}", where=root / name) from error


def safe_name(name: str) -> str:
    """Check that a name can be one path component and a WebDataset key.

    Raises
    ------
    StorageError
        If it is empty, hidden, has a separator or a control character, or is a parent reference.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name or any(ord(c) < 32 for c in name):
        raise StorageError(f"{name!r} cannot be a name in a data set")
    return name
