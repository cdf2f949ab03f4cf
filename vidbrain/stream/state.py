"""The state of a stream: read from plain values, and compared with the stream that is to go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidbrain.config import fingerprint, from_mapping, to_mapping
from vidbrain.errors import ConfigError, ResumeError
from vidbrain.records import StreamState
from vidbrain.stream.order import ORDER_VERSION

_AFRESH = "start afresh in another folder"


def read_state(values: Any) -> StreamState:  # noqa: ANN401 -- what a user gave
    """Read what `Loader.state_dict` gave.

    Raises
    ------
    ResumeError
        If it is something else, or of another version of the order.
    """
    if not isinstance(values, Mapping):
        raise ResumeError(
            f"a stream state is a mapping, not {type(values).__name__}", hint="give what state_dict() returned"
        )
    version = values.get("order_version", values.get("version"))
    if version != ORDER_VERSION:
        raise ResumeError(
            f"the stream state was made with version {version} of the order, this is version {ORDER_VERSION}",
            likely="another version of vidbrain wrote it; its batches would not be continued but mixed up",
            hint=f"go on with that version, or {_AFRESH}",
        )
    try:
        return from_mapping(StreamState, values, "stream state")
    except ConfigError as error:
        raise ResumeError(
            error.message, where=error.where, likely="the state is damaged, or was changed", hint=_AFRESH
        ) from error


def check_state(state: StreamState, here: StreamState, *, n_batches: int, n_clips: int) -> None:
    """Refuse a state that another stream gave, or that stands where there is nothing.

    Parameters
    ----------
    state
        To go on from.
    here
        What this stream would say at the same place.
    n_batches, n_clips
        In an epoch of this stream.

    Raises
    ------
    ResumeError
        Saying what differs.
    """
    if state != here:
        old, new = to_mapping(state), to_mapping(here)
        differing = [f"{k}: state {old[k]}, here {new[k]}" for k in old if fingerprint(old[k]) != fingerprint(new[k])]
        raise ResumeError(
            f"the stream state belongs to another stream ({'; '.join(differing)})",
            hint=f"point at the old data and settings, or {_AFRESH}",
        )
    if state.epoch < 0 or not 0 <= state.batches <= n_batches:
        raise ResumeError(
            f"the stream state stands at batch {state.batches} of {n_batches}, in epoch {state.epoch}", hint=_AFRESH
        )
    unknown = [clip for clip in state.quarantine if not 0 <= clip < n_clips]
    if unknown:
        raise ResumeError(
            f"the stream state lists bad clips that do not exist: {unknown[:3]} of {n_clips}", hint=_AFRESH
        )
