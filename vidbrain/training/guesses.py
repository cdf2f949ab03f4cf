"""What guesses by counting alone achieve on codes: the levels that a GPT's loss is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

CHUNK = 4096
"""Clips counted at a time: bounds the memory for their pairs."""


def unigram_nats(
    train: NDArray[np.uint16], held_out: NDArray[np.uint16] | None, n_codes: int
) -> dict[str, float | None]:
    """What a guess by frequency alone achieves, in nats per token.

    Parameters
    ----------
    train, held_out : (N, t, h, w) uint16
        Codes of clips.
    n_codes
        K, the size of the codebook.

    Returns
    -------
    dict
        ``unigram_entropy``: -Σ p log p of the training codes. ``unigram_loss``: -Σ q log p of the held-out codes under
        the training frequencies with one added to each count; None where nothing is held out.
    """
    counts = _counts(train, n_codes)
    p = counts[counts > 0] / counts.sum()
    loss = None
    if held_out is not None:
        loss = float(-np.log(_add_one(counts)[held_out.ravel()]).mean())
    return {"unigram_entropy": float(-(p * np.log(p)).sum()), "unigram_loss": loss}


def bigram_nats(train: NDArray[np.uint16], held_out: NDArray[np.uint16], n_codes: int) -> dict[str, float | None]:
    """What a guess by the code at the same place one time slice before achieves, in nats per token.

    Pairs of the training codes are counted, whatever their place, and smoothed by method C of Witten & Bell
    (1991, IEEE Trans. Inf. Theory 37:1085): p(c | b) = (n(b, c) + T(b) p(c)) / (n(b) + T(b)), where T(b) is the number
    of different codes that follow b and p(c) the add-one frequency of `unigram_nats`, which also serves a b that
    training never showed.

    Parameters
    ----------
    train, held_out : (N, t, h, w) uint16
        Codes of clips.
    n_codes
        K, the size of the codebook.

    Returns
    -------
    dict
        ``bigram_loss``: of all held-out codes; those of the first slice, which have none before, by p(c).
        ``bigram_loss_later``: of slices after the first; None where there is one slice.
    """
    counts = sparse.csr_array((n_codes, n_codes), dtype=np.int64)
    for first in range(0, len(train), CHUNK):
        before, after = _pairs(train[first : first + CHUNK])
        counts = counts + sparse.coo_array((np.ones(len(before), np.int64), (before, after)), counts.shape).tocsr()
    alone = _add_one(_counts(train, n_codes))
    total, different = counts.sum(axis=1), np.diff(counts.indptr)
    start = -np.log(alone[held_out[:, 0].ravel()])
    before, after = _pairs(held_out)
    if not len(before):
        return {"bigram_loss": float(start.mean()), "bigram_loss_later": None}
    seen = np.asarray(counts[before, after]).ravel()
    # A code that training never showed has no followers: one imagined count makes the formula p(c).
    weight = np.maximum(different, 1)[before]
    later = -np.log((seen + weight * alone[after]) / (total[before] + weight))
    whole = (start.sum() + later.sum()) / held_out.size
    return {"bigram_loss": float(whole), "bigram_loss_later": float(later.mean())}


def _counts(codes: NDArray[np.uint16], n_codes: int) -> NDArray[np.float64]:
    """How often each code occurs: (K,)."""
    counts = np.zeros(n_codes)
    for first in range(0, len(codes), CHUNK):
        counts += np.bincount(codes[first : first + CHUNK].ravel(), minlength=n_codes)
    return counts


def _add_one(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    smoothed: NDArray[np.float64] = (counts + 1) / (counts + 1).sum()
    return smoothed


def _pairs(codes: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes of slices before the last, and the codes at the same places one slice later."""
    return codes[:, :-1].ravel().astype(np.int64), codes[:, 1:].ravel().astype(np.int64)
