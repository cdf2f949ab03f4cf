"""The values that flow from stage to stage. All are frozen, comparable and free of I/O."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

from vidbrain.errors import ConfigError

_ENTITY = re.compile(r"(?:^|_)(sub|ses|task|run)-([0-9a-zA-Z]+)")


def whole_number(value: Any, name: str) -> int:  # noqa: ANN401 -- what a user gave
    """Give a setting as a plain int, which fits into JSON: NumPy's integers are taken, truth values and text are not.

    Raises
    ------
    ConfigError
        If it is no whole number.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ConfigError(f"{name} is a whole number, not {value!r}", where=name)


@dataclass(frozen=True, order=True)
class RunKey:
    """One BOLD series, named by its BIDS entities.

    Runs are compared as integers: raw data say ``run-01`` where fMRIPrep says ``run-1``.

    Attributes
    ----------
    subject
        Label without the prefix, for instance ``"01"``.
    session
        Label without the prefix (``"001"``), or None where the data set has no sessions.
    task
        Task label, for instance ``"shinobi"``.
    run
        Run number, or None where a session holds a single, unnumbered run.
    """

    subject: str
    session: str | None
    task: str
    run: int | None

    @classmethod
    def parse(cls, name: str) -> RunKey:
        """Read the entities from a file name or label.

        Raises
        ------
        ConfigError
            If there is no ``sub-`` or no ``task-`` entity, or the run is not a number.
        """
        found = dict(_ENTITY.findall(name.rsplit("/", 1)[-1]))
        if "sub" not in found or "task" not in found:
            raise ConfigError(f"{name!r} names no run: it needs at least sub-… and task-…", where=name)
        run = found.get("run")
        if run is not None and not run.isdigit():
            raise ConfigError(f"run-{run} is not a number", where=name)
        return cls(found["sub"], found.get("ses"), found["task"], None if run is None else int(run))

    @property
    def label(self) -> str:
        """The canonical name, used for our files: ``sub-01_ses-001_task-shinobi_run-1``."""
        parts = [f"sub-{self.subject}"]
        if self.session is not None:
            parts.append(f"ses-{self.session}")
        parts.append(f"task-{self.task}")
        if self.run is not None:
            parts.append(f"run-{self.run}")
        return "_".join(parts)

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One continuous video: a game repetition or a video file.

    Frame i of n was on the screen at ``onset_s + i / n * duration_s`` of the run's clock, never at ``i / 60``: the
    console's rate and the scanner computer's clock do not agree.

    Attributes
    ----------
    key
        Unique name in the data set, without dots: usually the file stem.
    run
        The BOLD run during which it was seen, or None for video without a scanner.
    level, repetition
        Labels as the data set gives them; names, not counters.
    onset_s, duration_s
        Begin and wall-clock length on the run's clock, in seconds; None where there is no run.
    movie
        Path of the ``.bk2`` (recorded input), or None.
    video
        Path of a decodable video, or None while it has not been replayed.
    skip_first_step
        Whether the replay discards the first recorded input line (the first recording of a run needs it).
    """

    key: str
    run: RunKey | None = None
    level: str | None = None
    repetition: str | None = None
    onset_s: float | None = None
    duration_s: float | None = None
    movie: str | None = None
    video: str | None = None
    skip_first_step: bool = False


@dataclass(frozen=True, order=True)
class SegmentRef:
    """Contiguous frames of one recording, stored as one WebDataset sample.

    A segment *owns* `n_frames` frames and stores `n_stored`: the rest is a margin, so that a clip which begins at the
    last owned frame is still whole.
    """

    recording: str
    start_frame: int
    n_frames: int
    n_stored: int

    @property
    def key(self) -> str:
        """WebDataset key: no dots, sortable, unique."""
        return f"{self.recording}_frame-{self.start_frame:07d}"


@dataclass(frozen=True)
class ClipSpec:
    """A training window over source frames.

    Attributes
    ----------
    n_frames
        Frames in the clip.
    step
        Distance between its frames, in source frames (4 turns 60 Hz into 15 Hz).
    stride
        Distance between the starts of neighbouring clips, in source frames.
    """

    n_frames: int = 16
    step: int = 4
    stride: int = 4

    def __post_init__(self) -> None:
        for name in ("n_frames", "step", "stride"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name))
        if min(self.n_frames, self.step, self.stride) < 1:
            raise ConfigError(f"a clip needs positive n_frames, step and stride, not {self}")

    @property
    def span(self) -> int:
        """Source frames that a clip covers, first to last inclusive."""
        return (self.n_frames - 1) * self.step + 1


@dataclass(frozen=True)
class World:
    """Which of the training processes this one is."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        for name in ("rank", "size"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name))
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} is not in a world of {self.size}")


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """Where a stream stands, counted where the trainer receives the batch.

    Attributes
    ----------
    dataset
        Fingerprint of the data set.
    clip
        The clip specification that the order was made for.
    seed, epoch, batch_size, streams, shuffle, tail
        What the order is a function of; `streams` is the number of canonical streams.
    batches
        Batches of this epoch that the trainer has received.
    quarantine
        Clips that could not be read and were passed over, ascending.
    order_version
        Of the order's algorithm and of this record.
    """

    dataset: str
    clip: ClipSpec
    seed: int
    epoch: int
    batch_size: int
    streams: int
    shuffle: bool
    tail: str
    batches: int
    quarantine: tuple[int, ...]
    order_version: int
