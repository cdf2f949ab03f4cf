"""vidbrain: shard game-play video, stream it into VideoGPT training, map the model's features to fMRI voxels.

Importing this package is silent and loads neither torch nor dask: names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BandedRidgeEncoder": ("vidbrain.encoding.ridge.banded", "BandedRidgeEncoder"),
    "Clip": ("vidbrain.records", "ClipSpec"),
    "EncodeConfig": ("vidbrain.encoding.settings", "EncodeConfig"),
    "RidgeEncoder": ("vidbrain.encoding.ridge.plain", "RidgeEncoder"),
    "VidbrainError": ("vidbrain.errors", "VidbrainError"),
    "fit_encoding": ("vidbrain.encoding.blocks", "fit_encoding"),
    "open_bold": ("vidbrain.bold.store", "open_bold"),
    "open_features": ("vidbrain.features.store", "open_features"),
    "stream": ("vidbrain.stream.loader", "stream"),
}

__all__ = [
    "BandedRidgeEncoder",
    "Clip",
    "EncodeConfig",
    "RidgeEncoder",
    "VidbrainError",
    "__version__",
    "fit_encoding",
    "open_bold",
    "open_features",
    "stream",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- a module's attribute may be anything
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'vidbrain' has no attribute {name!r}") from None
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
