"""How well could any model do? Noise ceilings from repeats, from split halves, from other subjects, or none.

A response is signal plus noise that no feature can predict. Where a stimulus was shown again, the noise can be told
from the signal; where it never was, as in game play, there is no ceiling, and a record says so with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Target = Literal["single", "mean"]


@dataclass(frozen=True)
class NoiseCeiling:
    """The greatest r that a perfect model is expected to reach.

    Attributes
    ----------
    kind
        Where it comes from.
    r : (t,) or (n_subjects, t) float64, or None
        NaN in voxels whose estimate of the signal is not positive: their ceiling is unknown, not 0.
    reason
        Why there is none; None where there is one.
    """

    kind: Literal["repeats", "split-half", "cross-subject", "none"]
    r: F64 | None
    reason: str | None = None

    def facts(self) -> dict[str, Any]:
        """Describe for a root record or ledger: numbers that are not known are None, with the reason."""
        known = None if self.r is None else self.r[np.isfinite(self.r)]
        return {
            "kind": self.kind,
            "median_r": float(np.median(known)) if known is not None and len(known) else None,
            "known_share": None if self.r is None or known is None else known.size / self.r.size,
            "reason": self.reason,
        }


def no_ceiling(reason: str) -> NoiseCeiling:
    """State that there is no ceiling, and why.

    Raises
    ------
    ValueError
        Without a reason.
    """
    if not reason.strip():
        raise ValueError("a missing ceiling needs its reason")
    return NoiseCeiling("none", None, reason)


def explainable_variance(responses: NDArray[Any]) -> tuple[F64, F64]:
    """Share of a single repeat's variance that the stimulus explains.

    Sahani & Linden (2003); Hsu, Borst & Theunissen (2004). Noise that is the same in every repeat counts as signal
    (Benjamini & Yu 2013).

    Parameters
    ----------
    responses : (n_repeats, n_trs, t)
        To the same stimulus; centred and scaled in each repeat, detrended.

    Returns
    -------
    ev : (t,) float64
        Variance of the mean over the mean of the variances. Noise alone gives ``1 / n_repeats``.
    corrected : (t,) float64
        ``ev - (1 - ev) / (n_repeats - 1)``, without that bias; noise alone gives 0 on average, and less in half of the
        voxels.
    """
    n = n_repeats(responses)
    values = np.asarray(responses, np.float64)
    ev = ratio(values.mean(axis=0).var(axis=0, ddof=1), values.var(axis=1, ddof=1).mean(axis=0))
    return ev, np.asarray(ev - (1 - ev) / (n - 1), np.float64)


def from_repeats(responses: NDArray[Any], target: Target) -> NoiseCeiling:
    """Ceiling from the explainable variance of repeats.

    The ``CCmax`` of Schoppe et al. (2016): ``sqrt(signal power / variance of the target)``.

    Parameters
    ----------
    responses : (n_repeats, n_trs, t)
    target
        What r is taken with: a ``"single"`` repeat, or the ``"mean"`` of these repeats.
    """
    ev, corrected = explainable_variance(responses)
    return NoiseCeiling("repeats", root(corrected if target == "single" else ratio(corrected, ev)))


def from_split_halves(responses: NDArray[Any], target: Target, *, n_splits: int = 20, seed: int = 0) -> NoiseCeiling:
    """Ceiling from the correlation of two halves of the repeats, by the Spearman-Brown formula.

    Halves of h repeats with correlation c give a single repeat the reliability ``c / (h - (h - 1) c)``, and the mean
    of N repeats that of ``N s / (1 + (N - 1) s)`` with s of a single one; the ceiling is its square root.

    Parameters
    ----------
    responses : (n_repeats, n_trs, t)
    target
        As in `from_repeats`.
    n_splits
        Random pairs of disjoint halves whose correlations are averaged; two repeats have one only.
    """
    n = n_repeats(responses)
    half = n // 2
    rng = np.random.default_rng(seed)
    values = np.asarray(responses, np.float64)
    total = np.zeros(values.shape[2])
    n_splits = 1 if n == 2 else n_splits
    for _ in range(n_splits):
        order = rng.permutation(n)
        total += correlation(values[order[:half]].mean(axis=0), values[order[half : 2 * half]].mean(axis=0))
    c = total / n_splits
    single = ratio(c, half - (half - 1) * c)
    reliability = single if target == "single" else ratio(n * single, 1 + (n - 1) * single)
    return NoiseCeiling("split-half", root(np.where(c > 0, reliability, np.nan)))


def from_subjects(responses: NDArray[Any]) -> NoiseCeiling:
    """Ceiling for a shared stimulus: r of each subject with the mean of the others.

    A lower bound of what a model of the shared response can reach (Nili et al. 2014): the mean of a few others is
    noisy itself. Voxels must correspond: a common space, or parcels.

    Parameters
    ----------
    responses : (n_subjects, n_trs, t)

    Returns
    -------
    NoiseCeiling
        With r (n_subjects, t); NaN where not positive.
    """
    n = n_repeats(responses)
    values = np.asarray(responses, np.float64)
    total = values.sum(axis=0)
    r = np.stack([correlation(own, (total - own) / (n - 1)) for own in values])
    return NoiseCeiling("cross-subject", np.where(r > 0, r, np.nan))


def normalise(r: NDArray[Any], ceiling: NoiseCeiling, *, least_r: float) -> F64 | None:
    """Divide r by its ceiling, the ``CCnorm`` of Schoppe et al. (2016).

    Parameters
    ----------
    r : (t,)
        With the target that the ceiling was computed for.
    least_r
        Voxels with a lower ceiling give NaN: a quotient of two noises says nothing.

    Returns
    -------
    (t,) float64, or None where there is no ceiling
        May exceed 1: both parts are estimates.
    """
    if ceiling.r is None:
        return None
    return np.divide(r, ceiling.r, out=np.full(ceiling.r.shape, np.nan), where=ceiling.r >= least_r)


def n_repeats(responses: NDArray[Any]) -> int:
    """Count repeats (or subjects).

    Raises
    ------
    ValueError
        If there are fewer than two: then say `no_ceiling`.
    """
    if responses.ndim != 3 or len(responses) < 2:
        raise ValueError(f"a ceiling needs responses (2 or more repeats, n_trs, t), not {responses.shape}")
    return len(responses)


def correlation(a: F64, b: F64) -> F64:
    """R of columns, (n, t) to (t,); NaN where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return ratio(np.sum(a * b, axis=0), np.sqrt(np.sum(a**2, axis=0) * np.sum(b**2, axis=0)))


def ratio(a: F64, b: F64) -> F64:
    """``a / b``, and NaN where b is not positive."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 0)


def root(share: F64) -> F64:
    """Square root, at most 1, and NaN where not positive."""
    return np.sqrt(np.minimum(share, 1), out=np.full(share.shape, np.nan), where=share > 0)
