"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DASH, MINUS = "\u2013", "\u2212"
"""Signs as type has them."""


def count(value: object) -> str:
    """Write a whole number, thousands apart; a dash for what is missing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{round(value):,}".replace(",", "\u202f")


def score(value: object, digits: int = 2) -> str:
    """Write a correlation or a loss with a true minus sign; a dash for what is missing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text.startswith("-") else text).replace("-", MINUS)


def difference(value: float, digits: int = 2) -> str:
    """Write a difference with its sign."""
    text = score(value, digits)
    return text if text == DASH or text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def percent(share: object, digits: int = 0) -> str:
    """Write a share of one in per cent."""
    text = score(100 * share, digits) if isinstance(share, int | float) else DASH
    return text if text == DASH else f"{text}\u202f%"


def decibels(value: float) -> str:
    """Write decibels; equal pictures are infinitely good."""
    return "∞ dB" if value == math.inf else f"{score(value, 1)} dB"


def duration(seconds: object) -> str:
    """Write seconds as 4.2 s, 42 s, 3 min 20 s or 5 h 02 min."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def find(key_spellings: tuple[str, ...], *records: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- any JSON value
    """Return the first value under one of these keys, in any of the records; None if there is none."""
    for record in records:
        for key in key_spellings:
            if record.get(key) is not None:
                return record[key]
    return None
