"""Whether an evaluation is good enough: by the interval's bound, and never by a number that stands for a failure.

Exit 1: a measure is under its bound, or worse than an earlier run. Exit 2: rows could not be judged, so nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.errors import ConfigError, GateFailed, NotJudged
from danlu.evaluate.evaluating import Evaluated
from danlu.evaluate.summary import differences


def check_judged(summary: Mapping[str, Any], allowed: float) -> None:
    """Raise NotJudged where more than this share of rows failed, or a judge had nothing to judge."""
    failed = {name: (one["failed"], one["reasons"]) for name, one in summary["measures"].items()}
    failed["rows"] = (summary["faulty"], summary["reasons"])
    for name, (number, reasons) in failed.items():
        if number > allowed * summary["rows"]:
            why, count = next(iter(reasons.items()), ("", 0))
            raise NotJudged(
                f"{name}: {number} of {summary['rows']} rows could not be judged; of {count}: {why}",
                allowed=f"{allowed:.0%} of rows",
                fix="mend the rows, name a judge that reads such texts, or raise max_failed",
            )
    if summary.get("judge") is not None and not summary["measures"]:
        raise NotJudged(
            f"{summary['judge']} was asked nothing: no measure has its texts in the rows",
            allowed="rows with a question, a context or a truth beside the answer",
            fix="set judge=null, if counting words is enough",
        )


def check_bounds(bounds: Mapping[str, float], names: Mapping[str, Any]) -> None:
    """Raise ConfigError for a bound of something that is not measured."""
    for name in bounds:
        if name not in names:
            raise ConfigError(f"fail_under: {name} is not measured", allowed=", ".join(names) or "what is in measures")


def check_under(summary: Mapping[str, Any], bounds: Mapping[str, float]) -> None:
    """Raise GateFailed where the lower end of a mean's interval is under its bound."""
    figures = {**summary["overlaps"], **summary["measures"]}
    check_bounds(bounds, figures)
    faults = []
    for name, bound in bounds.items():
        mean = figures[name].get("mean")
        low = None if mean is None else mean["value"] if mean["low"] is None else mean["low"]
        if low is None or low < bound:
            shown = (
                "nothing of it was judged"
                if mean is None or low is None
                else f"{mean['value']:.4g}, as low as {low:.4g}"
            )
            faults.append(f"{name} is under {bound:g}: {shown}")
    if faults:
        raise GateFailed("\n".join(faults), allowed="the lower end of the 95 % interval at or above the bound")


def check_worse(before: Evaluated, after: Evaluated) -> None:
    """Raise GateFailed where a measure is worse than before beyond chance: its difference's upper end is under zero."""
    found = differences(before, after)
    judged = [name for name in after.judged if name in found]
    if not judged:
        raise ConfigError(
            "fail_if_worse_than: no measure and rows in common", allowed="an evaluation of the same rows, by their ids"
        )
    faults = [
        f"{name}: {found[name]['value']:+.4g}, at most {found[name]['high']:+.4g}, on {found[name]['n']} rows"
        for name in judged
        if found[name]["high"] < 0
    ]
    if faults:
        raise GateFailed("worse than before: " + "; ".join(faults), allowed="no difference that is surely under zero")
