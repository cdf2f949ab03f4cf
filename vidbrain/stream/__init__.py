"""Shards -> batches of clips, in an order that is a pure function. The package can be called: `loader.stream`."""

import sys
from types import ModuleType
from typing import Any


class _Stream(ModuleType):
    """`vidbrain.stream` names a function; importing any module below it puts this package in its place."""

    def __call__(self, root: Any, **settings: Any) -> Any:  # noqa: ANN401 -- as of `loader.stream`
        """See `vidbrain.stream.loader.stream`."""
        from vidbrain.stream.loader import stream

        return stream(root, **settings)


sys.modules[__name__].__class__ = _Stream
