"""A simulated BOLD store: every run is made, cleaned and written, without a file of its series in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain.bold.bids import RunFiles, run_order
from vidbrain.bold.datasets import description
from vidbrain.bold.forms.series import Rectangle
from vidbrain.bold.ingest import IngestConfig, write_store
from vidbrain.bold.layout import masked_volume
from vidbrain.bold.run import IngestRow
from vidbrain.bold.simulation.scan import Scan, ScanRow, is_scanned, scan_files, write_beside
from vidbrain.bold.simulation.truth import open_truth
from vidbrain.bold.store import KIND, lost_folders, read_record
from vidbrain.bold.voxels import flat_index
from vidbrain.cluster import Client
from vidbrain.config import to_mapping
from vidbrain.progress import Progress
from vidbrain.records import RunKey
from vidbrain.storage.info import expected_fingerprint, is_done
from vidbrain.video.clock import MIDDLE

CONFIG = IngestConfig()
"""How the store is cleaned: as `vidbrain bold ingest` does where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class ScanSeries:
    """A run that is simulated while it is read: a series as `vidbrain.bold.forms.series` describes it.

    Values are those that a reader of the NIfTI file would find. When the last volume is made, mask, confounds and
    sidecar are written, unless they lie beside a NIfTI file already.
    """

    row: ScanRow
    shape: tuple[int, int, int]
    n_trs: int
    tr_s: float

    @property
    def path(self) -> Path:
        """Where the series would lie."""
        return scan_files(self.row.root, self.row.run, self.row.space)["bold"]

    @property
    def form(self) -> str:
        """Name of the form."""
        return "simulated"

    @property
    def n_columns(self) -> int:
        """Voxels of a volume, inside and outside the brain."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> str:
        """Type of the values, unscaled."""
        return "<f4" if self.row.slope is None else "<i2"

    @property
    def slope(self) -> float:
        """Value of one stored step, as the header of a NIfTI file holds it: in float32."""
        return 1.0 if self.row.slope is None else float(np.float32(self.row.slope))

    @property
    def inter(self) -> float:
        """Nothing is added."""
        return 0.0

    def layout(self) -> None:
        """The truth says which voxels are in the brain."""

    def rectangles(self) -> Iterator[Rectangle]:
        """Whole volumes, from the first to the last, as they are made."""
        truth = open_truth(self.row.root / "truth")
        scan = Scan(self.row, truth)
        first = 0
        for stored in scan.blocks():
            yield Rectangle(first, 0, stored)
            first += len(stored)
        if not is_scanned(self.row.root, self.row.run, self.row.fingerprint, self.row.space):
            write_beside(self.row, truth, scan.confounds(), None)


def is_stored(store: Path, simulation: str) -> bool:
    """Whether the store is whole and of this simulation (its fingerprint); refuses a store of another one."""
    if not is_done(store, KIND, config=to_mapping(CONFIG), made_from={"simulation": simulation}):
        return False
    return not lost_folders(store, [run["label"] for run in read_record(store)["runs"]])


def write_simulated_store(
    store: Path, rows: Sequence[ScanRow], *, client: Client, progress: Progress
) -> dict[str, Any]:
    """Simulate runs into a BOLD store; runs that are whole already stay.

    Parameters
    ----------
    store
        Folder of the store.
    rows
        The runs, of one simulation whose truth is on disk.
    client, progress
        Who does the work, and who listens.

    Returns
    -------
    dict
        The root record of the store.

    Raises
    ------
    StorageError
        If another process writes there, or the place cannot be written or is too small.
    """
    root = rows[0].root
    truth = open_truth(root / "truth")
    affine = tuple(tuple(float(x) for x in row) for row in truth.affine)
    layout = masked_volume(truth.ijk, flat_index(truth.ijk, truth.shape), truth.shape, affine)
    settings, made_from = to_mapping(CONFIG), {"simulation": rows[0].fingerprint}
    name = expected_fingerprint(KIND, settings, made_from)
    ingest_rows = []
    for row in sorted(rows, key=lambda one: run_order(RunKey.parse(one.run))):
        files = scan_files(root, row.run, row.space)
        ingest_rows.append(
            IngestRow(
                root=store,
                files=RunFiles(
                    run=RunKey.parse(row.run),
                    space=row.space,
                    bold=files["bold"],
                    mask=files["mask"],
                    confounds=files["confounds"],
                    sidecar=files["sidecar"],
                ),
                series=ScanSeries(row=row, shape=truth.shape, n_trs=truth.n_trs(row.run), tr_s=truth.tr_s),
                tr_s=truth.tr_s,
                slice_time_ref=MIDDLE,
                clean=CONFIG.clean,
                fingerprint=name,
            )
        )
    return write_store(
        store,
        layout,
        ingest_rows,
        settings=settings,
        made_from=made_from,
        facts={
            "simulated": True,
            "source": str(description(root).get("Name", "")),
            "mask": "the voxels that were simulated",
            "events_checked": False,
            "runs_without_series": [],
        },
        client=client,
        progress=progress,
    )
