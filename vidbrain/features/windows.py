"""How a source looks at a recording: which frames enter a clip, and which frames each of its rows stands for.

A source sees clips; each clip gives `n_slices` rows (token slices along time), and a row stands for the source frames
``[begin, end)`` that its slice covers. Every frame of a recording is covered: the last clip is moved back to end with
the recording, and frames that two clips cover are shared between their rows when they are averaged into volumes. With
`time` "end" a row stands for the frames that were new when its clip ended, and for those before the end of the first
clip there is none; nor for those that lie `before` the first clip of a source that is told what came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ShardError


@dataclass(frozen=True)
class Places:
    """Where clips lie.

    Attributes
    ----------
    recording
        Key of the recording that they are cut from.
    starts : (B,) int64
        First covered frame of each.
    """

    recording: str
    starts: NDArray[np.int64]

    def __getitem__(self, part: slice) -> Places:
        return Places(self.recording, self.starts[part])


@dataclass(frozen=True, kw_only=True)
class Window:
    """The frames of a clip, and the rows that it gives.

    Attributes
    ----------
    n_frames
        Sampled frames that a clip covers.
    step
        Distance between sampled frames, in source frames. A sampled frame stands for `step` source frames.
    n_slices
        Rows that a clip gives; it divides `n_frames`.
    margin
        Sampled frames of context on either side, which the source sees and the rows do not stand for. Beyond the ends
        of a recording its first and last frame are repeated.
    before
        Sampled frames in front of those, which the source is told and the rows do not stand for. They are never made
        up: clips begin where a recording has them, and the frames before have no row.
    stride
        Distance between the begins of neighbouring clips, in source frames; None for clips that do not overlap.
    time
        "centre": a row stands for the frames of its slice, the middle of what it sees. "end": the only row of a clip
        stands for its last `stride` frames, so that it sees nothing after them.
    """

    n_frames: int = 16
    step: int = 4
    n_slices: int = 4
    margin: int = 0
    before: int = 0
    stride: int | None = None
    time: Literal["centre", "end"] = "centre"

    def __post_init__(self) -> None:
        if min(self.n_frames, self.step, self.n_slices) < 1 or min(self.margin, self.before) < 0:
            raise ConfigError(f"a window needs positive n_frames, step and n_slices, not {self}")
        if self.n_frames % self.n_slices:
            raise ConfigError(f"{self.n_slices} token slices do not divide a clip of {self.n_frames} frames")
        if self.stride is not None and not 1 <= self.stride <= self.covered:
            raise ConfigError(
                f"a stride of {self.stride} frames leaves frames out: a clip covers {self.covered}",
                hint=f"give a stride from 1 to {self.covered}",
            )
        if self.time == "end" and (self.n_slices > 1 or self.margin or self.stride is None):
            raise ConfigError("rows at the end of their clips need one row a clip, no margin, and a stride")

    @property
    def n_input(self) -> int:
        """Sampled frames that the source sees of each clip."""
        return self.before + self.n_frames + 2 * self.margin

    @property
    def lead(self) -> int:
        """Source frames that a recording has before its first clip."""
        return self.before * self.step

    @property
    def covered(self) -> int:
        """Source frames that a clip's rows stand for."""
        return self.n_frames * self.step

    @property
    def slice_frames(self) -> int:
        """Source frames that a token slice covers."""
        return self.covered // self.n_slices

    @property
    def row_frames(self) -> int:
        """Source frames that one row stands for."""
        return self.slice_frames if self.time == "centre" else self.stride or self.covered

    def starts(self, n_recording: int) -> NDArray[np.int64]:
        """First covered frame of each clip of a recording with `n_recording` frames, in time order.

        None where the recording ends before its first clip would begin.
        """
        if self.lead and n_recording <= self.lead:
            return np.empty(0, np.int64)
        last = max(self.lead, n_recording - self.covered)
        starts = np.arange(self.lead, last, self.stride or self.covered, dtype=np.int64)
        return np.append(starts, np.int64(last))

    def frame_numbers(self, start: int, n_recording: int) -> NDArray[np.int64]:
        """Source frames that enter the clip at `start`, (n_input,), held inside the recording."""
        sampled = start + np.arange(-self.before - self.margin, self.n_frames + self.margin, dtype=np.int64) * self.step
        return np.clip(sampled, 0, n_recording - 1)

    def first_row(self, n_recording: int) -> int:
        """First frame of a recording that a row stands for; `n_recording` where there is none."""
        starts = self.starts(n_recording)[:1]
        return int(self.spans(starts, n_recording)[0, 0]) if len(starts) else n_recording

    def record(self) -> dict[str, Any]:
        """Plain values; `before` only where there is one, so that other windows are named as they always were."""
        return {name: value for name, value in to_mapping(self).items() if name != "before" or value}

    def spans(self, starts: NDArray[np.int64], n_recording: int) -> NDArray[np.int64]:
        """Source frames ``[begin, end)`` that each row stands for.

        Parameters
        ----------
        starts : (n_clips,)
            As `starts` gives them.
        n_recording
            Frames in the recording; a row beyond its end stands for no frame.

        Returns
        -------
        (n_clips * n_slices, 2) int64
            In the order of clips, then slices.
        """
        begins = np.asarray(starts, np.int64)[:, None] + np.arange(self.n_slices, dtype=np.int64) * self.slice_frames
        ends = begins + self.slice_frames
        spans = np.stack([ends - self.row_frames, ends], axis=-1).reshape(-1, 2)
        return np.clip(spans, 0, n_recording)


def cut(
    blocks: Iterable[tuple[int, NDArray[np.uint8]]], n_recording: int, window: Window, batch_size: int
) -> Iterator[NDArray[np.uint8]]:
    """Cut a recording that arrives in blocks into batches of clips, in time order.

    Parameters
    ----------
    blocks
        ``(first frame, frames (n, H, W, 3))``, contiguous from frame 0. No more of them is held than the clips need.
    n_recording
        Frames in the recording.
    window
        Which frames enter a clip.
    batch_size
        Clips in a batch; the last one may be smaller.

    Yields
    ------
    (B, n_input, H, W, 3) uint8

    Raises
    ------
    ShardError
        If the blocks are not contiguous, or end before the recording does.
    """
    source = iter(blocks)
    held: NDArray[np.uint8] | None = None
    low = high = 0
    batch: list[NDArray[np.uint8]] = []
    for start in window.starts(n_recording).tolist():
        wanted = window.frame_numbers(start, n_recording)
        arrived = []
        while high <= wanted[-1]:
            first, frames = next(source, (-1, None))
            if frames is None or first != high:
                found = "nothing" if frames is None else f"frame {first}"
                raise ShardError(f"expected frame {high} of {n_recording}, found {found}")
            arrived.append(frames)
            high += len(frames)
        keep = max(0, int(wanted[0]) - low)
        if arrived:
            held = np.concatenate(arrived if held is None else [held[keep:], *arrived])
            low = high - len(held)
        assert held is not None
        batch.append(held[wanted - low])
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
