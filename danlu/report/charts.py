"""Rows of metrics.jsonl -> the figures of the page: loss, rate, gradient, speed, memory.

Knows what each column means and how to say it in words; drawing is curves.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from danlu.report.curves import ACCENT, SECOND, Curve, draw, smooth
from danlu.report.numbers import is_figure, plain
from danlu.words import ENGLISH, Words

Rows = Sequence[dict[str, Any]]
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Chart:
    """One figure with its caption."""

    title: str
    note: str
    svg: str
    wide: bool = False


# Columns that only some kinds of training have: the figure's title and its unit.
OF_STAGES = {
    "score": ("Reward of answers", ""),
    "kl": ("Distance from the reference", "nats an answer"),
    "rewards/margins": ("Gap of rewards", ""),
    "rewards/accuracies": ("Pairs judged rightly", ""),
    "accuracy": ("Pairs judged rightly", ""),
    "entropy": ("Entropy", "nats a token"),
    "answer_length": ("Length of answers", "tokens"),
    "unfinished": ("Answers cut off", "share"),
    "clip_share": ("Tokens clipped", "share"),
    "engine_ratio": ("Engine against trainer", "ratio"),
}


def charts(rows: Rows, words: Words = ENGLISH) -> list[Chart]:
    """The figures for which the rows hold values; none for no rows."""
    drawn = [
        _loss(rows, words),
        _rate(rows, words),
        *(
            _small(words, title, words(unit) if unit else "", rows, column(rows, name), trend=True)
            for name, (title, unit) in OF_STAGES.items()
        ),
        _small(words, "Gradient norm", "", rows, column(rows, "grad_norm"), trend=True),
        _small(words, "Speed", words("tokens/s"), rows, tokens_per_second(rows), trend=True),
        _memory(rows, words),
    ]
    return [chart for chart in drawn if chart]


def reliability(bins: Sequence[Sequence[float]], words: Words = ENGLISH) -> Chart | None:
    """How often a judge was right when it was so sure: bins of (sureness, share judged rightly, pairs).

    A judge that knows its doubt lies on the diagonal.
    """
    if not bins:
        return None
    sure, right, pairs = zip(*bins, strict=True)
    curves = [
        Curve("as sure as right", (0.5, 1.0), (0.5, 1.0), opacity=0.3),
        Curve("held-out pairs", sure, right, colour=SECOND, points=True),
    ]
    title = words("Sureness against being right")
    listed = "; ".join(f"{plain(s)} → {plain(r)} ({int(n)})" for s, r, n in zip(sure, right, pairs, strict=True))
    labels = {"sureness": words("sureness")}
    svg = draw("reliability", curves, alt=f"{title}: {listed}", x_label="sureness", whole=False, labels=labels)
    return Chart(title, words("share of held-out pairs judged rightly; on the pale line it knows its doubt"), svg)


def search(events: Rows, words: Words = ENGLISH) -> Chart | None:
    """The held-out losses of the forks by which a learning rate was found, a line for each length of fork."""
    found = [event for event in events if event.get("kind") == "rate found" and event.get("tried")]
    if not found:
        return None
    tried = [one for one in found[-1]["tried"] if is_figure(one.get("eval_loss")) and is_figure(one.get("steps"))]
    curves, colours, listed = [], (ACCENT, SECOND), []
    for colour, steps in zip(colours, sorted({one["steps"] for one in tried}), strict=False):
        some = sorted((one["learning_rate"], one["eval_loss"]) for one in tried if one["steps"] == steps)
        x, y = [math.log10(rate) for rate, _ in some], [loss for _, loss in some]
        curves.append(Curve(words("{steps} steps", steps=steps), x, y, colour=colour, points=True))
        listed += [f"{rate:.2g} → {plain(loss)}" for rate, loss in some]
    if not curves:
        return None
    title = words("Search for the learning rate")
    labels = {"log10 of the rate": words("log10 of the rate")}
    svg = draw(
        "search", curves, alt=f"{title}: {'; '.join(listed)}", x_label="log10 of the rate", whole=False, labels=labels
    )
    return Chart(title, words("held-out loss of short forks; long runs want a lower rate"), svg)


def column(rows: Rows, name: str) -> list[float]:
    """One number a row; nan where the row lacks it."""
    return [float(row[name]) if is_figure(row.get(name)) else math.nan for row in rows]


def tokens_per_second(rows: Rows) -> list[float]:
    """Speed of each step, from the step's tokens and seconds."""
    pairs = zip(column(rows, "tokens"), column(rows, "seconds"), strict=True)
    return [tokens / seconds if seconds > 0 else math.nan for tokens, seconds in pairs]


def memory_gib(rows: Rows, name: str = "memory_bytes") -> list[float]:
    """Memory of each step in GiB: at its end, or its peak."""
    return [value / 2**30 for value in column(rows, name)]


def _loss(rows: Rows, words: Words) -> Chart | None:
    steps, loss, held_out = _steps(rows), column(rows, "loss"), column(rows, "eval_loss")
    curves = []
    if _finite(loss):
        curves = _with_trend("training", "training, smoothed", steps, loss)
    measured = [(step, value) for step, value in zip(steps, held_out, strict=True) if math.isfinite(value)]
    if measured:
        x, y = zip(*measured, strict=True)
        curves.append(Curve("held out", x, y, colour=SECOND, points=True))
    if not curves:
        return None
    parts = [_in_words(words, words(name), of) for name, of in (("training loss", loss), ("held-out loss", held_out))]
    alt = words("{title} by step: {numbers}", title=words("Loss"), numbers=words("; ").join(filter(None, parts)))
    labels = {text: words(text) for text in ("step", *(curve.name for curve in curves))}
    svg = draw("loss", curves, alt=alt, x_label="step", wide=True, labels=labels)
    unit = words("nats a token, of the tokens to be learnt") if _finite(column(rows, "learnt_tokens")) else ""
    return Chart(words("Loss"), unit, svg, wide=True)


def _memory(rows: Rows, words: Words) -> Chart | None:
    """The peak of each step, and pale what was in use at its end; older runs have the end alone."""
    end, peak = memory_gib(rows), memory_gib(rows, "peak_memory_bytes")
    if not _finite(peak):
        return _small(words, "Memory", "GiB", rows, end)
    steps = _steps(rows)
    curves = [Curve("at its end", steps, end, opacity=0.3), Curve("peak of the step", steps, peak)]
    title, numbers = words("Memory"), _in_words(words, words("peak of the step"), peak)
    alt = words("{title} by step: {numbers}", title=title, numbers=numbers)
    labels = {text: words(text) for text in ("step", *(curve.name for curve in curves))}
    svg = draw("memory", curves, alt=alt, x_label="step", from_zero=True, labels=labels)
    return Chart(title, words("GiB; the peak of each step, and pale what it held at its end"), svg)


def _rate(rows: Rows, words: Words) -> Chart | None:
    """The learning rate, in its own power of ten: 0.00024 beside 8e-05 is hard to read."""
    rates = column(rows, "lr")
    highest = max(_finite(rates), default=0.0)
    power = math.floor(math.log10(highest)) if highest > 0 else 0
    unit = f"× 10{str(power).translate(_RAISED)}" if power else ""
    return _small(words, "Learning rate", unit, rows, [rate / 10.0**power for rate in rates])


def _small(
    words: Words, title: str, unit: str, rows: Rows, values: list[float], *, trend: bool = False
) -> Chart | None:
    if not _finite(values):
        return None
    numbers = _in_words(words, unit or words(title).lower(), values)
    alt = words("{title} by step: {numbers}", title=words(title), numbers=numbers)
    steps = _steps(rows)
    curves = _with_trend(title, title, steps, values) if trend else [Curve(title, steps, values)]
    name, labels = title.lower().replace(" ", "-"), {"step": words("step")}
    svg = draw(name, curves, alt=alt, x_label="step", from_zero=True, labels=labels)
    return Chart(words(title), unit, svg)


def _with_trend(name: str, smoothed_name: str, steps: list[float], values: list[float]) -> list[Curve]:
    """Each step, pale, under an average over a thirtieth of the run; the steps alone when they are few."""
    memory = len(values) / 30
    if memory < 2:
        return [Curve(name, steps, values)]
    smoothed = Curve(smoothed_name, steps, smooth(values, memory))
    return [Curve("each step", steps, values, opacity=0.3), smoothed]


def _steps(rows: Rows) -> list[float]:
    """The rows' steps; a row without one is counted on from its place."""
    return [s if math.isfinite(s) else float(i + 1) for i, s in enumerate(column(rows, "step"))]


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _in_words(words: Words, name: str, values: Sequence[float]) -> str:
    finite = _finite(values)
    if not finite:
        return ""
    first, last, low, high = (plain(v) for v in (finite[0], finite[-1], min(finite), max(finite)))
    return words(
        "{name} from {first} at first to {last} at last, lowest {low}, highest {high}",
        name=name,
        first=first,
        last=last,
        low=low,
        high=high,
    )
