"""Rebuilds from the source what `verify` finds damaged, and nothing else; the bytes are those that were there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vidbrain.cluster import Client
from vidbrain.config import from_mapping
from vidbrain.errors import ConfigError, ShardError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.claims import check_claim, read_claim
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.job import Job, job_of
from vidbrain.sharding.manifest import DATASET, shard_path
from vidbrain.sharding.plan import Plan, ShardConfig
from vidbrain.sharding.target import Target, target_of
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import execute
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.info import check_info
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
        _drop_damaged_record(target.root)
        check_claim(target.root, job.claim(), plan, job.plan_of)
        rebuilt = target.missing(plan)
        _rebuild(job, plan, target, rebuilt, client, progress)
        # First what can be seen without reading: it makes index and record whole, which `verify` stands on.
        damaged = sorted({damage.shard for damage in verify(target.root, client=client, progress=progress)})
        if damaged:
            _rebuild(job, plan, target, damaged, client, progress)
            left = [damage for damage in verify(target.root, client=client) if damage.shard in damaged]
            if left:
                raise ShardError(
                    f"shard {left[0].shard} is damaged again after it was rebuilt: {left[0].what}",
                    where=shard_path(target.root, left[0].shard),
                    likely="the disk or the memory of this machine is faulty",
                )
    return sorted({*rebuilt, *damaged})


def _drop_damaged_record(root: Root) -> None:
    """Remove a root record that says nothing: it is written again, from the plan's record."""
    try:
        data = root.get(DATASET)
    except ObjectMissingError:
        return
    try:
        check_info(json.loads(data), "shards", where=root / DATASET)
    except (ValueError, StorageError):
        root.delete(DATASET)


def _rebuild(job: Job, plan: Plan, target: Target, shards: Sequence[int], client: Client, progress: Progress) -> None:
    for shard in shards:
        target.discard(shard)
    execute(job, plan, target, client, progress)
