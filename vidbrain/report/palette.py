"""Colours of the report: themed inks for curves, scales for maps; all told apart by colour-blind readers.

Curves are drawn with marker colours that stand for CSS variables, so one SVG serves the light and the dark page. The
hues are those of Okabe and Ito (2008). Maps lie on mid-grey anatomy, which both pages carry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

INK, MUTED, RULE, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
KIND_INKS = {"noise": "#060600", "visual": "#060601", "motor": "#060602", "event": "#060603"}
"""Marker colours of the curves: what Matplotlib draws and `css_inks` replaces."""

CSS_NAMES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    PAPER: "--paper",
    **{ink: f"--{kind}" for kind, ink in KIND_INKS.items()},
}

KIND_COLOURS = {"noise": "#8d939b", "visual": "#2b8fd6", "motor": "#e8702a", "event": "#12a67c"}
"""Of the planted kinds on the maps; the page's variables hold the same hues."""


def css_inks(svg: str) -> str:
    """Replace the marker colours of an SVG by the page's variables."""
    for marker, name in CSS_NAMES.items():
        svg = svg.replace(marker, f"var({name})")
    return svg


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A colour scale over an interval, transparent where there is nothing to see.

    Attributes
    ----------
    low, high
        Ends of the interval; beyond them the colour stays.
    anchors
        Colours as ``#rrggbb``, equally spaced from `low` to `high`, joined by straight lines in sRGB.
    fade_from, fade_to
        Absolute values at which a colour begins to show and is fully there.
    """

    low: float
    high: float
    anchors: tuple[str, ...]
    fade_from: float
    fade_to: float

    def paint(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Colour values.

        Parameters
        ----------
        values
            Any shape; NaN is transparent.

        Returns
        -------
        numpy.ndarray
            (..., 4) RGBA in 0…1.
        """
        known = np.isfinite(values)
        filled = np.where(known, values, 0.0)
        stops = np.linspace(self.low, self.high, len(self.anchors))
        colours = np.array([rgb(anchor) for anchor in self.anchors])
        out = np.empty((*values.shape, 4), np.float32)
        for channel in range(3):
            out[..., channel] = np.interp(filled, stops, colours[:, channel])
        shown = np.abs(filled) if self.low < 0 else filled
        width = max(self.fade_to - self.fade_from, 1e-9)
        out[..., 3] = np.clip((shown - self.fade_from) / width, 0, 1) * known
        return out


HEAT = ("#4b1d6b", "#8b2377", "#c83e63", "#ee6a3c", "#fba72b", "#fdea8c")
COLD_HOT = ("#b8ecff", "#3aa0e8", "#1f4f9a", "#3a3a3e", "#a34410", "#ee8a21", "#ffe28a")


def r_scale(high: float) -> Scale:
    """Scale of correlations from 0 to `high`: dark purple to light yellow, luminance rises throughout."""
    return Scale(low=0.0, high=high, anchors=HEAT, fade_from=0.1 * high, fade_to=0.3 * high)


def difference_scale(high: float) -> Scale:
    """Scale of differences from -`high` (light blue) to `high` (light yellow), transparent around zero."""
    return Scale(low=-high, high=high, anchors=COLD_HOT, fade_from=0.15 * high, fade_to=0.4 * high)


def rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue of ``#rrggbb`` in 0…1."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def ceil_nicely(value: float) -> float:
    """Round up to one of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten: a good end of a scale.

    Raises
    ------
    ValueError
        If the value is not positive and finite.
    """
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"a scale needs a positive end, not {value}")
    power = 10.0 ** np.floor(np.log10(value))
    for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10):
        if value <= step * power * (1 + 1e-9):
            return float(round(step * power, 12))
    return float(10 * power)
