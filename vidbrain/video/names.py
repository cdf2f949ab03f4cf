"""Names of recordings: a path enters, a key that is safe in a tar, a WebDataset and a file system leaves."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

SPLITS = ("train", "val", "test")
"""Names of a source's own split: of folders in a folder of videos, and in a list."""


def key_of(path: PurePath) -> str:
    """Name a recording after its path without suffix, relative to the source.

    Letters of any alphabet, digits, ``_`` and ``-`` stay. Dots would end a WebDataset key, separators would leave the
    folder, and spaces break shells: runs of everything else become one ``-``, and folders are joined by ``_``.
    """
    parts = [part for part in path.parts if part not in ("..", "/")]
    # One name, however the file system spells its accents.
    return re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", "_".join(parts)))
