"""Judgements -> the figures of a table: mean, interval, how many, how many failed. And two sets of them, compared.

A summary is plain JSON: reports, gates and later runs read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from danlu.evaluate.bootstrap import Interval, bootstrap_difference, bootstrap_mean, unlike
from danlu.evaluate.evaluating import Evaluated
from danlu.evaluate.overlap import OVERLAPS
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.rubrics import Rubric
from danlu.evaluate.scale import Failed, Judged
from danlu.evaluate.significance import mcnemar, smallest_difference

# An interval wants two groups; fewer than these mean little.
LEAST_GROUPS = 2


def summarise(found: Evaluated, rubrics: Mapping[str, Rubric]) -> dict[str, Any]:
    """Every measure, and every overlap that any row has."""
    measures = {name: _of_measure(found, name, rubrics[name]) for name in found.judged}
    faulty = [row.reason for row in found.rows if isinstance(row, FaultyRow)]
    return {
        "rows": len(found.rows),
        "faulty": len(faulty),
        "reasons": _counted(faulty),
        "measures": measures,
        "overlaps": _of_overlaps(found),
    }


def without(found: Evaluated, rubrics: Mapping[str, Rubric], left_out: Sequence[bool]) -> dict[str, Any]:
    """`summarise` of the rows that are not left out."""
    kept = [at for at, is_out in enumerate(left_out) if not is_out]
    judged = {name: [those[at] for at in kept] for name, those in found.judged.items()}
    part = Evaluated([found.rows[at] for at in kept], judged, [found.overlaps[at] for at in kept])
    return summarise(part, rubrics)


def _of_measure(found: Evaluated, name: str, rubric: Rubric) -> dict[str, Any]:
    pairs = [(row, one) for row, one in zip(found.rows, found.judged[name], strict=True) if isinstance(one, Judged)]
    judged = [one for _, one in pairs]
    made: dict[str, Any] = {
        "scale": list(rubric.scale),
        "n": len(judged),
        "failed": len(found.rows) - len(judged),
        "reasons": _counted(one.reason for one in found.judged[name] if isinstance(one, Failed)),
        "scores": [sum(one.score == score for one in judged) for score in rubric.scores],
    }
    if judged:
        groups = [row.group for row, _ in pairs if isinstance(row, Row)]
        made["mean"] = _mean([one.expectation for one in judged], groups, rubric.scale)
        made["deviation"] = sum(one.deviation for one in judged) / len(judged)
        made["outside"] = sum(one.outside for one in judged) / len(judged)
    return made


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    """The most frequent ten, and how often."""
    return dict(Counter(reasons).most_common(10))


def _of_overlaps(found: Evaluated) -> dict[str, Any]:
    names = dict.fromkeys(name for one in found.overlaps for name in one)
    made = {}
    for name in names:
        places = [at for at, one in enumerate(found.overlaps) if name in one]
        groups = [row.group for at in places if isinstance(row := found.rows[at], Row)]
        most = _most(name)
        ends = None if most is None else (0.0, most)
        made[name] = {"n": len(places), "mean": _mean([found.overlaps[at][name] for at in places], groups, ends)}
    return made


def _most(name: str) -> float | None:
    """That an overlap, or another figure of a row, can be; None where there is no end to it."""
    return OVERLAPS[name].most if name in OVERLAPS else 1.0


def _mean(values: Sequence[float], groups: Sequence[str], ends: tuple[float, float] | None) -> dict[str, float | None]:
    """Without bounds where there is one group alone."""
    if len(set(groups)) < LEAST_GROUPS:
        return {"value": sum(values) / len(values), "low": None, "high": None}
    interval = bootstrap_mean(values, groups)
    return _bounds(interval if ends is None else unlike(interval, len(set(groups)), ends))


def _bounds(interval: Interval) -> dict[str, float | None]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def interval_of(mean: Mapping[str, float | None]) -> Interval | None:
    """The interval that a summary holds; None where it has no bounds."""
    if mean["value"] is None or mean["low"] is None or mean["high"] is None:
        return None
    return Interval(mean["value"], mean["low"], mean["high"], 0.95)


# -- two sets ----------------------------------------------------------------------------------------------


def differences(before: Evaluated, after: Evaluated) -> dict[str, dict[str, Any]]:
    """Of every measure and overlap that both have, after minus before on the rows that both have by id.

    With the rows' number, the interval, the smallest difference that so many would show, and, of what is right or
    wrong (exact_match, choices), McNemar's p.
    """
    places = [{row.id: at for at, row in enumerate(one.rows)} for one in (before, after)]
    shared = [id for id in places[0] if id in places[1]]
    found = {}
    for name in [*before.judged, *dict.fromkeys(name for one in before.overlaps for name in one)]:
        values = [(_value(before, name, places[0][id]), _value(after, name, places[1][id]), id) for id in shared]
        pairs = [(one, other, id) for one, other, id in values if one is not None and other is not None]
        groups = [row.group for *_, id in pairs if isinstance(row := before.rows[places[0][id]], Row)]
        if len(set(groups)) < LEAST_GROUPS:
            continue
        interval = bootstrap_difference(
            [(one, 1.0) for one, _, _ in pairs], [(other, 1.0) for _, other, _ in pairs], groups
        )
        span = _span(before, name)
        if span is not None and all(one == other for one, other, _ in pairs):  # nothing has changed
            interval = unlike(interval, len(set(groups)), (-span, span))
        found[name] = {"n": len(pairs), **_bounds(interval), "smallest": smallest_difference(interval)}
        if name == "exact_match" or name.startswith("choice_"):
            found[name]["p"] = mcnemar([one == 1 for one, _, _ in pairs], [other == 1 for _, other, _ in pairs])
    return found


def _span(found: Evaluated, name: str) -> float | None:
    """From the lowest to the highest value that a row can have."""
    if name not in found.judged:
        return _most(name)
    return next((len(one.distribution) - 1.0 for one in found.judged[name] if isinstance(one, Judged)), None)


def _value(found: Evaluated, name: str, at: int) -> float | None:
    if name in found.judged:
        one = found.judged[name][at]
        return one.expectation if isinstance(one, Judged) else None
    return found.overlaps[at].get(name)


# -- row by row --------------------------------------------------------------------------------------------


def rows_of(found: Evaluated) -> list[dict[str, Any]]:
    """One object a row, as rows.jsonl has it."""
    made = []
    for at, row in enumerate(found.rows):
        one: dict[str, Any] = {"id": row.id, "place": row.place}
        if isinstance(row, Row):
            texts = {name: getattr(row, name) for name in ("question", "context", "truth", "answer")}
            one |= {"group": row.group, "language": row.language, **{k: v for k, v in texts.items() if v is not None}}
        one["measures"] = {name: _told(judged[at]) for name, judged in found.judged.items()}
        one["overlaps"] = dict(found.overlaps[at])
        made.append(one)
    return made


def _told(one: Judged | Failed) -> dict[str, Any]:
    return {"failed": one.reason} if isinstance(one, Failed) else asdict(one)
