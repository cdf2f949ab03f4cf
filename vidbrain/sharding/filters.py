"""Filters: which recordings to take, by their entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ShardError

ENTITIES = ("subject", "session", "task", "level", "run")
_PREFIXES = {"subject": "sub-", "session": "ses-", "task": "task-", "level": "level-"}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which recordings to take; an empty list takes all. Labels may carry their prefix (sub-01) or not (01)."""

    subject: tuple[str, ...] = ()
    """Only these subjects."""
    session: tuple[str, ...] = ()
    """Only these sessions."""
    task: tuple[str, ...] = ()
    """Only these tasks."""
    level: tuple[str, ...] = ()
    """Only these levels; 1 also takes 1-0."""
    run: tuple[int, ...] = ()
    """Only these run numbers."""

    def __post_init__(self) -> None:
        for name, prefix in _PREFIXES.items():
            # Two spellings of one filter are one setting.
            plain = tuple(sorted({str(label).removeprefix(prefix) for label in getattr(self, name)}))
            object.__setattr__(self, name, plain)
        object.__setattr__(self, "run", tuple(sorted(set(self.run))))

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def chosen(only: Filter, entities: Mapping[str, Sequence[str | int]], where: object = None) -> NDArray[np.bool_]:
    """Say which rows a filter takes.

    Parameters
    ----------
    only
        The filter.
    entities
        For each name in `ENTITIES` the labels of all rows; empty, or -1 for a run, where a row has none.
    where
        Named in errors.

    Returns
    -------
    (n_rows,) bool

    Raises
    ------
    ShardError
        If a label occurs in no row, or nothing is left.
    """
    kept = np.ones(len(entities["subject"]), np.bool_)
    for name in ENTITIES:
        wanted = getattr(only, name)
        if not wanted:
            continue
        labels = entities[name]
        known = set(labels) - {"", -1}
        acts = {label: {label, str(label).split("-")[0]} if name == "level" else {label} for label in known}
        lacking = [label for label in wanted if not any(label in names for names in acts.values())]
        if lacking:
            shown = ", ".join(map(str, sorted(known, key=str)[:12])) or "none"
            raise ShardError(
                f"no recording has {name} {', '.join(map(str, lacking))}", where=where, hint=f"there are: {shown}"
            )
        taken = {label for label, names in acts.items() if names & set(wanted)}
        kept &= np.fromiter((label in taken for label in labels), np.bool_, len(labels))
    if not kept.any():
        raise ShardError("the filters together leave no recording", where=where, hint="ask for fewer at once")
    return kept
