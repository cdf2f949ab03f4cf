"""What a folder or URL of shards says it is becoming: the plan's record, and what to say when another plan is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidbrain.errors import ResumeError, StorageError
from vidbrain.sharding.manifest import SHARDS, SPOOL
from vidbrain.sharding.plan import Listed, Plan, parse_size
from vidbrain.sharding.record import DATASET, find_record, is_count
from vidbrain.storage.atomic import json_bytes
from vidbrain.storage.files import ObjectExistsError
from vidbrain.storage.info import difference, expected_fingerprint
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import find_json
from vidbrain.storage.trees import CLAIM as TRANSFER

PLAN = "plan.json"
SKIPPED = "skipped.json"


@dataclass(frozen=True)
class Claim:
    """What decides the content of a data set.

    Attributes
    ----------
    config
        Settings, filter and codec, as plain values.
    made_from
        Fingerprints of plan and source.
    recordings
        Frames and bytes of each recording of the source: they say what has changed.
    codec_choice
        Why the codec was chosen; None where it was named. A data set that grows or was killed goes on with it.
    """

    config: dict[str, Any]
    made_from: dict[str, str]
    recordings: dict[str, list[int]]
    codec_choice: dict[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Of the data set that this becomes."""
        return expected_fingerprint("shards", self.config, self.made_from)

    def is_another_size_of(self, other: Claim) -> bool:
        """Whether both have the same segments before them, of which each takes its prefix."""
        sized = {**self.config, "size": other.config["size"]}
        return sized == other.config and self.recordings == other.recordings


def recordings_of(listing: Sequence[Listed]) -> dict[str, list[int]]:
    """Frames and bytes of each recording."""
    return {item.recording.key: [item.n_frames, item.n_bytes] for item in listing}


def check_claim(root: Root, claim: Claim, plan: Plan, plan_of: Callable[[str], Plan]) -> None:
    """Refuse a place that holds another plan, and let a data set grow.

    Parameters
    ----------
    root
        The data set's folder or URL.
    claim
        What is to be written.
    plan
        Its plan.
    plan_of
        Gives the plan of another size of the same source and settings.

    Raises
    ------
    ResumeError
        If the place holds, or is becoming, something that this is no continuation of; says what differs.
    StorageError
        If it holds shards without the record of their plan, or something else.
    ShardError
        If its root record is damaged.
    """
    found = read_claim(root)
    if found is None:
        _check_empty(root)
        return
    if root.exists(TRANSFER):
        raise StorageError("a push or pull to this place is unfinished", where=root, hint="give that command again")
    sized = {**found.config, "size": claim.config["size"]}
    if sized != claim.config or found.made_from["source"] != claim.made_from["source"]:
        raise ResumeError(
            f"a data set of another plan is there: {_differences(found, claim)}",
            where=root,
            hint="give another output, or remove this one first",
        )
    finished = find_record(root)
    # In a folder, a lock says whether somebody works on the other size. At a URL nothing does.
    if not root.is_local and found.config != claim.config and (finished is None or finished["config"] != found.config):
        size = found.config["size"]
        raise ResumeError(
            f"an unfinished data set of size {size} is there, and another machine may be working on it",
            where=root,
            hint=f"finish it with --size {size}, then let it grow; or give another output",
        )
    if finished is None:
        if found.config == claim.config and found.made_from != claim.made_from:
            raise ResumeError(
                "an unfinished data set of another version's plan is there",
                where=root,
                hint="remove it, and give the command again",
            )
        return
    size = str(finished["config"]["size"])
    old = plan_of(size)
    if old.fingerprint != finished["made_from"]["plan"]:
        raise ResumeError(
            f"the data set there was planned by another version: {difference(finished, claim.config, claim.made_from)}",
            where=root,
            hint="give another output, or remove this one first",
        )
    if plan.n_frames < old.n_frames:
        raise ResumeError(
            f"the data set there holds {old.n_frames:,} frames already, more than size {claim.config['size']} asks for",
            where=root,
            hint=f"vidbrain subset {root} --size {claim.config['size']} --out NAME, or give another output",
        )
    if plan.shards[: len(old.shards)] != old.shards:
        raise ResumeError(
            f"the data set there ends at {old.n_frames:,} frames inside a shard, so growing it would rewrite that one",
            where=root,
            hint="sizes that grow in place are 10k, 100k, 1M, 6M, 10M, 100M and 1G; give another output",
        )


def _check_empty(root: Root) -> None:
    """Refuse shards and spool of unknown settings: they must not be taken for those of this plan."""
    if root.is_local:
        held = [name for name in (DATASET, SHARDS, SPOOL) if (Path(root.url) / name).exists()]
    else:
        held = [found.key for found in root.list(limit=3)]
    if held:
        raise StorageError(
            f"there is {', '.join(held)}, but no {PLAN}",
            where=root,
            hint="give another output, or remove this one first",
        )


def read_claim(root: str | Path | Root) -> Claim | None:
    """Read the record that stands in a folder or at a URL; None if there is none.

    Raises
    ------
    StorageError
        If it is damaged.
    """
    place = open_root(root)
    record = find_json(place, PLAN)
    if record is None:
        return None
    try:
        json_bytes(record)  # refuses numbers that are none
        claim = Claim(record["config"], record["made_from"], record["recordings"], record.get("codec_choice"))
        whole = _is_possible(claim)
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise StorageError(
            "the record of the plan is damaged, or of an older version",
            where=place / PLAN,
            hint="remove the data set, shard again",
        )
    return claim


def _is_possible(claim: Claim) -> bool:
    config = claim.config
    parse_size(config["size"])
    names = [config["size"], config["codec"], claim.made_from["source"], claim.made_from["plan"]]
    if not all(isinstance(name, str) for name in names) or not isinstance(config["only"], dict):
        return False
    counted = all(len(pair) == 2 and all(map(is_count, pair)) for pair in claim.recordings.values())
    return counted and _is_of(claim.codec_choice, config["codec"])


def _is_of(choice: dict[str, Any] | None, codec: str) -> bool:
    """Whether a choice is of this codec, with the size that was measured, or there was none."""
    if choice is None:
        return True
    sizes = {row["codec"]: float(row["bytes_per_frame"]) for row in choice["measured"]}
    return choice["codec"] == codec and codec in sizes


def write_claim(root: Root, claim: Claim) -> None:
    """Write the plan's record, unless it is there.

    Raises
    ------
    ResumeError
        If another command has written one since the place was checked.
    """
    found = read_claim(root)
    if found == claim:
        return
    choice = {"codec_choice": claim.codec_choice} if claim.codec_choice else {}
    record = {"config": claim.config, "made_from": claim.made_from, **choice, "recordings": claim.recordings}
    try:
        # Over an older record it is written without condition: `Target.check_before_the_end` looks again.
        root.put(PLAN, json_bytes(record), if_absent=found is None)
    except ObjectExistsError:
        raise ResumeError(
            "another command began there at this moment", where=root, hint="give the command again"
        ) from None


def read_skipped(root: str | Path | Root) -> dict[str, str]:
    """Recordings that an earlier call found to be unreadable while it decoded, with the reasons."""
    place = open_root(root)
    for name in (SKIPPED, DATASET):
        record = find_json(place, name)
        if record is not None:
            values = record if name == SKIPPED else record.get("skipped", {}) if isinstance(record, dict) else {}
            if not isinstance(values, dict):
                raise StorageError("the list of skipped recordings is damaged", where=place / name)
            return {str(key): str(what) for key, what in values.items()}
    return {}


def write_skipped(root: Root, skipped: Mapping[str, str]) -> None:
    """Keep the list through a kill; None of it is left when the data set is finished."""
    if skipped:
        root.put(SKIPPED, json_bytes(dict(sorted(skipped.items()))))
    else:
        root.delete(SKIPPED)


def _differences(found: Claim, claim: Claim) -> str:
    said = []
    sized = {**found.config, "size": claim.config["size"]}  # which may differ
    if sized != claim.config:
        said.append(difference({"config": sized}, claim.config, {}))
    old, new = found.recordings, claim.recordings
    gone, more = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    changed = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
    if gone:
        said.append(f"{len(gone)} recording(s) of the source are gone ({', '.join(gone[:3])})")
    if more:
        said.append(f"{len(more)} recording(s) are new ({', '.join(more[:3])})")
    if changed:
        key = changed[0]
        (frames, n_bytes), (frames_now, n_bytes_now) = old[key], new[key]
        said.append(
            f"{len(changed)} recording(s) have changed ({key} had {frames:,} frames in {n_bytes:,} bytes, "
            f"has {frames_now:,} in {n_bytes_now:,})"
        )
    return "; ".join(said)
