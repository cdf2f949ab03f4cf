"""Match features with BOLD by layer, run and TR, and say which rows can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.config import did_you_mean
from vidbrain.encoding.design.delays import usable
from vidbrain.encoding.design.response import MIN_SHARE, covered
from vidbrain.encoding.ridge.gram import F32, F64
from vidbrain.errors import AlignmentError, ConfigError, EncodingError, ModelError

MIN_TRS = 10
"""A run with fewer usable TRs cannot be a test fold."""


class FeatureStoreLike(Protocol):
    """What `fit_encoding` needs of a feature store."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Root record with ``fingerprint``."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers."""

    @property
    def runs(self) -> Sequence[str]:
        """Run labels."""

    def read(self, layer: str, run: str, /) -> xr.Dataset:
        """Return ``features`` (tr, feature) float32 and ``valid`` (tr) bool, with ``tr_s`` in the attributes."""


class BoldStoreLike(Protocol):
    """What `fit_encoding` needs of a BOLD store. It is pickled to workers, so it must be a small handle on a path."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Root record with ``fingerprint``."""

    @property
    def runs(self) -> Sequence[str]:
        """Run labels."""

    @property
    def parcels(self) -> str | None:
        """Name of the set of parcels that was asked for, or None."""

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""

    @property
    def n_voxels(self) -> int:
        """Voxels in the mask."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a volume."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""

    def open(self, run: str, /) -> xr.Dataset:
        """Return lazily ``bold`` (tr, voxel), i, j, k (voxel), and ``kept`` (tr) where not all volumes may be used."""

    def read(self, run: str, voxels: slice, /) -> NDArray[np.float32]:
        """Return (tr, v) of the voxels asked for."""


def choose_layers(features: FeatureStoreLike, layer: str | Sequence[str] | None) -> tuple[str, ...]:
    """Check the layer names; None stands for the only layer of the store.

    Raises
    ------
    ConfigError
        If none are named and the store has several.
    ModelError
        If a layer is not in the store.
    """
    if layer is None:
        if len(features.layers) != 1:
            raise ConfigError(
                f"the features have {len(features.layers)} layers: {', '.join(features.layers)}",
                hint="--layer NAME, or several names to put them side by side",
            )
        return (features.layers[0],)
    layers = (layer,) if isinstance(layer, str) else tuple(layer)
    for name in layers:
        if name not in features.layers:
            raise ModelError(f"unknown layer {name!r}{did_you_mean(name, features.layers)}", hint="--layer NAME")
    if not layers or len(set(layers)) != len(layers):
        raise ConfigError(f"layers must be one or more different names, not {layers}", hint="--layer NAME")
    return layers


def choose_runs(
    feature_runs: Sequence[str], bold_runs: Sequence[str], *, shared_runs_only: bool = False
) -> tuple[str, ...]:
    """Match runs by label, in the order of the BOLD store.

    Parameters
    ----------
    shared_runs_only
        Use the runs that both have; else both must have the same.

    Raises
    ------
    AlignmentError
        If runs are missing in one of them, or none are shared.
    """
    shared = tuple(run for run in bold_runs if run in set(feature_runs))
    missing = [
        f"{', '.join(runs)} ({where} only)"
        for where, runs in (
            ("features", sorted(set(feature_runs) - set(shared))),
            ("BOLD", sorted(set(bold_runs) - set(shared))),
        )
        if runs
    ]
    if not shared:
        raise AlignmentError(f"features and BOLD share no run: {'; '.join(missing)}", likely="other subjects or tasks")
    if missing and not shared_runs_only:
        raise AlignmentError(
            f"features and BOLD do not have the same runs: {'; '.join(missing)}",
            hint="make what is missing, or use the shared runs with --shared-runs-only",
        )
    return shared


@dataclass(frozen=True)
class Aligned:
    """Features of all runs on the TR grid of the BOLD, one run after another, and the rows that can be used.

    Attributes
    ----------
    features : (m, p) float32
        As stored; TRs without video hold anything, even NaN.
    band : (p,) int64
        Layer of each feature.
    valid : (m,) bool
        Whether there was video during the TR.
    start : (n_runs + 1,) int64
        Where each run begins in `features`.
    run, tr : (n,) int64
        Of each row that can be used, ascending.
    """

    features: F32
    band: NDArray[np.int64]
    valid: NDArray[np.bool_]
    start: NDArray[np.int64]
    run: NDArray[np.int64]
    tr: NDArray[np.int64]

    @property
    def place(self) -> NDArray[np.int64]:
        """Place of each row in `features`."""
        return self.start[self.run] + self.tr


def align(
    features: FeatureStoreLike,
    layers: Sequence[str],
    kept: Mapping[str, NDArray[np.bool_]],
    *,
    tr_s: float,
    delays: Sequence[int],
    kernel: F64 | None,
    n_nuisance: Mapping[str, int],
    begins_s: Mapping[str, float],
) -> Aligned:
    """Put the features of all runs on the TR grid of the BOLD.

    Parameters
    ----------
    features
        Store of features.
    layers
        Their names; several are put side by side.
    kept
        By run label, which volumes of the BOLD may be used, (n_trs,) bool; its order is the order of the runs.
    tr_s
        Repetition time of the BOLD.
    delays
        In TRs; a row needs video at every one of them.
    kernel : (n_lags,) or None
        In place of delays: a row needs video under most of this response.
    n_nuisance
        By run label, how many confounds will be taken out.
    begins_s
        By run label, the time that its first volume of BOLD stands for; runs that are not named are not compared.

    Raises
    ------
    AlignmentError
        If the TRs or slice-time references differ, the features of a run are longer than its BOLD, or runs differ in
        their features.
    EncodingError
        If a run keeps fewer than `MIN_TRS` rows beyond its confounds.
    """
    start = np.concatenate([[0], np.cumsum([len(kept_trs) for kept_trs in kept.values()])]).astype(np.int64)
    out: F32 | None = None
    band = np.zeros(0, np.int64)
    valid = np.zeros(start[-1], bool)
    run_of_row, tr_of_row = [], []
    for index, (run, kept_trs) in enumerate(kept.items()):
        n_bold = len(kept_trs)
        parts, video, feature_tr_s, begin_s = read_run(features, layers, run)
        n_features = sum(part.shape[1] for part in parts)
        if abs(feature_tr_s - tr_s) > 1e-6:
            raise AlignmentError(
                f"{run}: features have a TR of {feature_tr_s:g} s, BOLD of {tr_s:g} s",
                hint="extract the features again with the TR of the BOLD store",
            )
        if run in begins_s and begin_s is not None:
            refuse_other_clock(run, begin_s, begins_s[run], tr_s)
        if len(video) > n_bold:
            raise AlignmentError(
                f"{run} has {len(video)} TRs of features but {n_bold} of BOLD (TR {tr_s:g} s)",
                likely="the BOLD series was cut, or the features belong to another run",
            )
        if out is None:
            out = np.zeros((int(start[-1]), n_features), np.float32)
            band = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
        if not np.array_equal(band, np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])):
            raise AlignmentError(
                f"{run} has {n_features} features, the runs before it {out.shape[1]}",
                likely="the features were made by two settings",
                hint="remove them and give `vidbrain features` again",
            )
        reach = usable(video, delays, n_bold) if kernel is None else covered(video, kernel, n_bold)
        rows = np.flatnonzero(reach & kept_trs)
        if len(rows) < MIN_TRS:
            where = f"at delays {tuple(delays)}" if kernel is None else f"under {MIN_SHARE:.0%} of the response"
            raise EncodingError(
                f"{run} keeps {len(rows)} of {n_bold} TRs with video {where}; {MIN_TRS} are needed",
                likely="almost no video was seen in this run",
                hint="leave the run out of the features, and use --shared-runs-only",
            )
        if len(rows) < n_nuisance.get(run, 0) + MIN_TRS:
            raise EncodingError(
                f"{run} keeps {len(rows)} of {n_bold} TRs with video; {n_nuisance[run]} confounds leave too little "
                "of them",
                likely="the run is short, or little video was seen in it",
                hint="leave the run out, clean the BOLD with fewer confounds, or encode with --no-clean",
            )
        here = slice(int(start[index]), int(start[index]) + len(video))
        np.concatenate(parts, axis=1, out=out[here])
        valid[here] = video
        run_of_row.append(np.full(len(rows), index, np.int64))
        tr_of_row.append(rows.astype(np.int64))
    if out is None:
        raise ValueError("no runs are given")
    return Aligned(out, band, valid, start, np.concatenate(run_of_row), np.concatenate(tr_of_row))


def refuse_other_clock(run: str, features_s: float, bold_s: float, tr_s: float) -> None:
    """Refuse features whose rows stand for other times than the volumes of the BOLD.

    Parameters
    ----------
    run
        Label, for the message.
    features_s, bold_s
        Times that the first row and the first volume stand for.
    tr_s
        Repetition time.

    Raises
    ------
    AlignmentError
        If they differ by more than a hundredth of a TR.
    """
    if abs(features_s - bold_s) > 0.01 * tr_s:
        late = "after" if features_s > bold_s else "before"
        raise AlignmentError(
            f"{run}: rows of the features stand for times {abs(features_s - bold_s):.3f} s {late} those of the BOLD's "
            "volumes",
            likely="slices were corrected to another reference than the features were made for",
            # Whole volumes between the two do no harm (`shifted`).
            hint=f"make the features again with --slice-time-ref {bold_s / tr_s % 1:.3g}",
        )


def read_run(
    features: FeatureStoreLike, layers: Sequence[str], run: str
) -> tuple[list[F32], NDArray[np.bool_], float, float | None]:
    """Read the layers of a run.

    Returns
    -------
    parts : list of (tr, feature) float32
        Of each layer.
    valid : (tr,) bool
        In all of them.
    tr_s
        Their repetition time.
    begin_s
        Time that the first row stands for; None where the store does not say.
    """
    parts: list[F32] = []
    valid: NDArray[np.bool_] | None = None
    tr_s, begin_s = float("nan"), None
    for layer in layers:
        data = features.read(layer, run)
        parts.append(np.asarray(data["features"].values, np.float32))
        mask = np.asarray(data["valid"].values, bool)
        tr_s = float(data.attrs["tr_s"])
        if "time_s" in data and data.sizes["tr"]:
            begin_s = float(data["time_s"][0])
        if valid is not None and len(mask) != len(valid):
            raise AlignmentError(f"{run}: layer {layer!r} has {len(mask)} TRs, {layers[0]!r} has {len(valid)}")
        valid = mask if valid is None else valid & mask
    if valid is None:
        raise ValueError("no layers are given")
    return parts, valid, tr_s, begin_s
