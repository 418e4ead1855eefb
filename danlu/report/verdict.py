"""results.json -> one sentence: did what counts get better, and is that more than chance?

Knows the names of the results, no HTML; the sentence is in the reader's language (words.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from danlu.evaluate.bootstrap import Interval
from danlu.report.numbers import decimals_for, fixed, is_figure
from danlu.words import ENGLISH, Words


@dataclass(frozen=True)
class Measure:
    """How a measure is called in a sentence, which way is better, and the fewest decimals worth showing."""

    name: str
    less_is_better: bool
    decimals: int = 2


MEASURES = {
    "loss": Measure("held-out loss", less_is_better=True),
    "perplexity": Measure("perplexity", less_is_better=True),
    "overlap": Measure("character overlap with the references (chrF)", less_is_better=False, decimals=1),
    "ended": Measure("answers that ended by themselves, of 100", less_is_better=False, decimals=0),
    "preference_loss": Measure("loss of held-out pairs", less_is_better=True),
    "preferred": Measure("held-out pairs judged rightly, of 100", less_is_better=False, decimals=0),
    "reward_gap": Measure("gap of rewards between better and worse answers", less_is_better=False),
    "reward": Measure("reward of answers to held-out prompts", less_is_better=False),
    "kl": Measure("distance from the reference, nats an answer", less_is_better=True),
}
# What a run is judged by is the first of these that it has measured.
_CHIEF = ("loss", "preference_loss", "reward")

_ABSENT = {
    "before": "No verdict: {name} was not measured before training",
    "after": "No verdict: {name} was not measured after training",
    "before or after": "No verdict: {name} was not measured before or after training",
}
_UNMEASURED = "{name} went from {before} to {after}; whether that is chance was not measured"
_UNCLEAR = (
    "{name} did not change clearly, from {before} to {after}: the {level} % interval of the change {spread} "
    "contains zero"
)
_FELL = "{name} fell from {before} to {after} ({level} % interval of the change {spread})"
_ROSE = "{name} rose from {before} to {after} ({level} % interval of the change {spread})"


@dataclass(frozen=True)
class Verdict:
    """A sentence and its colour: "better", "worse", or "open" when nothing can be said."""

    sentence: str
    tone: str


def chief(results: dict[str, Any]) -> str:
    """The measure that a run is judged by."""
    measured = [name for name in _CHIEF if any(figure(results, part, name) is not None for part in ("before", "after"))]
    return measured[0] if measured else _CHIEF[0]


def judge(results: dict[str, Any], measure: str | None = None, words: Words = ENGLISH) -> Verdict:
    """What the run did to `measure`, in one sentence; says so where a part was not measured.

    Args:
        measure: the chief one if not named.
    """
    measure = measure or chief(results)
    name, least = words(MEASURES[measure].name), MEASURES[measure].decimals
    before, after = figure(results, "before", measure), figure(results, "after", measure)
    if before is None or after is None:
        absent = " or ".join(part for part, value in (("before", before), ("after", after)) if value is None)
        return Verdict(words(_ABSENT[absent], name=name), "open")
    interval = interval_of(results, measure)
    decimals = least if interval is None else interval_decimals(interval, least)
    values = {"name": name, "before": fixed(before, decimals), "after": fixed(after, decimals)}
    if interval is None:
        return Verdict(words(_UNMEASURED, **values), "open")
    values |= {"level": f"{interval.level * 100:g}", "spread": spread(interval, decimals)}
    if not interval.excludes_zero:
        return Verdict(words(_UNCLEAR, **values), "open")
    fell = interval.value < 0
    better = fell == MEASURES[measure].less_is_better
    return Verdict(words(_FELL if fell else _ROSE, **values), "better" if better else "worse")


def figure(results: dict[str, Any], part: str, measure: str) -> float | None:
    """A number of results.json, or None when it is absent or not finite."""
    group = results.get(part)
    value = group.get(measure) if isinstance(group, dict) else None
    return float(value) if value is not None and is_figure(value) else None


def interval_of(results: dict[str, Any], measure: str) -> Interval | None:
    """The interval of the change of `measure`, or None when it was not measured whole."""
    group = results.get("difference")
    found = group.get(measure) if isinstance(group, dict) else None
    names = ("value", "low", "high", "level")
    if not isinstance(found, dict) or not all(is_figure(found.get(name)) for name in names):
        return None
    return Interval(*(float(found[name]) for name in names))


def interval_decimals(interval: Interval, fewest: int = 2) -> int:
    """Decimals that show the interval's width and which side of zero its ends are on."""
    width = interval.high - interval.low
    return decimals_for([10 * width, 10 * interval.low, 10 * interval.high], fewest)


def spread(interval: Interval, decimals: int) -> str:
    """The two ends, signed."""
    return f"{fixed(interval.low, decimals, signed=True)} … {fixed(interval.high, decimals, signed=True)}"
