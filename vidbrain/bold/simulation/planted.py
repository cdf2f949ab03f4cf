"""The planted brain: which voxel carries what, how strongly. Contiguous, smooth; shared by subjects, and their own.

Visual voxels fill the back of the brain with a retinotopic map (right half of the screen in the left hemisphere, upper
half below, the centre at the pole); motor voxels lie around the central sulcus of both hemispheres; event voxels lie in
frontal and parietal patches; the rest carries no signal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from vidbrain.bold.simulation.screen import CHANNELS
from vidbrain.bold.voxels import centres_mm

NOISE, VISUAL, MOTOR, EVENT = range(4)
_SHARES = {VISUAL: 0.50, MOTOR: 0.22, EVENT: 0.28}
"""How the planted voxels divide."""
_MOTOR_MM = ((-38.0, -22.0, 56.0), (38.0, -22.0, 56.0))
_EVENT_MM = ((-40.0, 36.0, 22.0), (40.0, 36.0, 22.0), (0.0, 50.0, 4.0), (-46.0, -50.0, 46.0), (46.0, -50.0, 46.0))


@dataclass(frozen=True, kw_only=True)
class PlantedBrain:
    """What every voxel carries.

    Attributes
    ----------
    kind : (n_voxels,) int8
        `vidbrain.bold.simulation.drivers.KINDS` by code.
    weights : (n_voxels, n_drivers) float64
        Of any scale. From game play they are not negative, and rows of planted voxels sum to 1.
    ceiling : (n_voxels,) float64
        Correlation of the signal with the data that is asked for; 0 in noise voxels.
    """

    kind: NDArray[np.int8]
    weights: NDArray[np.float64]
    ceiling: NDArray[np.float64]


def plant(
    ijk: NDArray[np.int32],
    affine: NDArray[np.float64],
    *,
    kinds: NDArray[np.int8],
    live: NDArray[np.bool_],
    grid: int,
    noise_share: float,
    ceiling: float,
    ceiling_sd: float,
    seed: int,
) -> PlantedBrain:
    """Draw the planted maps.

    Parameters
    ----------
    ijk : (n_voxels, 3)
        Voxels of the brain.
    affine : (4, 4)
        Indices to millimetres of MNI space.
    kinds, live : (n_drivers,)
        What each driver drives, and whether it varies at all in this data set.
    grid
        Cells along each side of the screen.
    noise_share
        Share of voxels that carry nothing.
    ceiling, ceiling_sd
        Median over the voxels of each kind, and spread, of the correlation between signal and data.
    seed
        Of the maps.

    Returns
    -------
    PlantedBrain
        A kind without a live driver has no voxels; the other kinds share its part.
    """
    rng = np.random.default_rng([seed, 1])
    mm = centres_mm(ijk, affine)
    fields = _SmoothFields(ijk, affine, rng)
    kind = _regions(mm, fields, noise_share, [k for k in _SHARES if (live & (kinds == k)).any()])
    weights = np.zeros((len(ijk), len(kinds)))

    visual = np.flatnonzero(kind == VISUAL)
    if len(visual):
        fields_of_view = receptive_fields(mm[visual], grid)
        mix = _shares(np.stack([fields.draw()[visual] for _ in CHANNELS], axis=1), sharpness=1.0)
        rf_weights = (mix[:, :, None] * fields_of_view[:, None, :]).reshape(len(visual), -1)
        weights[np.ix_(visual, np.flatnonzero(kinds == VISUAL))] = rf_weights
    for code in (MOTOR, EVENT):
        voxels, columns = np.flatnonzero(kind == code), np.flatnonzero((kinds == code) & live)
        if len(voxels):
            maps = np.stack([fields.draw()[voxels] for _ in columns], axis=1)
            weights[np.ix_(voxels, columns)] = _shares(maps, sharpness=2.0)

    return PlantedBrain(kind=kind, weights=weights, ceiling=_ceilings(kind, ceiling, ceiling_sd, fields))


def plant_mixtures(
    ijk: NDArray[np.int32],
    affine: NDArray[np.float64],
    *,
    live: NDArray[np.bool_],
    noise_share: float,
    ceiling: float,
    ceiling_sd: float,
    seed: int,
) -> PlantedBrain:
    """Draw maps for drivers that mean nothing to the eye: smooth regions in which every driver takes part.

    Parameters
    ----------
    ijk, affine, live, noise_share, ceiling, ceiling_sd, seed
        As in `plant`.

    Returns
    -------
    PlantedBrain
        Kind 1 where a voxel is driven; weights of either sign that vary slowly in space.
    """
    fields = _SmoothFields(ijk, affine, np.random.default_rng([seed, 1]))
    n_planted = round((1.0 - noise_share) * len(ijk)) if live.any() else 0
    kind = np.zeros(len(ijk), np.int8)
    kind[np.argsort(-fields.draw(), kind="stable")[:n_planted]] = 1
    driven = kind == 1
    weights = np.zeros((len(ijk), len(live)))
    for column in np.flatnonzero(live):
        weights[driven, column] = fields.draw()[driven]
    return PlantedBrain(kind=kind, weights=weights, ceiling=_ceilings(kind, ceiling, ceiling_sd, fields))


def private_weights(
    brain: PlantedBrain,
    covariance: NDArray[np.float64],
    ijk: NDArray[np.int32],
    affine: NDArray[np.float64],
    *,
    kinds: NDArray[np.int8],
    live: NDArray[np.bool_],
    share: float,
    seed: int,
    subject: str,
) -> NDArray[np.float64]:
    """Mix what a subject shares with the others and what is its own.

    In each voxel the private part is a smooth map of the same drivers, made uncorrelated with the shared signal. Two
    subjects' signals then correlate at ``1 - share`` on average over voxels: their private parts are drawn apart.

    Parameters
    ----------
    brain
        What is shared.
    covariance : (n_drivers, n_drivers)
        Of the responses to the drivers.
    ijk, affine, kinds, live, seed
        As in `plant`; the maps of a subject depend on the seed and its label alone.
    share
        Of the signal's variance that is the subject's own.
    subject
        Label.

    Returns
    -------
    (n_voxels, n_drivers) float64
        Of unit power where a voxel is planted. A voxel with a single driver has no room for a private part.
    """
    label = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big")
    fields = _SmoothFields(ijk, affine, np.random.default_rng([seed, 3, label]))
    own = np.zeros_like(brain.weights)
    for code in np.unique(brain.kind[brain.kind != NOISE]):
        voxels = np.flatnonzero(brain.kind == code)
        for column in np.flatnonzero(live & (kinds == code)):
            own[voxels, column] = fields.draw()[voxels]
    planted = np.flatnonzero(brain.kind != NOISE)
    shared, mine = brain.weights[planted], own[planted]
    projected = shared @ covariance
    power = np.einsum("vd,vd->v", projected, shared)
    mine = mine - shared * (np.einsum("vd,vd->v", projected, mine) / np.where(power > 1e-20, power, 1.0))[:, None]
    mine_power = np.einsum("vd,vd->v", mine @ covariance, mine)
    room = mine_power > 1e-6 * np.einsum("vd,vd->v", own[planted] @ covariance, own[planted])
    unit = shared / np.sqrt(np.where(power > 1e-20, power, 1.0))[:, None]
    mixed = np.sqrt(1.0 - share) * unit + np.sqrt(share) * mine / np.sqrt(np.where(room, mine_power, 1.0))[:, None]
    own[:] = 0.0
    own[planted] = np.where(room[:, None], mixed, unit)
    return own


def scaled_weights(
    brain: PlantedBrain, weights: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale weights so that signal and unit noise have the correlation that is asked for.

    Data = a s + e with unit variances of s and e correlate with s at c = a / sqrt(1 + a²), so a = c / sqrt(1 - c²).

    Parameters
    ----------
    brain
        With the ceilings.
    weights : (n_voxels, n_drivers)
        Of the brain, or of a subject.
    covariance : (n_drivers, n_drivers)
        Of the convolved drivers without drift, over the whole data set.

    Returns
    -------
    (n_voxels, n_drivers) float64
    """
    power = np.einsum("vd,vd->v", weights @ covariance, weights)
    amplitude = brain.ceiling / np.sqrt(1.0 - brain.ceiling**2)
    factor = np.divide(amplitude, np.sqrt(power), out=np.zeros(len(power)), where=power > 1e-20)
    return weights * factor[:, None]


def _ceilings(kind: NDArray[np.int8], ceiling: float, ceiling_sd: float, fields: _SmoothFields) -> NDArray[np.float64]:
    """Ceilings that vary slowly in space, with the median that is asked for in each kind of voxel; 0 in noise."""
    asked = ceiling + ceiling_sd * fields.draw()
    for code in np.unique(kind[kind != NOISE]):
        asked[kind == code] += ceiling - np.median(asked[kind == code])
    return np.where(kind == NOISE, 0.0, np.clip(asked, 0.1, 0.95))


def receptive_fields(mm: NDArray[np.float64], grid: int) -> NDArray[np.float64]:
    """Gaussian receptive fields on the screen's grid for voxels at the back of the brain.

    Parameters
    ----------
    mm : (n, 3)
        Places of the voxels.
    grid
        Cells along each side of the screen.

    Returns
    -------
    (n, grid * grid) float64
        Rows sum to 1; row by row of the screen.
    """
    # Eccentricity grows forward from the pole, along ranks: equal parts of the map see equal parts of the screen.
    eccentricity = _ranks(mm[:, 1])
    column = np.where(mm[:, 0] < 0, 0.5 + 0.5 * eccentricity, 0.5 - 0.5 * eccentricity)
    row = _ranks(mm[:, 2])
    width = 0.10 + 0.12 * eccentricity
    centres = (np.arange(grid) + 0.5) / grid
    across = np.exp(-0.5 * ((centres - column[:, None]) / width[:, None]) ** 2)
    down = np.exp(-0.5 * ((centres - row[:, None]) / width[:, None]) ** 2)
    fields = (down[:, :, None] * across[:, None, :]).reshape(len(mm), -1)
    return np.asarray(fields / fields.sum(axis=1, keepdims=True), np.float64)


class _SmoothFields:
    """Draws maps over voxels that vary slowly in space, with the quantiles of a standard normal."""

    def __init__(self, ijk: NDArray[np.int32], affine: NDArray[np.float64], rng: np.random.Generator) -> None:
        self._ijk, self._rng = ijk, rng
        self._shape = tuple(int(n) for n in ijk.max(axis=0) + 1)
        self._sigma = 9.0 / np.abs(np.diag(affine)[:3])

    def draw(self) -> NDArray[np.float64]:
        """One map, (n_voxels,)."""
        field = gaussian_filter(self._rng.standard_normal(self._shape), self._sigma, mode="wrap")
        values = field[tuple(self._ijk.T)]
        return np.asarray((values - values.mean()) / values.std(), np.float64)


def _regions(
    mm: NDArray[np.float64], fields: _SmoothFields, noise_share: float, present: list[int]
) -> NDArray[np.int8]:
    n_planted = round((1.0 - noise_share) * len(mm))
    total = sum(_SHARES[k] for k in present)
    # The border is uneven, as borders in the brain are.
    uneven = 4.0 * fields.draw()
    distance = {
        VISUAL: mm[:, 1] + 0.15 * np.abs(mm[:, 2]),
        MOTOR: _nearest(mm, _MOTOR_MM),
        EVENT: _nearest(mm, _EVENT_MM),
    }
    kind = np.zeros(len(mm), np.int8)
    for position, code in enumerate(present):
        wanted = n_planted - int((kind != NOISE).sum())
        if position < len(present) - 1:
            wanted = min(wanted, round(n_planted * _SHARES[code] / total))
        free = np.flatnonzero(kind == NOISE)
        nearest = free[np.argsort((distance[code] + uneven)[free], kind="stable")]
        kind[nearest[:wanted]] = code
    return kind


def _nearest(mm: NDArray[np.float64], places: tuple[tuple[float, float, float], ...]) -> NDArray[np.float64]:
    distances = [np.linalg.norm(mm - np.array(place), axis=1) for place in places]
    return np.asarray(np.min(distances, axis=0), np.float64)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.empty(len(values))
    order[np.argsort(values, kind="stable")] = np.arange(len(values))
    return order / max(1, len(values) - 1)


def _shares(maps: NDArray[np.float64], sharpness: float) -> NDArray[np.float64]:
    powers = np.exp(sharpness * (maps - maps.max(axis=1, keepdims=True)))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)
