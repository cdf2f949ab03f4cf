"""Curves as small SVGs whose colours and type belong to the page: sharp at any size, light or dark.

Matplotlib does the layout. Text stays text, marker colours become CSS variables, and everything that would differ
between two calls (dates, random identifiers) or that would ask the network (document types) is taken out.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from scipy import ndimage

from vidbrain.report.html import Html, escape, tag
from vidbrain.report.palette import ACCENT, INK, KIND_INKS, MUTED, PAPER, RULE, css_inks
from vidbrain.report.words import MINUS, score

Floats = NDArray[np.floating]

_STYLE: Any = {  # of Matplotlib's settings, whose type lists every key
    "svg.fonttype": "none",
    "svg.hashsalt": "vidbrain",
    "text.parse_math": False,  # a name with dollar signs is a name, not a formula
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.linewidth": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.unicode_minus": True,
}

_WIDTH_IN = 4.6


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """Losses of one model.

    Attributes
    ----------
    title
        Shown above.
    splits
        Steps and losses by split, for instance ``"train"`` and ``"val"``.
    references
        Levels to compare with, by name, for instance the unigram entropy.
    unit
        Of the loss.
    """

    title: str
    splits: Mapping[str, tuple[Floats, Floats]]
    references: Mapping[str, float]
    unit: str


def draw_loss(curve: LossCurve) -> Html:
    """Draw training (light: each record; dark: running median) and held-out loss over steps."""

    def draw(axes: Axes) -> None:
        every: list[Floats] = []
        for split, (steps, losses) in curve.splits.items():
            if split == "train":
                axes.plot(steps, losses, color=MUTED, lw=0.7, alpha=0.45, gid="train-raw")
                axes.plot(steps, _running_median(losses), color=INK, lw=1.5, label="training")
            else:
                name = "held out" if split == "val" else split
                axes.plot(steps, losses, color=ACCENT, lw=1.8, marker="o", ms=3.4, label=name)
            every.append(losses[np.isfinite(losses)])
        for name, level in curve.references.items():
            axes.axhline(level, color=MUTED, lw=1, ls=(0, (4, 3)))
            axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", ha="right", color=MUTED, fontsize=9)  # fmt: skip
        values = np.concatenate([*every, np.array(list(curve.references.values()))])
        if values.size and values.min() > 0 and np.percentile(values, 99) > 8 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel(curve.unit)
        _legend(axes)

    return _figure(draw, curve.title, height_in=2.9, label=f"{curve.title}: loss over training steps")


def draw_distributions(
    values: Mapping[str, Floats],
    *,
    title: str,
    kind: str | None,
    ceiling: Floats | None,
    limits: tuple[float, float],
    emphasis: str | None,
) -> Html:
    """Draw how a score is distributed over voxels: density, middle half and median, a row a feature set.

    Parameters
    ----------
    values
        Scores (voxel,) by the name of the feature set, top row first.
    title
        Shown above.
    kind
        Of the voxels, which gives the hue; None is the accent.
    ceiling
        Noise ceiling (voxel,): its median is a dashed line, its middle half a band.
    limits
        Of the axis, common to all panels.
    emphasis
        The row in colour; the others are grey.
    """
    hue = ACCENT if kind is None else KIND_INKS.get(kind, ACCENT)

    def draw(axes: Axes) -> None:
        bins = np.linspace(*limits, 161)
        centres = (bins[1:] + bins[:-1]) / 2
        if ceiling is not None and len(ceiling):
            low, middle, high = np.percentile(ceiling, [25, 50, 75])
            axes.axvspan(low, high, color=MUTED, alpha=0.13, lw=0)
            axes.axvline(middle, color=INK, lw=1, ls=(0, (4, 3)))
            left = middle > np.mean(limits)
            axes.annotate(f"ceiling {score(middle)}", (middle, 1), xycoords=("data", "axes fraction"),
                          xytext=(-4 if left else 4, 2), textcoords="offset points",
                          ha="right" if left else "left", va="bottom", color=INK, fontsize=9)  # fmt: skip
        axes.axvline(0, color=RULE, lw=1)
        for row, (name, scores) in enumerate(values.items()):
            ink = hue if name == emphasis else MUTED
            y = -row
            counts = np.histogram(np.clip(scores, *limits), bins)[0].astype(float)
            density = ndimage.gaussian_filter1d(counts, 2.2, mode="constant")
            density *= 0.56 / max(density.max(), 1e-9)
            seen = density > 0.004
            axes.fill_between(centres, y, y + density, where=seen, color=ink, alpha=0.42 if ink == hue else 0.28, lw=0)
            low, middle, high = np.percentile(scores, [25, 50, 75])
            axes.plot([low, high], [y, y], color=ink, lw=3.4, solid_capstyle="butt")
            axes.plot([middle], [y], "o", ms=5.2, color=ink, mec=PAPER, mew=1.1)
            axes.annotate(score(middle), (1, y), xycoords=("axes fraction", "data"), xytext=(6, 0),
                          textcoords="offset points", va="center", color=INK, fontsize=9.5,
                          fontweight="bold" if name == emphasis else "normal")  # fmt: skip
        axes.set_yticks(-np.arange(len(values)), [_shorten(name) for name in values])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(-len(values) + 0.6, 0.85)
        axes.set_xlim(*limits)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("r on held-out runs")
        axes.xaxis.set_major_locator(MaxNLocator(5))

    medians = "; ".join(f"{name} {score(float(np.median(scores)))}" for name, scores in values.items())
    height = 1.05 + 0.42 * len(values)
    return _figure(draw, title, height_in=height, label=f"Distribution of r in {title}. Medians: {medians}")


def draw_against_ceiling(ceiling: Floats, scores: Floats, *, title: str, high: float) -> Html:
    """Draw r against the noise ceiling: density of voxels in hexagons, the median in bins, and the line r = ceiling."""

    def draw(axes: Axes) -> None:
        extent = (0.0, high, min(-0.08 * high, float(np.percentile(scores, 0.2))), high)
        inside = (ceiling >= 0) & (ceiling <= high) & (scores >= extent[2]) & (scores <= high)
        hexagons = axes.hexbin(ceiling[inside], scores[inside], gridsize=(26, 19), extent=extent, mincnt=1, lw=0)
        counts = np.asarray(hexagons.get_array(), float)
        shade = 0.10 + 0.75 * np.log1p(counts) / np.log1p(max(counts.max(initial=1), 2))
        colours = np.tile(mpl.colors.to_rgba(ACCENT), (len(counts), 1))
        colours[:, 3] = np.round(shade, 2)
        hexagons.set_array(None)
        hexagons.set_facecolor([(red, green, blue, alpha) for red, green, blue, alpha in colours.tolist()])
        axes.plot([0, high], [0, high], color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.annotate("r = ceiling", (0.8 * high, 0.8 * high), xytext=(-8, 4), textcoords="offset points", ha="right",
                      va="bottom", color=MUTED, fontsize=9)  # fmt: skip
        axes.axhline(0, color=RULE, lw=1)
        edges = np.linspace(0, high, 13)
        which = np.digitize(ceiling, edges) - 1
        points = [
            (np.median(ceiling[which == i]), np.median(scores[which == i]))
            for i in range(len(edges) - 1)
            if (which == i).sum() >= 15
        ]
        if points:
            x, y = np.array(points).T
            axes.plot(x, y, color=INK, lw=1.6, marker="o", ms=4, mec=PAPER, mew=0.8)
        axes.set_xlim(0, high)
        axes.set_ylim(extent[2], high)
        axes.set_xlabel("noise ceiling")
        axes.set_ylabel("r on held-out runs")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))

    return _figure(draw, title, height_in=3.7, label=f"{title}: r against the noise ceiling, {len(scores)} voxels")


def draw_alphas(groups: Mapping[str, Floats], *, title: str) -> Html:
    """Draw which ridge penalties were chosen: the share of voxels at each, a line a group of voxels."""

    def draw(axes: Axes) -> None:
        for name, alphas in groups.items():
            chosen, counts = np.unique(alphas[np.isfinite(alphas) & (alphas > 0)], return_counts=True)
            ink = KIND_INKS.get(name, ACCENT)
            axes.plot(chosen, counts / max(counts.sum(), 1), color=ink, lw=1.5, marker="o", ms=3.6, label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        axes.grid(axis="y")
        axes.set_xlabel("ridge penalty alpha")
        axes.set_ylabel("share of voxels")
        _legend(axes)

    return _figure(draw, title, height_in=2.9, label=f"{title}: share of voxels that chose each ridge penalty")


def _legend(axes: Axes) -> None:
    # Above the axes, where no curve can run through it.
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, frameon=False, fontsize=9, labelcolor=MUTED,
                borderpad=0, columnspacing=1.4, handlelength=1.6)  # fmt: skip


def _figure(draw: Callable[[Axes], None], title: str, *, height_in: float, label: str) -> Html:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Only the layout is measured with Matplotlib's font; the reader's browser has the glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return tag("div", tag("h4", title), inline_svg(buffer.getvalue(), label))


def inline_svg(document: str, label: str) -> Html:
    """Turn Matplotlib's SVG document into an element of the page.

    Parameters
    ----------
    document
        As Matplotlib writes it.
    label
        Read to those who cannot see the figure.
    """
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', svg)
    if view is None:
        raise ValueError("Matplotlib wrote an SVG without a viewBox")
    opening = f'<svg class="curve" viewBox="{view.group(1)}" role="img" aria-label="{escape(label)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    # The page's font; sizes stay in user units, so text scales with the figure.
    svg = re.sub(r"font: (?:(bold|\d+) )?([\d.]+px)[^;\"]*", _font, svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    # Matplotlib numbers groups from one in every figure; identifiers must be unique in the page.
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    prefix = f"f{_digest(label)}-"
    svg = re.sub(r' id="', f' id="{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = re.sub(r"(\d+\.\d\d)\d+", r"\1", svg)
    return Html(css_inks(svg.strip()))


def _font(found: re.Match[str]) -> str:
    weight, size = found.groups()
    return f"font-size: {size}" + (f"; font-weight: {weight}" if weight else "")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _running_median(values: Floats) -> Floats:
    width = max(3, len(values) // 25 | 1)
    return ndimage.median_filter(np.asarray(values, float), size=width, mode="nearest")


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def _shorten(name: str, longest: int = 22) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def limits_of(scores: Sequence[Floats]) -> tuple[float, float]:
    """Common limits that hold all but a thousandth of the values, rounded outwards to 0.05."""
    every = np.concatenate([np.asarray(part, float) for part in scores]) if scores else np.zeros(1)
    low, high = np.percentile(every, [0.1, 99.9])
    return float(np.floor(min(low, -0.05) * 20) / 20), float(np.ceil(max(high, 0.1) * 20) / 20)
