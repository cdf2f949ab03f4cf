"""The raw BIDS tree around derivatives: which runs were scanned, and when the last event of each ends."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from vidbrain.bold.bids import run_of, run_order
from vidbrain.bold.datasets import dataset_root
from vidbrain.errors import BoldError
from vidbrain.records import RunKey


def raw_runs(bids_root: str | Path) -> list[RunKey]:
    """Runs of a raw BIDS tree that have a series, fetched or not; ``__dup`` repeats are none."""
    root = Path(bids_root)
    paths = [*root.glob("sub-*/func/*_bold.nii*"), *root.glob("sub-*/ses-*/func/*_bold.nii*")]
    keys = {run_of(path) for path in paths if "__dup" not in path.name and "_task-" in path.name}
    return sorted(keys, key=run_order)


def events_above(source: str | Path) -> Path | None:
    """The BIDS tree that holds ``derivatives/<source>``, where it has events; else None."""
    source = Path(source).absolute()
    if source.is_file():
        source = dataset_root(source) or source
    source = source.resolve()
    if source.parent.name != "derivatives":
        return None
    root = source.parent.parent
    return root if any(_event_files(root)) else None


def events_end(bids_root: str | Path) -> dict[RunKey, float]:
    """Second at which the last event of each run ends, on the run's clock.

    Rows without a recording count: they were played, and their volumes exist. Runs whose events have no end (none has a
    duration, or there are none) are left out.

    Raises
    ------
    BoldError
        If there are no events, or a table cannot be read or has no onset and duration.
    """
    ends: dict[RunKey, float] = {}
    paths = _event_files(Path(bids_root))
    for path in paths:
        try:
            table = pd.read_csv(path, sep="\t")
            end_s = float((table["onset"] + table["duration"]).max())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BoldError(
                f"the events table cannot be read: {type(error).__name__}: {error}",
                where=path,
                likely="a damaged table, or a DataLad file whose content has not been fetched",
                hint="mend or fetch the table; it needs the columns onset and duration, in seconds",
            ) from error
        if math.isfinite(end_s):
            ends[RunKey.parse(path.name)] = end_s
    if not paths:
        raise BoldError("there are no *_events.tsv files", where=bids_root, hint="give the root of the BIDS tree")
    return ends


def _event_files(root: Path) -> list[Path]:
    paths = [*root.glob("sub-*/func/*_events.tsv"), *root.glob("sub-*/ses-*/func/*_events.tsv")]
    return sorted(path for path in paths if "_desc-" not in path.name and "__dup" not in path.name)
