"""Rebuilds from the source what `verify` finds damaged, and nothing else; the bytes are those that were there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidbrain.cluster import Client
from vidbrain.config import from_mapping
from vidbrain.errors import ConfigError, ShardError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.claims import check_claim, read_claim
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.job import job_of
from vidbrain.sharding.manifest import SPOOL, open_manifest, shard_path
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.record import drop_damaged_record
from vidbrain.sharding.target import target_of
from vidbrain.sharding.verify import Damage, verify
from vidbrain.sharding.writer import execute
from vidbrain.storage.objects import Root


def repair(
    root: str | Path | Root,
    source: str | Path,
    *,
    integration: str | Path | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> list[int]:
    """Rebuild damaged shards of a data set, its index and its root record from the source that it was made from.

    Parameters
    ----------
    root
        Data set of frames, in a folder or at a URL.
    source
        Its source, unchanged.
    integration
        Folder with the user's own ROM, where the source is recorded input.
    client
        Runs recordings and shards in parallel.

    Returns
    -------
    list of int
        Numbers of the shards that were rebuilt.

    Raises
    ------
    ResumeError
        If the source has changed since, or is another.
    ShardError
        If it gives other bytes than those that were there.
    StorageError
        If there is no plan to rebuild by, or another process writes there.
    """
    target, client = target_of(root), client or Client()
    claim = read_claim(target.root)
    if claim is None:
        raise StorageError(
            "there is no plan to rebuild by", where=root, hint="give `vidbrain shard` with another output"
        )
    settings = {name: value for name, value in claim.config.items() if name != "only"}
    try:
        config = from_mapping(ShardConfig, settings, root)
        only = from_mapping(Filter, claim.config["only"], root)
    except (ConfigError, KeyError) as error:
        raise StorageError(f"the record of the plan is damaged: {error}", where=root) from error
    job = job_of(source, target.root, config, only=only, integration=integration, client=client)
    plan = job.plan_of(config.size)
    with target.alone():
        record = drop_damaged_record(target.root)
        check_claim(target.root, job.claim(), plan, job.plan_of)
        keep_spool = record is not None and (target.work / SPOOL).is_dir()  # of finished data sets some keep theirs
        wrong = set(target.missing(plan))
        # Where record and index are sound they know more than a marker does: an index that is written again from the
        # markers would agree with whatever they say.
        described = _is_described(target.root, record, job.outcome(plan).fingerprint)
        if described:
            wrong |= _damaged(verify(target.root, client=client, progress=progress))
        rebuilt: set[int] = set()
        while True:
            again = {shard: _sum_of(record, shard) for shard in sorted(wrong)}
            execute(job, plan, target, client, progress, keep_spool=keep_spool, again=again)
            rebuilt |= wrong
            if described and not wrong:
                return []
            left = verify(target.root, client=client, progress=progress)
            twice = [damage for damage in left if damage.shard in rebuilt]
            if twice:
                raise ShardError(
                    f"shard {twice[0].shard} is damaged again after it was rebuilt: {twice[0].what}",
                    where=shard_path(target.root, twice[0].shard),
                    likely="the disk or the memory of this machine is faulty",
                )
            wrong = _damaged(left)
            if not wrong:
                return sorted(rebuilt)


def _damaged(found: Sequence[Damage]) -> set[int]:
    return {damage.shard for damage in found}


def _is_described(root: Root, record: dict[str, Any] | None, fingerprint: str) -> bool:
    """Whether record and index are sound and of this plan."""
    if record is None or "index_sha256" not in record or record["fingerprint"] != fingerprint:
        return False
    try:
        open_manifest(root)
    except (ShardError, StorageError):  # what is damaged is written again; a store that is silent fails there too
        return False
    return True


def _sum_of(record: dict[str, Any] | None, shard: int) -> str | None:
    """SHA-256 of a tar as the root record says it, or None where it does not."""
    sums = record["shards"]["sha256"] if record is not None and "shards" in record else []
    return str(sums[shard]) if shard < len(sums) else None
