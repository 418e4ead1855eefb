"""Columns of numbers -> small inline SVG curves, legible on light and dark pages.

Colours are CSS variables of the page, so the page's theme decides. No text of the user enters a figure:
labels are fixed, and fonts are the page's. Knows nothing of runs or files.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

MOST_POINTS = 400

# Stand-ins that matplotlib can draw with, and what the page's theme puts in their place.
_THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--line)",
    "#030303": "var(--accent)",
    "#040404": "var(--second)",
}
_INK, _GRID, ACCENT, SECOND = _THEME


@dataclass(frozen=True)
class Curve:
    """One line of a figure; a y that is not finite leaves a gap.

    `points` marks each value with a dot, for few and separate measurements.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = ACCENT
    opacity: float = 1.0
    points: bool = False


def draw(
    name: str,
    curves: Sequence[Curve],
    *,
    alt: str,
    x_label: str,
    wide: bool = False,
    from_zero: bool = False,
    whole: bool = True,
    labels: Mapping[str, str] | None = None,
) -> str:
    """An `<svg>` element with the curves.

    Args:
        name: tells the figures of one page apart.
        alt: what the figure shows, for those who cannot see it.
        wide: across the page instead of half of it.
        from_zero: start the upright axis at zero, so that noise does not look like a trend.
        whole: x counts something, as steps are counted.
        labels: what stands in the figure for a label, in the reader's language: matplotlib has no such font.
    """
    import matplotlib

    # Text stays text (small, selectable), and the same run gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = _figure(curves, x_label, wide, from_zero, whole)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = _themed(buffer.getvalue(), alt)
    for label, shown in (labels or {}).items():
        svg = svg.replace(f">{escape(label)}</text>", f">{escape(shown)}</text>")
    return svg


def alone(svg: str) -> str:
    """What `draw` gives as a file of its own: it brings the colours of the light page along."""
    names = ("--ink: #24292f", "--line: #d8dee4", "--accent: #0969da", "--second: #bc4c00", "background: #ffffff")
    return svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{"; ".join(names)}" ', 1) + "\n"


def thin(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` of the points: the lowest and the highest of each stretch, so a spike stays visible."""
    if len(y) <= most:
        return list(x), list(y)
    stretches = max(1, (most - 2) // 2)
    bounds = [round(i * len(y) / stretches) for i in range(stretches + 1)]
    picked = {0, len(y) - 1}
    for start, stop in pairwise(bounds):
        finite = [i for i in range(start, stop) if math.isfinite(y[i])]
        if finite:
            picked |= {min(finite, key=lambda i: y[i]), max(finite, key=lambda i: y[i])}
    kept = sorted(picked)
    return [x[i] for i in kept], [y[i] for i in kept]


def smooth(values: Iterable[float], memory: float) -> list[float]:
    """Exponential moving average over about `memory` values, without the pull towards zero at the start.

    The correction is Adam's (Kingma & Ba 2015, section 3). Values that are not finite stay as they are
    and do not touch the average.
    """
    keep = 1 - 1 / max(1.0, memory)
    total = weight = 0.0
    smoothed = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(total / weight if math.isfinite(value) else value)
    return smoothed


def _figure(curves: Sequence[Curve], x_label: str, wide: bool, from_zero: bool, whole: bool) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.0, 3.3) if wide else (4.4, 2.1), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        x, y = thin(curve.x, curve.y)
        marker = "o" if curve.points or len(y) < 3 else ""
        axes.plot(
            x, y, color=curve.colour, alpha=curve.opacity, label=curve.name, linewidth=1.4, marker=marker, markersize=4
        )  # fmt: skip
    axes.set_xlabel(x_label, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10 if wide else 5, integer=whole, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7 if wide else 5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color=_GRID, linewidth=0.7)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.set_xlim(*_range(curves, whole))
    if from_zero:
        axes.set_ylim(bottom=0)
    if wide and len(curves) > 1:
        figure.legend(frameon=False, labelcolor=_INK, ncols=len(curves), loc="outside upper right")
    return figure


def _range(curves: Sequence[Curve], whole: bool) -> tuple[float, float]:
    """First and last x with a little air; of a single step, whole ones on both sides."""
    found = [x for curve in curves for x in curve.x]
    low, high = min(found), max(found)
    air = 0.01 * (high - low) or (1.0 if whole else 0.1)
    return low - air, high + air


def _themed(svg: str, alt: str) -> str:
    """matplotlib's file as an element of a page: no prologue, no links, theme colours, page fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sid="[a-z0-9.]+_\d+"', "", svg)  # names of groups: the same in each figure, used by none
    svg = re.sub(r'"[^"]*"', _rounded, re.sub(r"\s+", " ", svg))
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    for stand_in, colour in _THEME.items():
        svg = svg.replace(stand_in, colour)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view, "matplotlib writes a viewBox"
    opening = f'<svg class="curve" role="img" aria-label="{escape(alt)}" {view.group()}>'
    return opening + svg[svg.index(">") + 1 :]


def _rounded(attribute: re.Match[str]) -> str:
    """Hundredths of a point are enough for a place; labels are no attributes and stay whole."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute.group())
