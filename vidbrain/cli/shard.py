"""``vidbrain shard`` and ``vidbrain verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain import cluster
from vidbrain.cli.console import Console, Flag
from vidbrain.errors import ShardError
from vidbrain.sharding.manifest import marker_path, open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.verify import verify as verify_shards
from vidbrain.sharding.writer import estimate_bytes, job_of, write_shards
from vidbrain.storage.roots import data_root


def shard(
    source: Path | None = None,
    /,
    *,
    out: Path | None = None,
    config: Annotated[ShardConfig, Parameter(name="*")] = ShardConfig(),  # noqa: B008 -- frozen
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
        BIDS tree with replayed game play, a folder of videos, or one video; default game/ in the data root.
    out
        Folder to write; default data/ in the data root.
    config
        What decides the content.
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
    source, out = source or data_root() / "game", out or data_root() / "data"
    with cluster.client(scheduler, 0 if dry_run else workers) as client:
        if dry_run:
            plan = job_of(source, out, config, client=client).plan_of(config.size)
            held_out = sorted(key for key, split in plan.split.items() if split == "val")
            console.print_result(
                {
                    "frames": plan.n_frames,
                    "segments": len(plan.segments),
                    "shards": len(plan.shards),
                    "recordings": len({s.recording for s in plan.segments}),
                    "held_out": held_out,
                    "bytes_at_most": estimate_bytes(plan, config),
                    "plan": plan.fingerprint,
                }
            )
            return
        record = write_shards(source, out, config, client=client, progress=console.progress())
    names = ("n_frames", "n_segments", "n_shards", "n_recordings", "n_bytes", "codec", "fingerprint")
    console.print_result({"root": str(out), **{name: record[name] for name in names}})


def verify(root: Path | None = None, /, *, workers: int | None = None, json: Flag = False) -> None:
    """Check every byte of a data set of shards.

    Example: `vidbrain verify shards/demo/data`

    Parameters
    ----------
    root
        Data set of frames or codes; default data/ in the data root.
    workers
        Worker processes; default one per core.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    root = root or data_root() / "data"
    kind = "codes" if _is_codes(root) else "shards"
    with cluster.client("local", workers) as client:
        damage = verify_shards(root, kind=kind, client=client, progress=console.progress())
    manifest = open_manifest(root, kind=kind)
    if damage:
        console.print_rows([{"shard": d.shard, "segment": d.key, "what": d.what} for d in damage])
        shards = sorted({d.shard for d in damage})
        raise ShardError(
            f"{len(damage)} damages in {len(shards)} of {manifest.info['n_shards']} shards",
            where=marker_path(root, shards[0]).with_suffix(".tar"),
            hint="remove the damaged tars with their .json markers and dataset.json, then shard again",
        )
    console.print_result({"root": str(root), "segments": len(manifest.segments), "damaged": 0})


def _is_codes(root: Path) -> bool:
    from vidbrain.sharding.manifest import DATASET
    from vidbrain.storage.atomic import read_json

    path = root / DATASET
    record = read_json(path) if path.is_file() else None
    return isinstance(record, dict) and record.get("vidbrain") == "codes"
