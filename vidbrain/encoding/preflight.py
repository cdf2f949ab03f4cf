"""What an encoding will cost, before it begins: operations of each form, memory, disk and seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from vidbrain.encoding.decompose import gather_sets
from vidbrain.encoding.design.matrix import TILE
from vidbrain.encoding.folds import Layout
from vidbrain.encoding.ridge import gram
from vidbrain.errors import EncodingError

FORMS: tuple[gram.Form, ...] = ("primal", "dual", "hat")
HAT_GAIN = 1.5
"""The hat form scales columns once for all inner folds, the others fold by fold; it is chosen by itself only where it
saves a third of the operations."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that decide the cost.

    Attributes
    ----------
    n_rows, n_columns, n_voxels
        TRs that are used, columns of the design, voxels.
    n_alphas, n_candidates, n_bands
        What each voxel chooses from.
    design_bytes
        Of the design on disk.
    n_directions
        Directions of a training set at most, where columns are reduced; else as many as columns.
    n_terms
        Products in place of one an alpha, where alphas are compressed; else `n_alphas`.
    """

    n_rows: int
    n_columns: int
    n_voxels: int
    n_alphas: int
    design_bytes: int = 0
    n_candidates: int = 1
    n_bands: int = 1
    n_directions: int | None = None
    n_terms: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Operations and bytes of one form.

    Attributes
    ----------
    plan_flops, voxel_flops
        Floating-point operations on the feature side (float64) and on the voxel side (float32).
    plan_bytes
        Of the plan on disk.
    set_bytes
        Of the largest training set in memory.
    n_sets
        Training sets, over all candidates.
    """

    plan_flops: float
    voxel_flops: float
    plan_bytes: float
    set_bytes: float
    n_sets: int


def cost_of(layout: Layout, form: gram.Form, shape: Shape) -> Cost:
    """Count the operations of a form, multiplication and addition apart.

    Gram matrix ``n p^2``, eigenvectors ``9 p^3`` a training set (``n_t`` in place of p for kernels), ``X'Y`` once, Z
    ``2 q p`` a voxel and set, W ``2 q n_v``, norms of predictions ``2 (k q - k^2 / 2)`` an alpha with k = min(n_v, q);
    hat blocks ``2 n_v (q + n_v)`` an alpha.
    """
    n, p, t, r = shape.n_rows, shape.n_columns, shape.n_voxels, shape.n_alphas
    tasks = gather_sets(layout, form)
    plan = n * p**2 if form != "dual" else 0.0
    voxel = 2.0 * n * p * t if form != "dual" else 0.0
    plan_bytes, largest = float(shape.design_bytes), 0.0
    terms = shape.n_terms or r
    for task in tasks:
        n_train = len(task.rows)
        inner = n_train if form == "dual" else p
        q = min(shape.n_directions or p, n_train - 1)
        plan += shape.n_candidates * (9.0 * inner**3 + (2.0 * inner**2 * p if form == "dual" else 0.0))
        flops, size = 2.0 * q * inner * t, 4.0 * q * (inner + r)
        for _, rows in task.validations:
            n_v = len(rows)
            k = min(n_v, q)
            if form == "hat":
                flops += 2.0 * r * n_v * (q + n_v) * t
                size += 4.0 * (n_v * q + r * n_v**2)
            else:
                flops += 2.0 * t * (q * n_v + terms * (k * q - k * k / 2) + r * q)
                size += 4.0 * q * (k + n_v)
        voxel += shape.n_candidates * flops if task.validations else 0.0
        for _, _, rows in task.tests:
            voxel += 2.0 * q * t * (inner + len(rows) * shape.n_bands)
            size += 4.0 * q * len(rows) * shape.n_bands
        plan_bytes += shape.n_candidates * size
        largest = max(largest, size)
    return Cost(
        plan_flops=plan,
        voxel_flops=voxel,
        plan_bytes=plan_bytes,
        set_bytes=largest,
        n_sets=len(tasks) * shape.n_candidates,
    )


def choose_form(costs: dict[gram.Form, Cost]) -> gram.Form:
    """Choose the form with the fewest operations."""
    total = {form: cost.plan_flops + cost.voxel_flops for form, cost in costs.items()}
    exact: gram.Form = "dual" if total["dual"] < total["primal"] else "primal"
    return "hat" if HAT_GAIN * total["hat"] < total[exact] else exact


def worker_bytes(cost: Cost, form: gram.Form, shape: Shape, block: int, layout: Layout, n_cells: int) -> int:
    """Foresee the largest arrays of a worker: BOLD and what is made of it, products by cell, scores, one training set.

    Parameters
    ----------
    cost, form, shape, layout
        As counted.
    block
        Voxels of one task.
    n_cells
        Cells of rows whose products are kept apart.
    """
    t = min(block, shape.n_voxels)
    series = 4.0 * shape.n_rows * t
    total = series * (5 + shape.n_bands) + 2 * cost.set_bytes
    total += 4.0 * len(layout.folds) * shape.n_alphas * t * 2
    if form != "dual":
        total += (4.0 * n_cells + 8.0 + 4.0) * shape.n_columns * t
    # Shrunk copies of a tile, and its predictions, for the terms of a compression or one alpha at a time.
    total += 4.0 * TILE * shape.n_columns * (2 * (shape.n_terms or 2) + 4)
    return int(total)


def sgemm_rate(seconds: float = 0.05) -> float:
    """Measure one core's float32 matrix product, in operations a second, for about as long as asked."""
    a, b = np.ones((768, 768), np.float32), np.ones((768, TILE), np.float32)
    flops, began = 0.0, time.perf_counter()
    with threadpool_limits(1):
        a @ b  # the first call starts the library
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            a @ b
            flops += 2.0 * 768 * 768 * TILE
    return flops / (time.perf_counter() - began)


def available_bytes() -> int:
    """Memory that this machine can still give, in bytes: of the control group where it is limited, else of all."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 -- a kernel table, not a document
            fields = dict(line.split(":", 1) for line in file)
        pages = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass  # not Linux: pages that are free now are the smaller, safe answer
    return int(pages)


def check_memory(worker: int, n_workers: int, block: int, options: Sequence[str], *, where: str = "") -> None:
    """Refuse what cannot fit, and say which option makes it fit.

    Parameters
    ----------
    worker
        Bytes of one worker.
    n_workers
        Workers on this machine.
    block
        Voxels of one task.
    options
        Further options that shrink it.

    Raises
    ------
    EncodingError
        If the workers need more memory than there is.
    """
    have = available_bytes()
    if worker * n_workers <= have:
        return
    smaller = [f"--voxels-per-block {max(TILE, block // 2 // TILE * TILE)}"] if block > TILE else []
    fewer = [f"--workers {max(1, have // worker)}"] if n_workers > 1 and have >= worker else []
    raise EncodingError(
        f"{n_workers} workers need about {worker * n_workers / 1e9:.1f} GB, {have / 1e9:.1f} GB are free",
        where=where or None,
        hint=" or ".join([*smaller, *fewer, *options]) or "a machine with more memory",
    )


def estimate(cost: Cost, form: gram.Form, shape: Shape, worker: int, rate: float, n_workers: int) -> dict[str, Any]:
    """Put the expectation together for people and scripts; seconds are those of products alone, at the given rate."""
    return {
        "form": form,
        "n_rows": shape.n_rows,
        "n_columns": shape.n_columns,
        "n_voxels": shape.n_voxels,
        "training_sets": cost.n_sets,
        "flops": cost.voxel_flops,
        "plan_flops": cost.plan_flops,
        "worker_bytes": worker,
        "plan_bytes": int(cost.plan_bytes),
        "read_bytes": 4 * shape.n_rows * shape.n_voxels,
        "seconds_at_least": round((cost.voxel_flops + 2 * cost.plan_flops) / (rate * max(n_workers, 1)), 1),
    }
