"""The products that an encoding spends its time on: in NumPy, or on a GPU by torch, called by the same code.

Arrays go in and come out as NumPy's; a GPU gets the operands of one product and gives back the result. What dominates,
the norms of predictions for every alpha, gives back a thousandth of what it computes.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.ridge import gram
from vidbrain.errors import ConfigError

F32 = NDArray[np.float32]
Device = Literal["cpu", "cuda"]


class Products(Protocol):
    """Products of float32 matrices."""

    @property
    def whole_blocks(self) -> bool:
        """Whether a block is best multiplied at once, not tile by tile."""

    def multiply(self, A: F32, B: F32) -> F32:
        """Multiply two matrices."""

    def norms(self, factor: F32, Z: F32, shrinkage: F32) -> F32:
        """Squared column norms of ``factor @ (D Z)`` for every row D of the shrinkage, (r, t); factor is triangular."""


class NumpyProducts:
    """Products on the CPU."""

    whole_blocks = False

    def multiply(self, A: F32, B: F32) -> F32:
        """Multiply two matrices."""
        return A @ B

    def norms(self, factor: F32, Z: F32, shrinkage: F32) -> F32:
        """Squared norms, without the products below the diagonal."""
        return gram.norms_of(factor, Z, shrinkage)


class TorchProducts:
    """Products by torch, in full float32: no TF32, which would change alphas.

    Parameters
    ----------
    device
        As torch names it.
    """

    whole_blocks = True

    def __init__(self, device: str) -> None:
        import torch

        self._torch: Any = torch
        self._device = torch.device(device)

    def multiply(self, A: F32, B: F32) -> F32:
        """Multiply two matrices."""
        product: F32 = (self._put(A) @ self._put(B)).cpu().numpy()
        return product

    def norms(self, factor: F32, Z: F32, shrinkage: F32) -> F32:
        """Squared norms, one dense product for each row of the shrinkage."""
        R, columns, weights = self._put(factor), self._put(Z), self._put(shrinkage)
        rows = [(R @ (row[:, None] * columns)).square_().sum(dim=0) for row in weights]
        stacked: F32 = self._torch.stack(rows).cpu().numpy()
        return stacked

    def _put(self, array: F32) -> Any:  # noqa: ANN401 -- a tensor; this module loads torch only when it is used
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def products_on(device: Device) -> Products:
    """Products on a device.

    Raises
    ------
    ConfigError
        If torch is not installed, or has no GPU.
    """
    if device == "cpu":
        return NumpyProducts()
    try:
        import torch
    except ImportError as error:
        raise ConfigError("--device cuda needs torch", hint="pip install torch") from error
    if not torch.cuda.is_available():
        raise ConfigError("there is no GPU that torch can use", where="device", hint="use --device cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    return TorchProducts("cuda")
