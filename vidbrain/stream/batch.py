"""What a loader gives: clips or codes, where they come from, and chance that belongs to each clip."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

LISTENERS: weakref.WeakValueDictionary[str, Listener] = weakref.WeakValueDictionary()
"""Loaders of this process by name: a batch that comes from another process says so to the one that it belongs to."""
_COLUMNS = ("recording", "run", "subject", "session", "task", "level", "repetition", "split")


class Listener(Protocol):
    """Who hears of batches that come from worker processes."""

    def arrival(self, epoch: int, number: int) -> None:
        """Hear that a batch is here, perhaps before it is used."""


@dataclass(frozen=True, kw_only=True)
class Batch(ABC):
    """What one process gets of a global batch.

    Attributes
    ----------
    index : (B,) int64
        Clip numbers; -1 where a row is masked: such rows hold zeros and weigh nothing.
    seed, epoch, number
        Of the order, the epoch, and the global batch in the epoch. A loader sets them.
    loader
        Names the loader that made it.
    """

    index: NDArray[np.int64]
    seed: int = 0
    epoch: int = 0
    number: int = 0
    loader: str = ""

    @property
    def weight(self) -> NDArray[np.float32]:
        """1 for a clip, 0 for a masked row: (B,) float32."""
        return (self.index >= 0).astype(np.float32)

    def rng(self, i: int) -> np.random.Generator:
        """Chance for row i, for augmentation; see `clip_rng`."""
        return clip_rng(self.seed, self.epoch, int(self.index[i]))

    def unmasked(self) -> Self:
        """The batch without its masked rows."""
        keep = self.index >= 0
        return self if keep.all() else self._each(lambda values: values[keep])

    def part(self, rows: slice) -> Self:
        """Some rows of the batch, not copied."""
        return self._each(lambda values: values[rows])

    def padded(self, index: NDArray[np.int64]) -> Self:
        """Put the rows where `index` is not -1, and zeros (or empty text) elsewhere.

        Parameters
        ----------
        index : (B',) int64
            Holds this batch's clip numbers in their order, and -1 for the rows to add.
        """

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            out = np.zeros((len(index), *values.shape[1:]), values.dtype)
            out[index >= 0] = values
            return out

        return replace(self._each(spread), index=index)

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Move what a model sees to a device: uint8 over the bus from pinned memory; on a CPU nothing is copied.

        It is called in the thread that read the batch, and returns when the copy is done.
        """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {each.name: getattr(self, each.name) for each in fields(self)})

    def _each(self, change: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, dict):
                changed[each.name] = {name: change(column) for name, column in value.items()}
            elif hasattr(value, "shape"):
                changed[each.name] = change(value)
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class ClipBatch(Batch):
    """A batch of video clips.

    Attributes
    ----------
    video : (B, T, H, W, 3) uint8
        An array, or a tensor where the loader was given a device.
    segment : (B,) int64
        Position of each clip's segment in the manifest.
    start_frame : (B,) int64
        First frame of each clip in its recording.
    meta : dict of (B,) arrays
        ``recording``, ``run``, ``subject``, ``session``, ``task``, ``level``, ``repetition``, ``split`` (text, empty
        where there is none) and ``start_frame``.
    """

    video: NDArray[np.uint8]
    segment: NDArray[np.int64]
    start_frame: NDArray[np.int64]
    meta: dict[str, NDArray[Any]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Self:
        """Move the video."""
        return replace(self, video=to_device(self.video, device))


@dataclass(frozen=True, kw_only=True)
class CodesBatch(Batch):
    """A batch of codes: (B, t, h, w) uint16, an array, or an int32 tensor where the loader was given a device."""

    codes: NDArray[np.uint16]

    def to(self, device: torch.device) -> Self:
        """Move the codes, as int32."""
        return replace(self, codes=to_device(self.codes.astype(np.int32), device))


def to_device(values: NDArray[Any], device: torch.device) -> Any:  # noqa: ANN401 -- a tensor in an array's place
    """Copy an array to a device on a stream of this thread's own, and wait for the copy alone."""
    import torch

    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        moved = tensor.pin_memory().to(device, non_blocking=True)
    side.synchronize()
    # Its memory must not be given to another copy while the trainer's kernels still read it.
    moved.record_stream(torch.cuda.default_stream(device))
    return moved


def _rebuild(cls: type[Batch], values: dict[str, Any]) -> Batch:
    batch = cls(**values)
    if batch.loader in LISTENERS:
        LISTENERS[batch.loader].arrival(batch.epoch, batch.number)
    return batch


def clip_rng(seed: int, epoch: int, clip: int) -> np.random.Generator:
    """Chance that is a function of (seed, epoch, clip): equal for any world, number of threads, and after a resume."""
    return np.random.default_rng((seed % 2**63, epoch, clip))


def clip_columns(segments: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Text columns of a manifest's segments, as arrays that rows are gathered from."""
    return {name: segments[name].to_numpy(str, na_value="") for name in _COLUMNS}


def clip_meta(
    columns: Mapping[str, NDArray[Any]], segment: NDArray[np.int64], start_frame: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """What is known of some clips: a row of each column a clip, and the first frame."""
    return {**{name: column[segment] for name, column in columns.items()}, "start_frame": start_frame}
