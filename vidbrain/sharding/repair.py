"""Rebuilds from the source what `verify` finds damaged, and nothing else; the bytes are those that were there."""

from __future__ import annotations

from pathlib import Path

from vidbrain.cluster import Client
from vidbrain.config import from_mapping
from vidbrain.errors import ConfigError, ShardError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.claims import check_claim, read_claim
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.job import job_of
from vidbrain.sharding.manifest import DATASET, marker_path, shard_path
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import execute, is_whole
from vidbrain.storage.atomic import remove
from vidbrain.storage.info import read_info
from vidbrain.storage.locks import locked


def repair(
    root: str | Path,
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
        Data set of frames.
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
        If the folder holds no plan to rebuild by, or another process writes there.
    """
    root, client = Path(root), client or Client()
    claim = read_claim(root)
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
    job = job_of(source, root, config, only=only, integration=integration, client=client)
    plan = job.plan_of(config.size)
    with locked(root):
        try:
            read_info(root, "shards", name=DATASET)
        except StorageError:
            remove(root / DATASET)  # it is written again, from the plan's record
        check_claim(root, job.claim(), plan, job.plan_of)
        rebuilt = [shard for shard in range(len(plan.shards)) if not is_whole(root, shard, plan)]
        # First what can be seen without reading: it makes index and record whole, which `verify` stands on.
        execute(job, plan, root, client, progress)
        damaged = sorted({damage.shard for damage in verify(root, client=client, progress=progress)})
        for shard in damaged:
            remove(marker_path(root, shard))
            remove(shard_path(root, shard))
        if damaged:
            execute(job, plan, root, client, progress)
            left = [damage for damage in verify(root, client=client, progress=progress) if damage.shard in damaged]
            if left:
                raise ShardError(
                    f"shard {left[0].shard} is damaged again after it was rebuilt: {left[0].what}",
                    where=shard_path(root, left[0].shard),
                    likely="the disk or the memory of this machine is faulty",
                )
    return sorted({*rebuilt, *damaged})
