"""What is known before any voxel is read: runs that fit, the design, the folds, and what it will all cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.config import fingerprint, to_mapping
from vidbrain.encoding import preflight
from vidbrain.encoding.decompose import Choices, gather_sets
from vidbrain.encoding.design.align import BoldStoreLike, FeatureStoreLike, choose_layers, choose_runs
from vidbrain.encoding.design.assembly import build_design
from vidbrain.encoding.design.matrix import Design
from vidbrain.encoding.design.nuisance import nuisance_columns
from vidbrain.encoding.design.shifted import ShiftedFeatures
from vidbrain.encoding.folds import TEST, Layout, cells_of, deal, lay_out, matching
from vidbrain.encoding.inference.null import draw_block_permutations
from vidbrain.encoding.ridge import gram
from vidbrain.encoding.ridge.bands import draw_gammas
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import ConfigError, EncodingError
from vidbrain.records import RunKey
from vidbrain.video.clock import trimmed

PERFORMANCE_ONLY = ("voxels_per_block", "shared_runs_only")
"""Settings that do not change a bit of the result."""


@dataclass(frozen=True)
class Prepared:
    """What is known before any voxel is read."""

    layers: tuple[str, ...]
    runs: tuple[str, ...]
    design: Design
    layout: Layout
    choices: Choices
    shape: preflight.Shape
    costs: Mapping[gram.Form, preflight.Cost]
    form: gram.Form
    settings: dict[str, Any]
    made_from: dict[str, str]

    @property
    def cost(self) -> preflight.Cost:
        """Of the form that was chosen."""
        return self.costs[self.form]

    def worker_bytes(self, config: EncodeConfig) -> int:
        """Peak of a worker's arrays."""
        tasks = gather_sets(self.layout, self.form)
        used = [rows for t in tasks for rows in (t.rows, *(r for _, r in t.validations), *(r for _, _, r in t.tests))]
        n_cells = int(cells_of(used, self.shape.n_rows).max()) + 1
        return preflight.worker_bytes(self.cost, self.form, self.shape, config.block, self.layout, n_cells)

    def check_memory(self, config: EncodeConfig, n_workers: int) -> None:
        """Refuse what cannot fit in this machine's memory."""
        preflight.check_memory(self.worker_bytes(config), max(n_workers, 1), config.block, ())

    def estimate(self, config: EncodeConfig, n_workers: int) -> dict[str, Any]:
        """Operations, bytes and seconds, for people and scripts."""
        facts = preflight.estimate(
            self.cost, self.form, self.shape, self.worker_bytes(config), preflight.sgemm_rate(), n_workers
        )
        by_form = {form: cost.plan_flops + cost.voxel_flops for form, cost in self.costs.items()}
        return {**facts, "blocks": -(-self.shape.n_voxels // config.block), "flops_by_form": by_form}


def identity(
    features: FeatureStoreLike, bold: BoldStoreLike, config: EncodeConfig, layers: Sequence[str], runs: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and inputs that decide the result, as they stand in the root record."""
    settings = to_mapping(config) | {"layers": list(layers), "runs": list(runs)}
    for name in PERFORMANCE_ONLY:
        del settings[name]
    made_from = {"features": str(features.info["fingerprint"]), "bold": str(bold.info["fingerprint"])}
    # Parcels are added to a finished store, whose own name stays.
    if config.alpha_per == "parcel" or bold.parcels is not None:
        data = bold.open(runs[0])
        made_from["parcels"] = fingerprint(np.asarray(data["parcel"].values).tolist() if "parcel" in data else None)
    return settings, made_from


def taken_from(bold: BoldStoreLike) -> dict[str, bool]:
    """What the record of a store says of its cleaning beside the confounds; stores that say nothing were detrended."""
    clean = bold.info.get("config", {}).get("clean", {})
    return {"centred": clean.get("standardize") != "none", "detrended": bool(clean.get("detrend", True))}


def prepare(
    features: FeatureStoreLike,
    bold: BoldStoreLike,
    config: EncodeConfig,
    *,
    layer: str | Sequence[str] | None = None,
) -> Prepared:
    """Align the stores, lay out folds and count the cost, without decomposing anything."""
    layers = choose_layers(features, layer)
    if config.bands and len(layers) < 2:
        raise ConfigError("one layer is one band: there is nothing to weigh", hint="name two or more with --layer")
    runs = choose_runs(features.runs, bold.runs, shared_runs_only=config.shared_runs_only)
    settings, made_from = identity(features, bold, config, layers, runs)
    kept: dict[str, NDArray[np.bool_]] = {}
    nuisance: dict[str, NDArray[np.float64]] = {}
    begins_s: dict[str, float] = {}
    for run in runs:
        data = bold.open(run)
        n_trs = data.sizes["tr"]
        kept[run] = trimmed(n_trs, config.trim_trs)
        if "kept" in data:
            kept[run] &= np.asarray(data["kept"].values, bool)
        if "time_s" in data:
            begins_s[run] = float(data["time_s"][0])
        if config.clean and "confounds" in data:
            confounds = np.asarray(data["confounds"].values, np.float64)
            nuisance[run] = nuisance_columns(confounds, **taken_from(bold))
    features = ShiftedFeatures(features, begins_s)
    design = build_design(
        features,
        layers,
        kept,
        tr_s=bold.tr_s,
        begins_s=begins_s,
        delays=config.delays,
        nuisance=nuisance,
        response=config.response,
        reduce=config.reduce,
        components=config.components,
        seed=config.seed,
    )
    layout = layout_of(design, config, units_of(features, layers[0], design, config))
    check_blocks(layout, config)
    choices = choices_of(design, layout, config)
    shape = preflight.Shape(
        n_rows=len(design.run),
        n_columns=len(design.column),
        n_voxels=bold.n_voxels,
        n_alphas=config.n_alphas,
        design_bytes=design.features.nbytes + (design.nuisance.loadings.nbytes if design.nuisance else 0),
        n_candidates=len(choices.gammas),
        n_bands=len(design.bands),
        n_directions=choices.pca * len(design.bands) * len(design.delays) if choices.pca else None,
    )
    costs = {form: preflight.cost_of(layout, form, shape) for form in preflight.FORMS}
    if config.form != "auto":
        form: gram.Form = config.form
    elif config.bands or config.reduce == "pca":  # each training set has weights or components of its own
        form = preflight.choose_form({**costs, "hat": costs["primal"]})
    else:
        form = preflight.choose_form(costs)
    return Prepared(layers, runs, design, layout, choices, shape, costs, form, settings, made_from)


def units_of(
    features: FeatureStoreLike, layer: str, design: Design, config: EncodeConfig
) -> tuple[NDArray[np.int64], list[str]]:
    """Number what each row belongs to: its run, session, level or recording, in order of appearance.

    Returns
    -------
    unit : (n,) int64
    names

    Raises
    ------
    EncodingError
        If levels or recordings are asked of features that do not know them.
    """
    names: list[str] = []
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        if name not in numbers:
            names.append(name)
        return numbers.setdefault(name, len(numbers))

    units = np.empty(len(design.run), np.int64)
    for index, run in enumerate(design.runs):
        mine = np.flatnonzero(design.run == index)
        if config.leave_out == "run":
            units[mine] = number(run)
        elif config.leave_out == "session":
            key = RunKey.parse(run)
            units[mine] = number(f"sub-{key.subject}" + (f"_ses-{key.session}" if key.session else ""))
        else:
            shown = shown_in(features, layer, run, config.leave_out)
            # The video that a row answers to is some TRs old.
            seen = np.clip(design.tr[mine] - min(design.delays), 0, len(shown) - 1)
            units[mine] = [number(shown[tr]) for tr in seen]
    return units, names


def shown_in(features: FeatureStoreLike, layer: str, run: str, what: str) -> list[str]:
    """Name of the level or recording in each TR of a run; a TR without video counts to the one before."""
    data = features.read(layer, run)
    recordings = data.attrs.get("recordings", [])
    if "recording" not in data or not recordings:
        raise EncodingError(
            f"the features of {run} do not say which {what} was shown",
            likely="they do not come from video, or an older version made them",
            hint="make them again with `vidbrain features`, or leave out runs or sessions",
        )
    named = [str(recording["key"] if what == "recording" else recording["level"]) for recording in recordings]
    shown = np.asarray(data["recording"].values)
    known = np.maximum.accumulate(np.where(shown >= 0, np.arange(len(shown)), -1))
    return [named[shown[place]] if place >= 0 else named[0] for place in known]


def layout_of(design: Design, config: EncodeConfig, units: tuple[NDArray[np.int64], list[str]]) -> Layout:
    """Deal runs, sessions, levels, recordings or single TRs to folds, as the settings say."""
    if config.split == "leaky-tr":
        rng = np.random.default_rng(config.seed)
        n_folds = min(config.max_folds, len(design.runs) if len(design.runs) > 2 else 5)
        fold = rng.permutation(np.arange(len(design.run)) % n_folds)
        names = [f"random TRs {number + 1}" for number in range(n_folds)]
        return lay_out(fold, fold, names, design.run, design.tr, n_blocks=config.n_inner_blocks, purge_trs=0)
    unit, names = units
    if config.test:
        unit = np.where(np.isin(design.run, matching(design.runs, config.test)), TEST, unit)
    fold = deal(unit, config.max_folds)
    # Runs are judged one by one; levels and recordings, which may be shorter than a run, fold by fold.
    whole_runs = config.leave_out in ("run", "session") or bool(config.test)
    part, labels = (design.run, list(design.runs)) if whole_runs else (fold, fold_names(unit, fold, names))
    return lay_out(
        fold, part, labels, design.run, design.tr, n_blocks=config.n_inner_blocks, purge_trs=config.purge_trs
    )


def fold_names(unit: NDArray[np.int64], fold: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """Name folds by the units in them."""
    inside = [np.unique(unit[fold == number]) for number in range(int(fold.max()) + 1)]
    return [", ".join(names[u] for u in some[:3]) + (", …" if len(some) > 3 else "") for some in inside]


def check_blocks(layout: Layout, config: EncodeConfig) -> None:
    """Refuse blocks of TRs that leave too few of them in a held-out part.

    Raises
    ------
    EncodingError
        If they do.
    """
    n_trs = [len(rows) for _, _, rows in layout.numbered()]
    if config.null == "block" and config.n_permutations and config.split == "whole":
        draw_block_permutations(n_trs, config.block_trs, 1, config.seed)
    if config.keep_moments and min(n_trs) < 2 * config.block_trs:
        raise EncodingError(
            f"a held-out part of {min(n_trs)} TRs holds fewer than 2 blocks of {config.block_trs} TRs",
            hint="use a smaller --block-trs (10 or more)",
        )


def choices_of(design: Design, layout: Layout, config: EncodeConfig) -> Choices:
    """Lay out the grid of alphas, and the weightings of the bands."""
    n_bands = len(design.bands)
    # Standardised columns: the eigenvalues of a training set add up to n_t p, over min(p, n_t - 1) directions.
    n_components = config.components if config.reduce == "pca" else None
    p = n_components * n_bands * len(design.delays) if n_components else len(design.column)
    centre = float(np.mean([len(f.train) * p / min(p, len(f.train) - 1) for f in layout.folds]))
    gammas, model = np.full((1, n_bands), 1 / n_bands), np.zeros(1, np.int64)
    if config.bands and n_bands > 1:
        gammas = draw_gammas(config.n_candidates, n_bands, seed=config.seed)
        model = np.zeros(len(gammas), np.int64)
    if config.partition and n_bands > 1:
        for band in range(n_bands):
            rest = draw_gammas(config.n_candidates, n_bands - 1, seed=config.seed)
            gammas = np.concatenate([gammas, np.insert(rest, band, 0.0, axis=1)])
            model = np.concatenate([model, np.full(len(rest), 1 + band)])
    return Choices(
        alphas=gram.alpha_grid(centre, config.n_alphas, config.alpha_decades),
        gammas=gammas,
        model=model,
        tolerance=config.alpha_tolerance,
        pca=n_components,
    )
