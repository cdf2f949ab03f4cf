"""``vidbrain shard`` and ``vidbrain verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain import cluster
from vidbrain.cli.console import Console, Flag
from vidbrain.errors import ShardError
from vidbrain.sharding.describe import kind_of
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.job import job_of
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.repair import repair as rebuild
from vidbrain.sharding.target import target_of
from vidbrain.sharding.verify import verify as verify_shards
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.roots import data_root, locate


def shard(
    source: Path | None = None,
    /,
    *,
    out: Path | None = None,
    config: Annotated[ShardConfig, Parameter(name="*")] = ShardConfig(),  # noqa: B008 -- frozen
    only: Annotated[Filter, Parameter(name="*", consume_multiple=True)] = Filter(),  # noqa: B008 -- frozen
    integration: Path | None = None,
    work: Path | None = None,
    keep_spool: Flag = False,
    workers: int | None = None,
    scheduler: str = "local",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Write video as WebDataset shards with an index.

    Example: `vidbrain shard shards/demo/game --out shards/demo/data --size 10k`

    Parameters
    ----------
    source
        BIDS tree of game play (replayed, or `.bk2` only), a folder of videos, one video, or a list of files (.tsv,
        .csv, .txt); default game/ in the data root.
    out
        Folder or URL (s3://, gs://, az://) to write; default data/ in the data root. A larger size adds shards to the
        ones there.
    config
        What decides the content.
    only
        Which recordings to take.
    integration
        Folder with your own ROM and integration, for recordings without a video.
    work
        For an output at a URL: where to keep what is not sent yet; default vidbrain/work in $XDG_CACHE_HOME or
        ~/.cache. It holds the spool and a few tars.
    keep_spool
        Keep what is encoded of each recording, so that a larger size later decodes no recording twice. Until then it
        takes as much disk as --size all. `vidbrain shards gc` removes it.
    workers
        Worker processes; default one per core. The bytes do not depend on it.
    scheduler
        local, inline, slurm, or the address of a Dask scheduler.
    dry_run
        Print the plan and what it would take, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    source, place = source or data_root() / "game", locate(out or data_root() / "data")
    target_of(place, work)  # says at once what can never be written to
    with cluster.client(scheduler, 0 if dry_run else workers) as client:
        if dry_run:
            job = job_of(source, place, config, only=only, integration=integration, client=client)
            plan = job.plan_of(config.size)
            for note in job.source.notes:
                console.note(note)
            held_out = sorted(key for key, split in plan.split.items() if split == "val")
            console.print_result(
                {
                    "frames": plan.n_frames,
                    "segments": len(plan.segments),
                    "shards": len(plan.shards),
                    "recordings": len(set(plan.segments.recording.tolist())),
                    "held_out": held_out,
                    "codec": job.config.codec,
                    "bytes_at_most": job.estimate_bytes(plan, keep_spool=keep_spool),
                    "plan": plan.fingerprint,
                }
            )
            return
        record = write_shards(
            source,
            place,
            config,
            only=only,
            integration=integration,
            work=work,
            keep_spool=keep_spool,
            client=client,
            progress=console.progress(),
        )
    names = ("n_frames", "n_segments", "n_shards", "n_recordings", "n_bytes", "codec", "skipped", "fingerprint")
    console.print_result({"root": str(place), **{name: record[name] for name in names}})


def verify(
    root: Path | None = None,
    /,
    *,
    repair: Flag = False,
    source: Path | None = None,
    integration: Path | None = None,
    workers: int | None = None,
    json: Flag = False,
) -> None:
    """Check every byte of a data set of shards, and rebuild what is damaged.

    Example: `vidbrain verify shards/demo/data`

    Parameters
    ----------
    root
        Data set of frames or codes, a folder or a URL; default data/ in the data root.
    repair
        Rebuild what is damaged, and only that, from the source.
    source
        For --repair: what the data set was made from; default game/ in the data root.
    integration
        For --repair: folder with your own ROM, where the source is recorded input.
    workers
        Worker processes; default one per core.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    place = locate(root or data_root() / "data")
    kind = kind_of(place)
    if repair and kind == "codes":
        raise ShardError("codes are repaired by making them again", where=place, hint="vidbrain tokenize")
    with cluster.client("local", workers) as client:
        if repair:
            source = source or data_root() / "game"
            rebuilt = rebuild(place, source, integration=integration, client=client, progress=console.progress())
            names = [shard_path(place, shard).name for shard in rebuilt]
            console.print_result({"root": str(place), "rebuilt_shards": names, "damaged": 0})
            return
        damage = verify_shards(place, kind=kind, client=client, progress=console.progress())
    manifest = open_manifest(place, kind=kind)
    if damage:
        console.print_rows([{"shard": d.shard, "segment": d.key, "what": d.what} for d in damage])
        shards = sorted({d.shard for d in damage})
        raise ShardError(
            f"{len(damage)} damages in {len(shards)} of {manifest.info['n_shards']} shards",
            where=shard_path(place, shards[0]),
            hint=f"vidbrain verify {place} --repair --source SOURCE" if kind == "shards" else "vidbrain tokenize",
        )
    console.print_result({"root": str(place), "segments": len(manifest.segments), "damaged": 0})
