"""Confounds out of series: nilearn's cleaning with every choice named.

nilearn is imported where it is called: it takes a second, which `vidbrain bold --help` does not have.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidbrain.bold.bids import PREPROCESSED, RunFiles
from vidbrain.errors import BoldError, ConfigError

_LARGEST_FWHM_MM = 100.0
_COSINE_S = 128.0
"""Longest period that fMRIPrep's cosines leave; a run of half its length has one."""


_PRESETS: dict[str, dict[str, Any]] = {
    "none": {"strategy": ()},
    "simple": {"strategy": ("motion", "wm_csf"), "motion": "full", "wm_csf": "basic"},
    "scrubbing": {
        "strategy": ("motion", "wm_csf", "scrub"),
        "motion": "full",
        "wm_csf": "full",
        "scrub": 5,
        "fd_threshold": 0.5,
        "std_dvars_threshold": 1.5,
    },
    "compcor": {"strategy": ("motion", "compcor"), "motion": "full", "n_compcor": "all", "compcor": "anat_combined"},
    "ica_aroma": {"strategy": ("wm_csf", "ica_aroma"), "wm_csf": "basic", "ica_aroma": "full"},
}
"""Presets of `nilearn.interfaces.fmriprep.load_confounds_strategy`, without their high-pass, which is a choice here."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """How series are cleaned, run by run."""

    confounds: Literal["none", "simple", "simple-gsr", "scrubbing", "scrubbing-gsr", "compcor", "ica_aroma"] = "simple"
    """Which of fMRIPrep's confounds are regressed out, by nilearn's names: `simple` is 24 motion terms, white matter
    and CSF; `scrubbing` adds the derivatives and squares of those two and leaves out volumes that moved; `compcor` is
    motion and the anatomical components; `ica_aroma` takes the series that AROMA has cleaned, and white matter and CSF.
    `-gsr`, of simple and scrubbing, adds the global signal."""
    high_pass: Literal["cosines", "butterworth", "none"] = "cosines"
    """How slow drift goes: fMRIPrep's cosine columns, or a Butterworth filter; never both."""
    high_pass_s: float = 128.0
    """Longest period that the Butterworth filter keeps, in seconds; the cosines have fMRIPrep's 128 s."""
    fwhm_mm: float = 0.0
    """Full width at half maximum of a Gaussian that smooths each volume before it is masked, in mm; 0: no smoothing."""
    detrend: bool = True
    """Remove a straight line from every series and confound."""
    standardize: Literal["zscore_sample", "psc", "none"] = "zscore_sample"
    """Scale of cleaned series: z-scored with the sample's standard deviation, percent signal change, or as it is."""

    def __post_init__(self) -> None:
        if not 0 < self.high_pass_s < math.inf:
            raise ConfigError(f"high_pass_s must be positive and finite, not {self.high_pass_s}")
        if not 0 <= self.fwhm_mm <= _LARGEST_FWHM_MM:
            raise ConfigError(f"fwhm_mm must lie between 0 and {_LARGEST_FWHM_MM:g} mm, but is {self.fwhm_mm}")
        if self.confounds == "compcor" and self.high_pass != "cosines":
            # fMRIPrep computes the components of series without the cosines' part.
            raise ConfigError("compcor goes with --clean.high-pass cosines alone: its components hold no slow drift")

    @property
    def changes_nothing(self) -> bool:
        """Whether values go through as they are."""
        return not (self.components or self.detrend or self.fwhm_mm) and (self.high_pass, self.standardize) == (
            "none",
            "none",
        )

    @property
    def components(self) -> tuple[str, ...]:
        """The same choice in the words of `nilearn.interfaces.fmriprep.load_confounds`."""
        return tuple(self.load_options["strategy"])

    @property
    def load_options(self) -> dict[str, Any]:
        """Arguments of `nilearn.interfaces.fmriprep.load_confounds`."""
        options = dict(_PRESETS[self.confounds.removesuffix("-gsr")])
        if self.confounds.endswith("-gsr"):
            options |= {"strategy": (*options["strategy"], "global_signal"), "global_signal": "basic"}
        if self.high_pass == "cosines":
            options["strategy"] = (*options["strategy"], "high_pass")
        return options

    @property
    def desc(self) -> str:
        """What the volumes are called that this cleaning starts from."""
        return "smoothAROMAnonaggr" if self.confounds == "ica_aroma" else PREPROCESSED


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
        # nilearn finds the table by the name of a packed image; surfaces and grayordinates have the same table.
        stem = files.confounds.name.split("_desc-confounds_")[0]
        name = files.confounds.with_name(f"{stem}_desc-{config.desc}_bold.nii.gz")
        table, kept_rows = load_confounds(str(name), demean=True, **config.load_options)
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


class Cleaner:
    """Cleans series of one run as `nilearn.signal.clean` does, block after block.

    Detrending, filtering, leaving volumes out and regressing confounds are together one linear map over time. nilearn
    is asked for it once, as what it makes of unit impulses; each block of series is then a matrix product. Without a
    filter the map is a projection, ``y - U (U' y)`` with orthonormal columns U, which costs less still.

    Parameters
    ----------
    confounds
        Of the run.
    config
        The choices.
    tr_s
        Repetition time in seconds.
    """

    def __init__(self, confounds: Confounds, config: CleanConfig, tr_s: float) -> None:
        self.confounds, self.config, self.tr_s = confounds, config, tr_s
        self._whole = bool(confounds.kept.all())
        self._basis: NDArray[np.float64] | None = None
        self._map: NDArray[np.float64] | None = None
        # Percent signal change depends on the mean of each series too: nilearn does it from the beginning.
        if config.standardize != "psc" and not config.changes_nothing:
            self._map = self._by_nilearn(np.eye(len(confounds.kept)), standardize=None)
            if config.high_pass != "butterworth":
                self._basis = _removed(self._map[:, confounds.kept])

    def __call__(self, series: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Clean series.

        Parameters
        ----------
        series : (n_trs, n)
            BOLD, or anything that shall be treated as BOLD was: a noise-free signal, a feature.

        Returns
        -------
        cleaned : (n_trs, n) float64
            Non-finite series, constant ones if anything is done to series at all, and volumes that are not kept, are 0.
        dead : (n,) bool
            Constant or not finite.
        """
        series = np.asarray(series, np.float64)
        kept = self.confounds.kept
        dead = dead_series(series if self._whole else series[kept])
        if self.config.changes_nothing:
            return np.where(np.isfinite(series).all(axis=0), series, 0.0), dead
        if dead.all():
            return np.zeros_like(series), dead
        alive = series if not dead.any() else series[:, ~dead]
        cleaned = self._cleaned(alive)
        if self._whole and alive is series:
            return cleaned, dead
        out = np.zeros_like(series)
        out[np.ix_(kept, ~dead)] = cleaned
        return out, dead

    def _cleaned(self, series: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._map is None:
            return self._by_nilearn(series, standardize=self.config.standardize)
        if self._basis is None:
            found = self._map @ series
        else:
            found = series if self._whole else series[self.confounds.kept]
            found = found - self._basis @ (self._basis.T @ found)
        if self.config.standardize == "zscore_sample":
            found -= found.mean(axis=0)
            spread = np.sqrt(np.einsum("ij,ij->j", found, found) / (len(found) - 1))
            # As nilearn: what is nothing but rounding is not blown up.
            spread[spread < np.finfo(np.float64).eps] = 1.0
            found /= spread
        return found

    def _by_nilearn(self, series: NDArray[np.float64], *, standardize: str | None) -> NDArray[np.float64]:
        from nilearn.signal import clean

        config, butterworth = self.config, self.config.high_pass == "butterworth"
        with warnings.catch_warnings():
            # Confounds are detrended with the series and standardised for the regression; nilearn advises otherwise.
            warnings.filterwarnings("ignore", message="When confounds are provided, one must perform detrend")
            warnings.filterwarnings("ignore", message=".*sample_mask.*", category=UserWarning)
            cleaned = clean(
                series,
                detrend=config.detrend,
                standardize=standardize,
                sample_mask=None if self._whole else np.flatnonzero(self.confounds.kept),
                confounds=self.confounds.values if self.confounds.names else None,
                standardize_confounds=True,
                filter="butterworth" if butterworth else False,
                high_pass=1.0 / config.high_pass_s if butterworth else None,
                t_r=self.tr_s,
                extrapolate=False,
            )
        return np.asarray(cleaned, np.float64)


def _removed(projection: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis of what a symmetric projection takes away, (n, k)."""
    taken = np.eye(len(projection)) - projection
    shares, vectors = np.linalg.eigh((taken + taken.T) / 2)
    assert np.abs(taken - taken.T).max() < 1e-8, "the map is no symmetric projection"
    assert np.minimum(np.abs(shares), np.abs(shares - 1)).max() < 1e-8, "the map is no projection"
    return np.ascontiguousarray(vectors[:, shares > 0.5])


def clean_series(series: ArrayLike, confounds: Confounds, config: CleanConfig, tr_s: float) -> NDArray[np.float64]:
    """Clean series of one run, (n_trs, n) float64, see `Cleaner`."""
    return Cleaner(confounds, config, tr_s)(series)[0]


def dead_series(series: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which columns are constant or not finite, (n,) bool."""
    finite = np.isfinite(series).all(axis=0)
    spread = np.zeros(series.shape[1])
    np.subtract(series.max(axis=0, initial=-np.inf), series.min(axis=0, initial=np.inf), out=spread, where=finite)
    return ~finite | (spread == 0.0)
