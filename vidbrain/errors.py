"""The errors that a user can meet, in one tree.

::

    VidbrainError                 what went wrong, where, and what to do next
    ├── ConfigError               a setting that is unknown, misspelt or impossible (also a ValueError)
    ├── MissingExtraError         an optional dependency is not installed
    ├── StorageError              a root cannot be read or written; a store is damaged or of another version
    ├── VideoError                a recording cannot be played, replayed or decoded
    ├── ShardError                a data set of shards is damaged, or belongs to another plan
    ├── BoldError                 fMRI data cannot be read, cleaned or trusted
    ├── AlignmentError            video, features and BOLD do not share runs or clocks
    ├── ModelError                a model, layer or checkpoint that does not exist or does not fit
    ├── EncodingError             a design that cannot be solved
    └── ResumeError               what lies on disk was made with other settings
"""

from __future__ import annotations

from typing import ClassVar


class VidbrainError(Exception):
    """Something that the user can understand and mend.

    Parameters
    ----------
    message
        What went wrong, in one sentence, with the numbers.
    where
        The file, key or setting concerned.
    likely
        The usual cause, where one is known.
    hint
        What to do next: a command, or a setting to change.
    """

    kind: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, where: object = None, likely: str | None = None, hint: str | None = None
    ) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        self.likely = likely
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        parts = [("where ", self.where), ("likely", self.likely), ("try   ", self.hint)]
        return "\n".join([self.message, *(f"  {name} {text}" for name, text in parts if text)])

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments would be lost when a worker process sends the error home.
        return _rebuild, (type(self), self.message, self.where, self.likely, self.hint)


def _rebuild(
    cls: type[VidbrainError], message: str, where: str | None, likely: str | None, hint: str | None
) -> VidbrainError:
    return cls(message, where=where, likely=likely, hint=hint)


class ConfigError(VidbrainError, ValueError):
    """A setting that is unknown, misspelt or impossible."""

    kind = "config"


class MissingExtraError(VidbrainError, ImportError):
    """An optional dependency is not installed."""

    kind = "missing-extra"


class StorageError(VidbrainError):
    """A root that cannot be read or written, or a store that is damaged or of another version."""

    kind = "storage"


class VideoError(VidbrainError):
    """A recording that cannot be played, replayed or decoded."""

    kind = "video"


class ShardError(VidbrainError):
    """A data set of shards that is damaged or belongs to another plan."""

    kind = "shard"


class BoldError(VidbrainError):
    """fMRI data that cannot be read, cleaned or trusted."""

    kind = "bold"


class AlignmentError(VidbrainError):
    """Video, features and BOLD that do not share runs or clocks."""

    kind = "alignment"


class ModelError(VidbrainError):
    """A model, layer or checkpoint that does not exist or does not fit."""

    kind = "model"


class EncodingError(VidbrainError):
    """A design that cannot be solved."""

    kind = "encoding"


class ResumeError(VidbrainError):
    """What lies on disk was made with other settings than the ones given now."""

    kind = "resume"
