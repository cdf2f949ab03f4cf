"""Weights -> the digest that names them: settings alone do not, for two machines train them to other bits."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_fingerprint(network: nn.Module) -> str:
    """Return 16 hexadecimal digits that name a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
