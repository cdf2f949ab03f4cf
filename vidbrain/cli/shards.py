"""``vidbrain shards`` and ``vidbrain subset``: describe, tidy and choose from data sets of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vidbrain.cli.console import Console, Flag
from vidbrain.sharding.describe import describe, find_datasets
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.orphans import collect, find_orphans
from vidbrain.sharding.subset import subset_path, write_subset
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import data_root, locate

app = App(name="shards", help="Describe data sets of shards, and remove what nothing reads.")
_COLUMNS = (
    "root",
    "kind",
    "n_frames",
    "hours",
    "subjects",
    "codec",
    "frame_size",
    "n_shards",
    "n_bytes",
    "fingerprint",
)


@app.command
def ls(root: Path | None = None, /, *, json: Flag = False) -> None:
    """List data sets of shards: frames, hours, subjects, codecs, sizes, prefixes, fingerprints.

    Example: `vidbrain shards ls shards/demo`

    Parameters
    ----------
    root
        One data set or subset, which is described in full, or a folder or URL of them; default the data root.
    json
        Print JSON.
    """
    console = Console(json=json)
    place = locate(root or data_root())
    found = find_datasets(place)
    described = [describe(path) for path in found]
    if json:
        console.print_rows(described)
    elif found == [place]:
        prefixes = described[0].pop("prefixes")
        console.print_result(described[0])
        if prefixes:
            console.print_rows(prefixes, title="prefixes")
    else:
        console.print_rows([{name: row[name] for name in _COLUMNS} for row in described])


@app.command
def gc(root: Path | None = None, /, *, work: Path | None = None, dry_run: Flag = False, json: Flag = False) -> None:
    """Remove what killed or abandoned work left in a data set, and what no shard of it is.

    Example: `vidbrain shards gc shards/demo/data --dry-run`

    Parameters
    ----------
    root
        Data set, a folder or a URL; default data/ in the data root. What an unfinished one needs to go on is kept.
    work
        For a data set at a URL: what `vidbrain shard` was given as --work.
    dry_run
        List, and remove nothing.
    json
        Print JSON.
    """
    console, place = Console(json=json), locate(root or data_root() / "data")
    if isinstance(place, Root):
        console.note("parts of killed uploads cannot be listed here; a rule of the bucket removes them")
    orphans = find_orphans(place, work) if dry_run else collect(place, work)
    name = "would_remove" if dry_run else "removed"
    below = f"{open_root(place)}/"
    console.print_result({"root": str(place), name: [str(orphan).removeprefix(below) for orphan in orphans]})


def subset(
    data: Path | None = None,
    /,
    *,
    out: Path,
    size: str = "all",
    only: Annotated[Filter, Parameter(name="*", consume_multiple=True)] = Filter(),  # noqa: B008 -- frozen
    json: Flag = False,
) -> None:
    """Name a prefix or a filter of a data set without copying a byte.

    Every command that takes a data set of frames takes the file that this writes.

    Example: `vidbrain subset shards/demo/data --size 5k --out shards/demo/small`

    Parameters
    ----------
    data
        Data set of frames, a folder or a URL; default data/ in the data root.
    out
        File to write, or URL; .json is added.
    size
        Frames: 10k, 100k, 1M, 6M, any count, or all that the filter leaves.
    only
        Which recordings to take.
    json
        Print JSON.
    """
    record = write_subset(out, open_manifest(data or data_root() / "data"), size=size, only=only)
    config = record["config"]
    names = ("n_segments", "n_recordings", "fingerprint")
    Console(json=json).print_result(
        {
            "subset": str(subset_path(out)),
            "n_frames": config["n_frames"],
            **{name: record[name] for name in names},
        }
    )
