"""``dataset.json``, the root record: judged before anything is sized, read or removed by it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from vidbrain.errors import ConfigError, ShardError, StorageError
from vidbrain.sharding.plan import parse_size
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.info import check_info, expected_fingerprint
from vidbrain.storage.objects import Root

DATASET = "dataset.json"
_SHA256 = re.compile("[0-9a-f]{64}")


class ShardFacts(NamedTuple):
    """What a tar is known by."""

    n_bytes: int
    sha256: str


def record_facts(index_sha256: str, shards: Sequence[ShardFacts]) -> dict[str, Any]:
    """Give what the root record says of index and shards, so that a reader need not ask their markers.

    Parameters
    ----------
    index_sha256
        Of ``index.parquet``.
    shards
        Of each tar, in their order.
    """
    return {
        "n_shards": len(shards),
        "n_bytes": sum(facts.n_bytes for facts in shards),
        "index_sha256": index_sha256,
        "shards": {"n_bytes": [facts.n_bytes for facts in shards], "sha256": [facts.sha256 for facts in shards]},
    }


def find_record(root: Root, kind: str = "shards") -> dict[str, Any] | None:
    """Read the root record of a place that is written to; None if there is none.

    Raises
    ------
    StorageError
        If it cannot be read, or is of another kind or a newer version.
    ShardError
        If it is damaged.
    """
    try:
        data = root.get(DATASET)
    except ObjectMissingError:
        return None
    return _judged(data, kind, root / DATASET)


def drop_damaged_record(root: Root) -> dict[str, Any] | None:
    """Return the root record of a data set of frames; remove one that says nothing, for it can be written again.

    Raises
    ------
    StorageError
        If it cannot be read.
    """
    try:
        data = root.get(DATASET)
    except ObjectMissingError:
        return None
    try:
        return _judged(data, "shards", root / DATASET)
    except (StorageError, ShardError):
        root.delete(DATASET)
        return None


def _judged(data: bytes, kind: str, path: Path | Root) -> dict[str, Any]:
    try:
        record = check_info(json.loads(data), kind, where=path)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"not valid JSON: {error}", kind, path) from error
    check_record(record, kind, path)
    return record


def check_record(info: dict[str, Any], kind: str, path: Path | Root) -> None:
    """Refuse a root record whose numbers are none: they size what is allocated and read.

    Raises
    ------
    ShardError
        If one of them cannot be.
    """
    least = {"n_segments": 1, "n_frames": 1, "n_shards": 1}
    if kind == "shards":
        least |= {"height": 8, "width": 8, "margin": 0}
    odd = [name for name, value in least.items() if not is_count(info.get(name)) or info[name] < value]
    odd += [name for name in ("height", "width") if name in least and name not in odd and info[name] > 4096]
    if kind == "shards" and not isinstance(info.get("codec"), str):
        odd.append("codec")
    odd += [name for name in ("shards", "index_sha256") if name in info and not _is_sound(info, name)]
    if odd:
        raise _damaged(", ".join(f"{name} is {info.get(name)!r:.60}" for name in odd), kind, path)
    if kind == "shards" and not _is_named_rightly(info):
        raise _damaged("settings, inputs and fingerprint do not belong together", kind, path)


def _damaged(what: str, kind: str, path: Path | Root) -> ShardError:
    hint = f"vidbrain verify {path.parent} --repair --source SOURCE, where that is still there"
    if kind != "shards":
        hint = "remove it, then give `vidbrain tokenize` again"
    return ShardError(f"the root record is damaged: {what}", where=path, hint=hint)


def _is_named_rightly(info: dict[str, Any]) -> bool:
    config, made_from = info["config"], info["made_from"]
    if not all(isinstance(made_from.get(name), str) for name in ("plan", "source")):
        return False
    try:
        parse_size(config["size"])
    except (KeyError, ConfigError):
        return False
    return bool(info["fingerprint"] == expected_fingerprint("shards", config, made_from))


def _is_sound(info: dict[str, Any], name: str) -> bool:
    if name == "index_sha256":
        return is_sha256(info[name])
    held = info[name]
    if not isinstance(held, dict) or not all(isinstance(held.get(part), list) for part in ("n_bytes", "sha256")):
        return False
    counts, sums = held["n_bytes"], held["sha256"]
    sized = len(counts) == len(sums) == info.get("n_shards")
    return sized and all(map(is_count, counts)) and all(map(is_sha256, sums))


def is_sha256(value: object) -> TypeGuard[str]:
    """Whether this is written as a SHA-256."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def is_count(value: object) -> TypeGuard[int]:
    """Whether this is a number of things, as a column of the index holds it; a truth value is none."""
    return type(value) is int and 0 <= value < 2**63
