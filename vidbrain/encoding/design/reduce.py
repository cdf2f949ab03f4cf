"""Fewer features: a random projection, fixed by its seed, or principal components of the training rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from sklearn.random_projection import GaussianRandomProjection

from vidbrain.encoding.ridge.gram import CONSTANT_IN_FOLD, F32, F64, Moments
from vidbrain.errors import ConfigError, EncodingError

Reduce = Literal["none", "pca", "random"]


@dataclass(frozen=True)
class Reduction:
    """Columns of a design to components, delay by delay: a block-diagonal matrix that is never formed.

    Attributes
    ----------
    blocks
        For each delay (p_i, k) float64; the p_i columns of a delay stand next to each other.
    band : (len(blocks) * k,) int64
        Band of each component.
    """

    blocks: tuple[F64, ...]
    band: NDArray[np.int64]

    def rows(self, X: F32) -> F32:
        """Reduce rows, (n, p) to (n, d k) float32."""
        return np.concatenate([X[:, at] @ block for at, block in self._parts()], axis=1).astype(np.float32)

    def cross(self, products: NDArray[np.floating]) -> F64:
        """Reduce ``X'Y``, (p, t) to (d k, t) float64."""
        return np.concatenate([block.T @ products[at] for at, block in self._parts()])

    def loadings(self, reduced: F64) -> F64:
        """Loadings of the columns from those of the components, (d k, q) to (p, q)."""
        k = self.blocks[0].shape[1]
        parts = [block @ reduced[n * k : (n + 1) * k] for n, block in enumerate(self.blocks)]
        return np.concatenate(parts)

    def moments(self, sums: Moments) -> Moments:
        """Reduce sums over rows: the Gram matrix G becomes ``B'GB``."""
        half = np.concatenate([sums.gram[:, at] @ block for at, block in self._parts()], axis=1)
        return Moments(sums.n, self.cross(sums.total[:, None])[:, 0], self.cross(half))

    def _parts(self) -> list[tuple[slice, F64]]:
        stops = np.cumsum([len(block) for block in self.blocks])
        return [(slice(stop - len(block), stop), block) for stop, block in zip(stops, self.blocks, strict=True)]


def check_reduction(reduce: Reduce, components: int | None) -> None:
    """Refuse a reduction without components, and components without a reduction.

    Raises
    ------
    ConfigError
        If they do not fit.
    """
    if (reduce == "none") != (components is None):
        raise ConfigError(
            f"reduce is {reduce!r}, components is {components}",
            hint="give both, as in reduce 'pca' with 100 components, or neither",
        )
    if components is not None and components < 1:
        raise ConfigError(f"components must be at least 1, not {components}")


def random_basis(n_features: int, components: int, seed: int) -> F64:
    """Gaussian random projection, (n_features, components), of entries with variance 1 / components.

    Distances are kept within a factor that depends on `components` alone (Johnson and Lindenstrauss 1984).
    """
    projection = GaussianRandomProjection(components, random_state=seed).fit(np.empty((1, n_features)))
    return np.asarray(projection.components_, np.float64).T


def pca_basis(sums: Moments, components: int) -> F64:
    """Principal components of features that are standardised by the same rows.

    Parameters
    ----------
    sums
        Of undelayed training rows, (p,) and (p, p). Their shift and scale do not matter: components follow from the
        correlations of these rows, so that no other row has a say.
    components
        k.

    Returns
    -------
    (p, k) float64
        Scores of rows are ``(x - mean) @ basis``. Features that are constant in these rows have 0. The sign is such
        that the largest entry of an eigenvector is positive.

    Raises
    ------
    EncodingError
        If the rows have fewer directions than k.
    """
    mean = sums.total / sums.n
    covariance = sums.gram / sums.n - np.outer(mean, mean)
    variance = np.diag(covariance)
    varies = np.flatnonzero(variance > CONSTANT_IN_FOLD * (np.diag(sums.gram) / sums.n))
    n_directions = min(len(varies), sums.n - 1)
    if components > n_directions:
        raise EncodingError(
            f"{components} components are asked of {len(varies)} varying features over {sums.n} training TRs",
            hint=f"at most {n_directions} components",
        )
    inverse = 1 / np.sqrt(variance[varies])
    correlation = covariance[np.ix_(varies, varies)] * np.outer(inverse, inverse)
    top = (len(varies) - components, len(varies) - 1)
    vectors = scipy.linalg.eigh(correlation, subset_by_index=top, check_finite=False)[1][:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    basis = np.zeros((len(mean), components))
    basis[varies] = inverse[:, None] * (vectors * np.sign(largest))
    return basis
