"""Index and clip specification -> the list of clips. Pure: no torch, no disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec


@dataclass(frozen=True)
class ClipTable:
    """All clips of some segments, without listing them: clip i is found by arithmetic.

    A clip belongs to the segment that owns its first frame. Starts are multiples of the stride, counted from the
    recording's first frame, so that they do not depend on how the recording was cut.

    Attributes
    ----------
    spec
        The clip specification.
    segments : (n_segments,) int64
        Positions of the segments in the manifest.
    first_start : (n_segments,) int64
        First clip start of each segment, as a frame of the recording.
    counts : (n_segments,) int64
        Clips in each segment.
    """

    spec: ClipSpec
    segments: NDArray[np.int64]
    first_start: NDArray[np.int64]
    counts: NDArray[np.int64]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Number of the first clip of each segment, and the total at the end: (n_segments + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return int(self.counts.sum())

    def locate(self, clips: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each clip's segment (position in the manifest) and first frame in the recording."""
        offsets = self.offsets
        row = np.searchsorted(offsets, clips, side="right") - 1
        return self.segments[row], self.first_start[row] + (clips - offsets[row]) * self.spec.stride


def clip_table(segments: pd.DataFrame, positions: NDArray[np.int64], spec: ClipSpec, margin: int) -> ClipTable:
    """List the clips of the segments at `positions` of a manifest's table.

    Raises
    ------
    ShardError
        If the clip is longer than the margin that the segments carry, or no recording is long enough for one.
    """
    if spec.span - 1 > margin:
        raise ShardError(
            f"a clip of {spec.n_frames} frames at step {spec.step} spans {spec.span} frames, "
            f"the segments carry a margin for {margin + 1}",
            hint=f"shard again with --clip-frames {spec.n_frames} --clip-step {spec.step}, or use shorter clips",
        )
    rows = segments.iloc[positions]
    start, owned = rows["start_frame"].to_numpy(np.int64), rows["n_frames"].to_numpy(np.int64)
    stored = rows["n_stored"].to_numpy(np.int64)
    first = -(-start // spec.stride) * spec.stride
    # The last start is owned here and its clip ends inside what is stored.
    past = np.minimum(start + owned, start + stored - spec.span + 1)
    counts = np.maximum(0, -(-(past - first) // spec.stride))
    if not counts.sum():
        raise ShardError(f"no recording is long enough for a clip of {spec.span} frames")
    return ClipTable(spec, np.asarray(positions, np.int64), first, counts)
