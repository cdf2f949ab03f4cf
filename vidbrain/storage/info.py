"""The root record of an artefact: what it is, what it was made from, and that it is whole.

It is written last. An artefact without its root record is unfinished and is never read as whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidbrain.config import fingerprint
from vidbrain.errors import ResumeError, StorageError
from vidbrain.storage.atomic import json_bytes, read_json
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import locate
from vidbrain.storage.transfers import put_checked

FORMAT_VERSION = 1
INFO = "info.json"
MADE_BY = {
    "shards": "vidbrain shard",
    "subset": "vidbrain subset",
    "codes": "vidbrain tokenize",
    "truth": "vidbrain bold simulate",
    "bold": "vidbrain bold ingest",
    "vqvae": "vidbrain train vqvae",
    "gpt": "vidbrain train gpt",
    "features": "vidbrain features",
    "encoding": "vidbrain encode",
}
"""The command that makes an artefact of a kind."""


def write_info(
    root: str | Path | Root,
    kind: str,
    *,
    config: Mapping[str, Any],
    made_from: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
    name: str = INFO,
) -> dict[str, Any]:
    """Write the root record of a finished artefact.

    Parameters
    ----------
    root
        Folder of the artefact, or its URL.
    kind
        What it is: ``"shards"``, ``"bold"``, ``"features"``, ``"codes"``, ``"model"``, ``"encoding"``.
    config
        The settings that decide its content, as plain values. Paths and worker counts do not belong here.
    made_from
        Fingerprints of its inputs by name.
    facts
        Counts and other facts for readers; they do not enter the fingerprint.

    Returns
    -------
    dict
        The record as written, with its fingerprint.
    """
    record = {
        "vidbrain": kind,
        "format_version": FORMAT_VERSION,
        "fingerprint": expected_fingerprint(kind, config, made_from),
        "made_from": dict(made_from),
        "config": dict(config),
        **(facts or {}),
    }
    put_checked(open_root(root), name, json_bytes(record))
    return record


def expected_fingerprint(kind: str, config: Mapping[str, Any], made_from: Mapping[str, str]) -> str:
    """Name an artefact by what decides its content."""
    return fingerprint(kind, FORMAT_VERSION, dict(config), dict(made_from))


def read_info(root: str | Path | Root, kind: str, *, name: str = INFO) -> dict[str, Any]:
    """Read the root record of a finished artefact, in a folder or at a URL.

    Raises
    ------
    StorageError
        If there is none (the artefact is missing or unfinished), it is of another kind, or of a newer version.
    """
    place = locate(root)
    record = _remote_record(place, kind, name) if isinstance(place, Root) else _local_record(place, kind, name)
    return check_info(record, kind, where=place / name)


def check_info(record: Any, kind: str, *, where: object) -> dict[str, Any]:  # noqa: ANN401 -- any JSON value
    """Return a root record that was read, if it is one of this kind.

    Raises
    ------
    StorageError
        If it is damaged, of another kind, or of a newer version.
    """
    if not isinstance(record, dict) or record.get("vidbrain") != kind:
        found = record.get("vidbrain") if isinstance(record, dict) else type(record).__name__
        raise StorageError(f"expected a {kind} artefact, found {found!r}", where=where)
    shaped = isinstance(record.get("config"), dict) and isinstance(record.get("made_from"), dict)
    if not (shaped and type(record.get("format_version")) is int and isinstance(record.get("fingerprint"), str)):
        raise StorageError(
            "the root record is damaged: it lacks version, settings, inputs or fingerprint",
            where=where,
            hint="remove the artefact and make it again",
        )
    if record["format_version"] > FORMAT_VERSION:
        raise StorageError(
            f"written by a newer version (format {record['format_version']}, this one reads {FORMAT_VERSION})",
            where=where,
            hint="update vidbrain",
        )
    return record


def _local_record(folder: Path, kind: str, name: str) -> Any:  # noqa: ANN401 -- any JSON value
    if not (folder / name).is_file():
        exists = folder.exists()
        state = "is unfinished: it has no root record" if exists else "does not exist"
        command = _maker(kind)
        raise StorageError(
            f"the {kind} artefact {state}",
            where=folder / name,
            hint=f"give {command} again; it goes on" if exists else f"check the path, or make it with {command}",
        )
    return read_json(folder / name)


def _remote_record(root: Root, kind: str, name: str) -> Any:  # noqa: ANN401 -- any JSON value
    try:
        return json.loads(root.get(name))
    except ObjectMissingError:
        raise StorageError(
            f"there is no finished {kind} artefact: no root record",
            where=root / name,
            hint=f"check the URL, or make it with {_maker(kind)} and copy it there with `vidbrain push`",
        ) from None
    except (ValueError, RecursionError) as error:
        raise StorageError(f"not valid JSON: {error}", where=root / name) from error


def _maker(kind: str) -> str:
    return f"`{MADE_BY[kind]}`" if kind in MADE_BY else "the command that makes it"


def is_done(
    root: str | Path, kind: str, *, config: Mapping[str, Any], made_from: Mapping[str, str], name: str = INFO
) -> bool:
    """Whether the artefact exists, whole, with exactly these settings and inputs.

    Raises
    ------
    ResumeError
        If it exists, whole, but was made with others; the message names the first that differ.
    """
    if not (Path(root) / name).is_file():
        return False
    record = read_info(root, kind, name=name)
    if record["fingerprint"] == expected_fingerprint(kind, config, made_from):
        return True
    raise ResumeError(
        f"the {kind} artefact there was made with other settings: {difference(record, config, made_from)}",
        where=Path(root) / name,
        hint="give another output, or remove this one first",
    )


def difference(record: Mapping[str, Any], config: Mapping[str, Any], made_from: Mapping[str, str]) -> str:
    """Say which settings or inputs differ, old and new."""
    parts = (record.get(name, {}) for name in ("config", "made_from")) if isinstance(record, Mapping) else (None,)
    if not all(isinstance(part, Mapping) for part in parts):
        return "its record is damaged and does not say them"
    found = []
    pairs = ((_flat(record.get("config", {})), _flat(config)), (record.get("made_from", {}), made_from))
    for old, new in pairs:
        found += [
            f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
            for key in dict.fromkeys([*old, *new])
            if fingerprint(old.get(key)) != fingerprint(new.get(key))
        ]
    return "; ".join(found[:4]) + ("; …" if len(found) > 4 else "") or "the format version"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat
