"""Features of every run become one design matrix: delayed within runs, masked where there is no video, scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.config import did_you_mean
from vidbrain.encoding.nuisance import partial_out
from vidbrain.errors import AlignmentError, ConfigError, EncodingError, ModelError

CONSTANT = 1e-6
"""A column whose standard deviation is below this share of its typical size is float32 rounding, hence constant."""

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


@dataclass(frozen=True)
class Design:
    """The design matrix of all runs, row by row, and where each row comes from.

    Attributes
    ----------
    X : (n, p) float32
        Delayed features; every column has mean 0 and standard deviation 1 over all rows. Folds standardise again,
        by their own training rows: this first shift and scale only keep later products accurate.
    run : (n,) int64
        Index of each row's run in `runs`; rows are sorted by run and TR.
    tr : (n,) int64
        TR of each row in its run's BOLD series.
    runs
        Labels.
    n_trs
        TRs of BOLD by run, used or not.
    n_constant, n_invalid
        Columns left out because they never change, or hold NaN or infinity.
    """

    X: NDArray[np.float32]
    run: NDArray[np.int64]
    tr: NDArray[np.int64]
    runs: tuple[str, ...]
    n_trs: tuple[int, ...]
    n_constant: int
    n_invalid: int
    band: NDArray[np.int64]
    bands: tuple[str, ...]

    @property
    def column(self):
        return np.arange(self.X.shape[1])

    def rows(self, rows):
        return np.asarray(self.X[rows])

    def moments(self, rows):
        from vidbrain.encoding import gram

        return gram.moments(self.X[rows])

    def cross(self, rows, Y, out):
        for start in range(0, len(rows), 2048):
            chunk = rows[start : start + 2048]
            Xt = np.ascontiguousarray(self.X[chunk].T)
            for at in range(0, Y.shape[1], 512):
                out[:, at : at + 512] += Xt @ Y[start : start + 2048, at : at + 512]

    def save(self, root):
        np.save(root / "x.npy", self.X)
        np.savez(root / "rest.npz", run=self.run, tr=self.tr, band=self.band)

    # shim


def load_design(root):
    X = np.load(root / "x.npy", mmap_mode="r")
    rest = np.load(root / "rest.npz")
    return Design(
        X, rest["run"], rest["tr"], (), (), 0, 0, rest["band"], tuple(str(b) for b in np.unique(rest["band"]))
    )


def delay(features: NDArray[np.float32], delays: Sequence[int]) -> NDArray[np.float32]:
    """Put delayed copies side by side (finite impulse response model).

    Parameters
    ----------
    features : (n_trs, n_features)
        One run: delays never reach into another.
    delays
        In TRs, not negative.

    Returns
    -------
    (n_trs, len(delays) * n_features) float32
        Delay by delay. What would come from before the run is 0; `usable` marks those rows.
    """
    n_trs, n_features = features.shape
    out = np.zeros((n_trs, len(delays), n_features), np.float32)
    for position, lag in enumerate(delays):
        if lag < n_trs:
            out[lag:, position] = features[: n_trs - lag]
    return out.reshape(n_trs, -1)


def usable(valid: NDArray[np.bool_], delays: Sequence[int], n_trs: int) -> NDArray[np.bool_]:
    """Mark the TRs of BOLD whose features are valid at every delay.

    Parameters
    ----------
    valid : (n_feature_trs,) bool
        Whether there was video during the TR.
    delays
        In TRs.
    n_trs
        TRs of BOLD; those beyond the features can be used only if every delay reaches back into them.

    Returns
    -------
    (n_trs,) bool
    """
    padded = np.zeros(n_trs, bool)
    padded[: len(valid)] = valid[:n_trs]
    use = np.ones(n_trs, bool)
    for lag in delays:
        shifted = np.zeros(n_trs, bool)
        shifted[lag:] = padded[: max(n_trs - lag, 0)]
        use &= shifted
    return use


def check_delays(delays: Sequence[int]) -> None:
    """Refuse delays that are empty, negative or repeated.

    Raises
    ------
    ConfigError
        If they are.
    """
    if not delays or min(delays) < 0 or len(set(delays)) != len(delays):
        raise ConfigError(f"delays must be different TRs of at least 0, not {tuple(delays)}", hint="--delays 1 2 3 4 5")


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


def read_run(features: FeatureStoreLike, layers: Sequence[str], run: str) -> tuple[NDArray[np.float32], Any, float]:
    """Read and concatenate the layers of a run: features (tr, feature), valid (tr,), and their TR in seconds."""
    parts, valid, tr_s = [], None, float("nan")
    for layer in layers:
        data = features.read(layer, run)
        parts.append(np.asarray(data["features"].values, np.float32))
        mask = np.asarray(data["valid"].values, bool)
        tr_s = float(data.attrs["tr_s"])
        if valid is not None and len(mask) != len(valid):
            raise AlignmentError(f"{run}: layer {layer!r} has {len(mask)} TRs, {layers[0]!r} has {len(valid)}")
        valid = mask if valid is None else valid & mask
    return np.concatenate(parts, axis=1), valid, tr_s


def build_design(
    features: FeatureStoreLike,
    layers: Sequence[str],
    kept: Mapping[str, NDArray[np.bool_]],
    *,
    tr_s: float,
    delays: Sequence[int],
    nuisance: Mapping[str, NDArray[np.float64]],
) -> Design:
    """Align features with BOLD by run and TR, delay them, and keep the rows that have video at every delay.

    Parameters
    ----------
    features
        Store of features.
    layers
        Their names; several are put side by side.
    kept
        By run label, which volumes of the BOLD may be used, (n_trs,) bool; its order is the order of the rows.
    tr_s
        Repetition time of the BOLD.
    delays
        In TRs; 0 is allowed.
    nuisance
        By run label, what was regressed out of the BOLD, (n_trs, c): it is taken out of the delayed features too, over
        the rows that are used. Runs that are not named are left as they are.

    Raises
    ------
    AlignmentError
        If the TRs differ, or the features of a run are longer than its BOLD.
    EncodingError
        If a run keeps fewer than `MIN_TRS` rows, or no column is left.
    """
    pieces: list[NDArray[np.float32]] = []
    run_of_row, tr_of_row = [], []
    for index, (run, kept_trs) in enumerate(kept.items()):
        n_bold = len(kept_trs)
        values, valid, feature_tr_s = read_run(features, layers, run)
        if abs(feature_tr_s - tr_s) > 1e-6:
            raise AlignmentError(
                f"{run}: features have a TR of {feature_tr_s:g} s, BOLD of {tr_s:g} s",
                hint="extract the features again with the TR of the BOLD store",
            )
        if len(values) > n_bold:
            raise AlignmentError(
                f"{run} has {len(values)} TRs of features but {n_bold} of BOLD (TR {tr_s:g} s)",
                likely="the BOLD series was cut, or the features belong to another run",
            )
        if pieces and values.shape[1] * len(delays) != pieces[0].shape[1]:
            raise AlignmentError(
                f"{run} has {values.shape[1]} features, the runs before it {pieces[0].shape[1] // len(delays)}",
                likely="the features were made by two settings",
                hint="remove them and give `vidbrain features` again",
            )
        rows = np.flatnonzero(usable(valid, delays, n_bold) & kept_trs)
        if len(rows) < MIN_TRS:
            raise EncodingError(
                f"{run} keeps {len(rows)} of {n_bold} TRs with video at delays {tuple(delays)}; {MIN_TRS} are needed",
                likely="almost no video was seen in this run",
                hint="leave the run out of the features, and use --shared-runs-only",
            )
        n_nuisance = nuisance[run].shape[1] if run in nuisance else 0
        if len(rows) < n_nuisance + MIN_TRS:
            raise EncodingError(
                f"{run} keeps {len(rows)} of {n_bold} TRs with video; {n_nuisance} confounds leave too little of them",
                likely="the run is short, or little video was seen in it",
                hint="leave the run out, clean the BOLD with fewer confounds, or encode with --no-clean",
            )
        padded = np.zeros((n_bold, values.shape[1]), np.float32)
        padded[: len(values)] = values
        delayed = delay(padded, delays)[rows]
        pieces.append(partial_out(delayed, nuisance[run][rows]) if run in nuisance else delayed)
        run_of_row.append(np.full(len(rows), index, np.int64))
        tr_of_row.append(rows.astype(np.int64))
    X, n_constant, n_invalid = standardised_columns(np.concatenate(pieces))
    if X.shape[1] == 0:
        raise EncodingError(
            f"no feature is left: {n_constant} columns are constant, {n_invalid} hold NaN or infinity",
            likely="the model gives the same answer to every video, or diverged in training",
        )
    return Design(
        X=X,
        run=np.concatenate(run_of_row),
        tr=np.concatenate(tr_of_row),
        runs=tuple(kept),
        n_trs=tuple(len(kept_trs) for kept_trs in kept.values()),
        n_constant=n_constant,
        n_invalid=n_invalid,
        band=np.zeros(X.shape[1], np.int64),
        bands=tuple(layers[:1]),
    )


def standardised_columns(X: NDArray[np.float32], chunk: int = 256) -> tuple[NDArray[np.float32], int, int]:
    """Shift and scale columns to mean 0 and standard deviation 1, leaving out those that cannot be.

    Parameters
    ----------
    X : (n, p) float32
    chunk
        Columns held in float64 at a time.

    Returns
    -------
    X : (n, p_kept) float32
    n_constant, n_invalid : int
        Columns left out.
    """
    kept, n_constant, n_invalid = [], 0, 0
    for start in range(0, X.shape[1], chunk):
        part = X[:, start : start + chunk].astype(np.float64)
        finite = np.isfinite(part).all(axis=0)
        part = part[:, finite]
        size = np.sqrt(np.mean(part**2, axis=0))
        part -= part.mean(axis=0)
        scale = np.sqrt(np.mean(part**2, axis=0))
        varies = scale > CONSTANT * size
        kept.append((part[:, varies] / scale[varies]).astype(np.float32))
        n_invalid += int((~finite).sum())
        n_constant += int((~varies).sum())
    return np.concatenate(kept, axis=1), n_constant, n_invalid
