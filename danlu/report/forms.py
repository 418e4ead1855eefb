"""Forms of a model that were tried (quantize's choice.json) -> loss against bytes and against speed, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.journal import write_atomic
from danlu.report.charts import Chart
from danlu.report.curves import SECOND, Curve, alone, draw
from danlu.words import ENGLISH, Words

# Of the part of a file's name: the figure of a trial, what one of its unit is, and how the axis is called.
AXES = {"bytes": ("bytes", 1e6, "MB"), "speed": ("tokens_per_second", 1.0, "tokens/s")}


def forms(report: Mapping[str, Any], words: Words = ENGLISH) -> dict[str, Chart]:
    """A figure for each of AXES; none where nothing was tried that could be compared."""
    tried = [one for one in report.get("trials") or () if "loss" in one]
    if not tried:
        return {}
    return {name: _chart(name, tried, float(report["max_loss"]), words) for name in AXES}


def _chart(name: str, tried: Sequence[Mapping[str, Any]], budget: float, words: Words) -> Chart:
    figure, unit, label = AXES[name]
    ordered = sorted(tried, key=lambda one: float(one.get(figure, 0)))
    x = [float(one.get(figure, 0)) / unit for one in ordered]
    bounds = [[100 * float(one["loss"][bound]) for one in ordered] for bound in ("value", "high")]
    curves = [
        Curve("allowed", (x[0], x[-1]), (100 * budget, 100 * budget), opacity=0.3),
        Curve("measured", x, bounds[0], points=True),
        Curve("upper end", x, bounds[1], colour=SECOND, opacity=0.6, points=True),
    ]
    title = words("Loss by size") if name == "bytes" else words("Loss by speed")
    listed = "; ".join(
        f"{one['name']} {at:.4g} {label} → {loss:+.2f} %" for one, at, loss in zip(ordered, x, bounds[0], strict=True)
    )
    svg = draw(f"forms-{name}", curves, alt=f"{title}: {listed}", x_label=label, whole=False)
    note = words("perplexity over the original's in %; pale: the upper end of its interval, and what is allowed")
    return Chart(title, note, svg)


def draw_forms(report: Mapping[str, Any], directory: Path) -> None:
    """A file for each figure, beside the report."""
    for name, chart in forms(report).items():
        write_atomic(directory / f"choice-{name}.svg", alone(chart.svg))
