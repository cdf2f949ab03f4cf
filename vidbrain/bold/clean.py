"""Confounds out of series: nilearn's cleaning with every choice named.

nilearn is imported where it is called: it takes a second, which `vidbrain bold --help` does not have.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidbrain.bold.bids import RunFiles
from vidbrain.errors import BoldError, ConfigError

_COSINE_S = 128.0
"""Longest period that fMRIPrep's cosines leave; a run of half its length has one."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """How series are cleaned, run by run."""

    confounds: Literal["none", "simple", "simple-gsr"] = "simple"
    """Which of fMRIPrep's confounds are regressed out: `simple` is 24 motion terms, white matter and CSF (nilearn's
    strategy of that name); `simple-gsr` adds the global signal."""
    high_pass: Literal["cosines", "butterworth", "none"] = "cosines"
    """How slow drift goes: fMRIPrep's cosine columns, or a Butterworth filter; never both."""
    high_pass_s: float = 128.0
    """Longest period that the Butterworth filter keeps, in seconds; the cosines have fMRIPrep's 128 s."""
    detrend: bool = True
    """Remove a straight line from every series and confound."""
    standardize: Literal["zscore_sample", "psc", "none"] = "zscore_sample"
    """Scale of cleaned series: z-scored with the sample's standard deviation, percent signal change, or as it is."""

    def __post_init__(self) -> None:
        if self.high_pass_s <= 0:
            raise ConfigError(f"high_pass_s must be positive, not {self.high_pass_s}")

    @property
    def components(self) -> tuple[str, ...]:
        """The same choice in the words of `nilearn.interfaces.fmriprep.load_confounds`."""
        parts: tuple[str, ...] = () if self.confounds == "none" else ("motion", "wm_csf")
        if self.confounds == "simple-gsr":
            parts += ("global_signal",)
        return (*parts, "high_pass") if self.high_pass == "cosines" else parts


@dataclass(frozen=True, kw_only=True)
class Confounds:
    """What is regressed out of one run.

    Attributes
    ----------
    values : (n_trs, n_confounds) float64
        Centred, in the order of `names`.
    names
        Column names of fMRIPrep's table, sorted.
    kept : (n_trs,) bool
        False in volumes before the steady state, which are left out of every estimate.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    kept: NDArray[np.bool_]


def read_confounds(files: RunFiles, n_trs: int, tr_s: float, config: CleanConfig) -> Confounds:
    """Read the confounds of a run as `nilearn.interfaces.fmriprep.load_confounds` does.

    Raises
    ------
    BoldError
        If the table lacks a column (or the cosines that a run of this length needs), holds gaps, or has another number
        of rows than the series has volumes.
    """
    if not config.components:
        return Confounds(values=np.zeros((n_trs, 0)), names=(), kept=np.ones(n_trs, bool))
    if files.confounds is None:
        raise BoldError(f"{files.run} has no confounds table", where=files.bold)
    from nilearn.interfaces.fmriprep import load_confounds

    try:
        # nilearn finds the table by the name of the image, and only knows packed images.
        name = str(files.bold) if files.bold.suffix == ".gz" else f"{files.bold}.gz"
        table, kept_rows = load_confounds(
            name, strategy=config.components, motion="full", wm_csf="basic", global_signal="basic", demean=True
        )
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise BoldError(
            f"the confounds cannot be read: {' '.join(str(error).split())}",
            where=files.confounds,
            hint="choose other confounds with --clean.confounds",
        ) from error
    # nilearn's columns come in the order of a set, which differs from process to process.
    names = tuple(sorted(table.columns))
    values = table[list(names)].to_numpy(np.float64).reshape(len(table), len(names))
    if len(values) != n_trs:
        raise BoldError(
            f"{len(values)} rows of confounds for {n_trs} volumes", where=files.confounds, likely="files of two runs"
        )
    if not np.isfinite(values).all():
        bad = [name for name, column in zip(names, values.T, strict=True) if not np.isfinite(column).all()]
        raise BoldError(f"gaps or infinities in {', '.join(bad[:6])}", where=files.confounds)
    if config.high_pass == "cosines" and 2 * n_trs * tr_s >= _COSINE_S and not any("cosine" in name for name in names):
        # nilearn says nothing, and slow drift would stay in the data.
        raise BoldError(
            "the table has no cosine columns",
            where=files.confounds,
            hint="filter instead: --clean.high-pass butterworth",
        )
    kept = np.ones(n_trs, bool) if kept_rows is None else np.isin(np.arange(n_trs), kept_rows)
    return Confounds(values=values, names=names, kept=kept)


def refuse_unsolvable(confounds: Confounds, where: Path) -> None:
    """Refuse a run with fewer volumes than confounds.

    Raises
    ------
    BoldError
        If nothing would be left of the series.
    """
    n, p = int(confounds.kept.sum()), len(confounds.names) + 2
    if n <= p + 1:
        raise BoldError(
            f"{n} volumes cannot bear {p} regressors (confounds, mean and trend)",
            where=where,
            hint="leave the run out, or choose --clean.confounds none",
        )


def clean_series(series: ArrayLike, confounds: Confounds, config: CleanConfig, tr_s: float) -> NDArray[np.float64]:
    """Clean series of one run with `nilearn.signal.clean`.

    Parameters
    ----------
    series : (n_trs, n)
        BOLD, or anything that shall be treated as BOLD was: a noise-free signal, a feature.
    confounds
        Of the run.
    config
        The choices.
    tr_s
        Repetition time in seconds.

    Returns
    -------
    (n_trs, n) float64
        Constant and non-finite series, and volumes that are not kept, are 0.
    """
    series = np.asarray(series, np.float64)
    kept = confounds.kept
    alive = ~dead_series(series[kept])
    out = np.zeros_like(series)
    if not alive.any():
        return out
    from nilearn.signal import clean

    butterworth = config.high_pass == "butterworth"
    with warnings.catch_warnings():
        # Confounds are detrended with the series and standardised for the regression; nilearn advises on other choices.
        warnings.filterwarnings("ignore", message="When confounds are provided, one must perform detrend")
        warnings.filterwarnings("ignore", message=".*sample_mask.*", category=UserWarning)
        cleaned = clean(
            series[:, alive],
            detrend=config.detrend,
            standardize=None if config.standardize == "none" else config.standardize,
            sample_mask=None if kept.all() else np.flatnonzero(kept),
            confounds=confounds.values if confounds.names else None,
            standardize_confounds=True,
            filter="butterworth" if butterworth else False,
            high_pass=1.0 / config.high_pass_s if butterworth else None,
            t_r=tr_s,
            extrapolate=False,
        )
    out[np.ix_(kept, alive)] = cleaned
    return out


def dead_series(series: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which columns are constant or not finite, (n,) bool."""
    finite = np.isfinite(series).all(axis=0)
    spread = np.zeros(series.shape[1])
    np.subtract(series.max(axis=0, initial=-np.inf), series.min(axis=0, initial=np.inf), out=spread, where=finite)
    return ~finite | (spread == 0.0)
