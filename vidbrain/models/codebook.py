"""The EMA codebook: vectors in, nearest codes out, always in float32.

Shapes: M vectors of D channels, K codes. Source: VQ-VAE (arXiv 1711.00937, appendix A.1) with the restart of dead
codes of VideoGPT, and these mends: the start from data is remembered in a buffer (a resumed run does not start the
codebook again), a restart also resets the running sums (else the next update undoes it), sums are scattered (no
M x K one-hot matrix), and use is counted over many batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidbrain.models.norms import full_precision
from vidbrain.models.processes import from_all_ranks, from_first_rank, reduce_in_place, rows_of_all_ranks

CHUNK = 16_384
"""Vectors compared with the codebook at a time: bounds memory at CHUNK x K float32."""


@dataclass(frozen=True)
class Quantized:
    """What the codebook returns.

    Attributes
    ----------
    vectors
        Nearest code vectors, shape of the input, float32; gradients pass straight through to the input.
    codes
        int64, shape of the input without channels.
    commitment
        Mean squared distance of the input from its (fixed) code vector, a scalar.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


class Codebook(nn.Module):
    """K code vectors that follow the running mean of what is assigned to them.

    Parameters
    ----------
    n_codes, code_dim
        K and D.
    decay
        Of the running means (0.99: about 100 batches).
    restart_below
        A code with a running count below this many vectors per batch is dead: it is moved onto a vector of the batch,
        drawn with probability proportional to its squared distance from its code (as k-means++ does), so that rare
        content gets codes even where most of the picture is empty.
    restart_sums
        Restart the running sums of a dead code, too. Without, as in VideoGPT, the next update takes it back.
    """

    embeddings: Tensor
    z_avg: Tensor
    counts: Tensor
    ready: Tensor
    usage: Tensor
    restarts: Tensor

    def __init__(
        self, n_codes: int, code_dim: int, *, decay: float = 0.99, restart_below: float = 1.0, restart_sums: bool = True
    ) -> None:
        super().__init__()
        self.n_codes, self.code_dim, self.decay, self.restart_below = n_codes, code_dim, decay, restart_below
        self.restart_sums = restart_sums
        # Twice the threshold gives a (re)started code ln 2 / (1 - decay) batches to find users.
        self.fresh_count = max(2 * restart_below, 1e-3)
        start = torch.randn(n_codes, code_dim)
        self.register_buffer("embeddings", start)
        self.register_buffer("z_avg", start * self.fresh_count)
        self.register_buffer("counts", torch.full((n_codes,), self.fresh_count))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        # Kept with the weights, so that a resumed run logs the same numbers as one that was never killed.
        self.register_buffer("usage", torch.zeros(n_codes, dtype=torch.int64))
        self.register_buffer("restarts", torch.zeros((), dtype=torch.int64))
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._holds = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put off learning: what is quantized in the block is learned from with the next batch outside, as one batch.

        Parts of a batch then see the same codes, and move them as the whole would.
        """
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    def forward(self, z: Tensor) -> Quantized:
        """Quantize (..., D); in training mode also learn from it."""
        # 16-bit distances give wrong neighbours and NaN (vq-vae-2-pytorch#65): never under autocast.
        with full_precision(z):
            z = z.float()
            flat = z.detach().reshape(-1, self.code_dim)
            if self.training and not bool(self.ready):
                self.start(flat)
            codes, distance = nearest(flat, self.embeddings)
            vectors = self.embeddings[codes].reshape(z.shape)
            commitment = (z - vectors).square().mean()
            if self.training:
                self._held.append((flat, codes, distance))
                if not self._holds:
                    held, self._held = self._held, []
                    self._learn(*(torch.cat(column) for column in zip(*held, strict=True)))
            return Quantized(z + (vectors - z).detach(), codes.reshape(z.shape[:-1]), commitment)

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors (..., D) of codes (...)."""
        return self.embeddings[codes]

    def vectors(self) -> Tensor:
        """All code vectors (K, D)."""
        return self.embeddings

    def take_usage(self) -> tuple[Tensor, int]:
        """Return use of each code (K,) and restarts in training since the last call, and count anew."""
        usage, restarts = self.usage.cpu().clone(), int(self.restarts)
        self.usage.zero_()
        self.restarts.zero_()
        return usage, restarts

    @torch.no_grad()
    def start(self, flat: Tensor) -> None:
        """Set the codes by k-means of vectors (M, D) float32, this process's share of the first batch."""
        flat = from_all_ranks(flat)
        chosen = from_first_rank(lloyd(flat, spread_sample(flat, self.n_codes)))
        self.embeddings.copy_(chosen)
        self.z_avg.copy_(chosen * self.counts[:, None])
        self.ready.fill_(True)

    @torch.no_grad()
    def _learn(self, flat: Tensor, codes: Tensor, distance: Tensor) -> None:
        new_counts = torch.bincount(codes, minlength=self.n_codes).to(flat.dtype)
        new_sums = torch.zeros_like(self.z_avg).index_add_(0, codes, flat)
        reduce_in_place(new_counts)
        reduce_in_place(new_sums)
        self.usage += new_counts.long()
        self.counts.lerp_(new_counts, 1 - self.decay)
        self.z_avg.lerp_(new_sums, 1 - self.decay)
        known = (self.counts > 1e-6)[:, None]
        self.embeddings.copy_(torch.where(known, self.z_avg / self.counts.clamp_min(1e-6)[:, None], self.embeddings))
        # Without a host synchronisation: candidates for all codes, taken where the code is dead.
        dead = self.counts < self.restart_below
        picks = rows_of_all_ranks(flat, from_first_rank(_by_weight(from_all_ranks(distance), self.n_codes)))
        self.embeddings.copy_(torch.where(dead[:, None], picks, self.embeddings))
        if self.restart_sums:
            self.counts.masked_fill_(dead, self.fresh_count)
            self.z_avg.copy_(torch.where(dead[:, None], picks * self.fresh_count, self.z_avg))
        self.restarts += dead.sum()


def nearest(flat: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code of every vector, and the squared distance to it.

    Parameters
    ----------
    flat : (M, D) float32
    embeddings : (K, D) float32

    Returns
    -------
    codes : (M,) int64
    distance : (M,) float32
    """
    norms = embeddings.square().sum(1)
    found = [torch.addmm(norms, part, embeddings.T, alpha=-2.0).min(dim=1) for part in flat.split(CHUNK)]
    codes = torch.cat([f.indices for f in found])
    distance = torch.cat([f.values for f in found]) + flat.square().sum(1)
    return codes, distance.clamp_min(0.0)


def spread_sample(flat: Tensor, n: int, *, rounds: int = 8) -> Tensor:
    """Choose `n` vectors that lie apart: k-means++ in a few rounds instead of one by one.

    Every round draws its share with probability proportional to the squared distance from those already chosen.
    """
    chosen = flat[torch.randint(len(flat), (1,), device=flat.device)]
    for k in range(rounds):
        want = 1 + (n - 1) * (k + 1) // rounds - len(chosen)
        if want > 0:
            _, distance = nearest(flat, chosen)
            chosen = torch.cat([chosen, flat[_by_weight(distance, want)]])
    return chosen


def _by_weight(weights: Tensor, n: int) -> Tensor:
    # Where training has gone wrong, its own check of the loss says so; drawing must not be the first to fail.
    return torch.multinomial(weights.nan_to_num(0.0, posinf=0.0) + 1e-9, n, replacement=True)


def lloyd(flat: Tensor, centres: Tensor, *, rounds: int = 8) -> Tensor:
    """Refine centres by k-means; a centre without vectors stays where it is."""
    for _ in range(rounds):
        codes, _ = nearest(flat, centres)
        counts = torch.bincount(codes, minlength=len(centres)).to(flat.dtype)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, codes, flat)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres


def perplexity(usage: Tensor) -> float:
    """Return exp of the entropy of code use: K when all codes are used equally, 1 when one is used alone."""
    p = usage.double() / usage.sum().clamp_min(1)
    return float(torch.exp(-(p[p > 0] * p[p > 0].log()).sum()))
