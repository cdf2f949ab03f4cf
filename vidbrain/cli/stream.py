"""``vidbrain stream``: measure streaming, or say what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vidbrain.cli.console import Console, Flag
from vidbrain.errors import ConfigError
from vidbrain.records import ClipSpec, World
from vidbrain.storage.cache import CACHE, CACHE_BYTES
from vidbrain.storage.roots import data_root
from vidbrain.stream.loader import Loader
from vidbrain.stream.measure import measure
from vidbrain.stream.opening import open_part
from vidbrain.stream.simulate import simulate as walk
from vidbrain.stream.source import ClipSource

DECODE_S = 2.0
"""How long --simulate reads, to say how fast that is."""


def stream(
    data: str | None = None,
    /,
    *,
    subset: str | None = None,
    split: Literal["train", "val"] | None = None,
    clip: Annotated[ClipSpec, Parameter(name="clip")] = ClipSpec(),  # noqa: B008 -- frozen
    batch_size: int = 32,
    seed: int = 0,
    processes: int = 1,
    workers: int | Literal["auto"] = "auto",
    cache: Path = Path(CACHE),
    cache_bytes: str = CACHE_BYTES,
    batches: int = 200,
    simulate: Flag = False,
    json: Flag = False,
) -> None:
    """Measure how fast clips stream, or say what an epoch would cost.

    Example: `vidbrain stream shards/demo/data --simulate --clip.stride 16`

    Parameters
    ----------
    data
        Data set of frames, a folder or a URL; default data in the data root.
    subset
        Frames of the prefix to take, as 100k, or the file of a subset.
    split
        train or val; default both.
    clip
        Frames, step and stride of a clip.
    batch_size
        Clips in a global batch, over all processes.
    seed
        Of the order.
    processes
        Training processes; what is read and said is the share of the first.
    workers
        Threads that read; auto finds out how many are fastest.
    cache
        Folder that keeps shards which come from a URL.
    cache_bytes
        Its limit.
    batches
        How many to read; with --simulate they are read for two seconds at most, and 0 reads nothing.
    simulate
        Walk through an epoch's order: requests, bytes, open shards, downloads at several cache limits.
    json
        Print JSON.
    """
    console = Console(json=json)
    manifest = open_part(data or data_root() / "data", subset)
    source = ClipSource(manifest, clip, split, cache=cache, cache_bytes=cache_bytes)
    world = World(0, processes)
    loader = Loader(source, batch_size=batch_size, seed=seed, world=world, workers=workers, progress=console.progress())
    if batches < (0 if simulate else 1):
        raise ConfigError(f"there is nothing to measure in {batches} batches", where="--batches")
    found = measure(loader, batches, most_s=DECODE_S if simulate else float("inf"))
    if not simulate:
        console.print_result({"root": str(manifest.root), "memory_bytes": loader.memory_bytes, **found})
        return
    costs = walk(manifest.segments, source.table, loader.order(0), world=world)
    table = costs.pop("cache")
    facts = {
        "root": str(manifest.root),
        **costs,
        "memory_bytes": loader.memory_bytes,
        "expected_clips_per_s": found["clips_per_s"],
    }
    if json:
        console.print_result({**facts, "cache": table})
        return
    console.print_result(facts)
    console.print_rows(table, title="cache")
