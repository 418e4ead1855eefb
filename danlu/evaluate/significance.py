"""Whether a difference is one: McNemar's test, the smallest difference that so many rows show, and what doubt is worth.

Plain numbers; the bootstrap is in bootstrap.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np

from danlu.errors import DataError
from danlu.evaluate.bootstrap import Interval

# Chance of seeing a difference that is there.
POWER = 0.8


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact p of as many changes one way and the other, over the same rows (McNemar 1947; binomial).

    1 where nothing changed.
    """
    assert len(before) == len(after), "the same rows"
    better = sum(not one and other for one, other in zip(before, after, strict=True))
    worse = sum(one and not other for one, other in zip(before, after, strict=True))
    changed, fewer = better + worse, min(better, worse)
    if changed == 0:
        return 1.0
    tail: int = sum(math.comb(changed, count) for count in range(fewer + 1))
    return min(1.0, float(Fraction(2 * tail, 2**changed)))


def smallest_difference(interval: Interval, power: float = POWER) -> float:
    """The smallest true difference that rows such as these would show with this power, at the interval's level.

    By the interval's own width, so paired rows and groups count as they do there: (z of the level + z of the power)
    standard errors (Card et al. 2020, "With little power comes great responsibility", section 3).
    """
    sides = NormalDist().inv_cdf((1 + interval.level) / 2)
    error = (interval.high - interval.low) / (2 * sides)
    return (sides + NormalDist().inv_cdf(power)) * error


def conformal_quantile(scores: Sequence[float], level: float) -> float:
    """The size of error that a new row stays below with probability `level` (Vovk et al. 2005; Angelopoulos & Bates
    2023, arXiv:2107.07511, section 1): the ceil((n + 1) level)-th smallest of rows that were not fitted to.

    The largest there is where so few rows cannot promise that much. Raises DataError for none.
    """
    ordered = sorted(scores)
    if not ordered or not math.isfinite(ordered[-1]):
        raise DataError(f"{len(ordered)} errors to take a quantile of", allowed="at least one, all of them finite")
    return ordered[min(len(ordered), math.ceil((len(ordered) + 1) * level)) - 1]


def calibration_error(confidences: Sequence[float], hits: Sequence[bool], bins: int = 10) -> float:
    """How far confidence is from the share of hits, in the mean over bins of as many rows each (Naeini et al. 2015;
    equal mass: Nguyen & O'Connor 2015). Raises DataError for none."""
    if not confidences or len(confidences) != len(hits):
        raise DataError(f"{len(confidences)} confidences and {len(hits)} outcomes", allowed="one each a row")
    order = np.argsort(np.asarray(confidences, dtype=np.float64), kind="stable")
    sure, right = (np.asarray(values, dtype=np.float64)[order] for values in (confidences, hits))
    parts = np.array_split(np.arange(len(sure)), min(bins, len(sure)))
    return float(sum(len(part) * abs(sure[part].mean() - right[part].mean()) for part in parts) / len(sure))


def coverage(intervals: Sequence[tuple[float, float]], values: Sequence[float]) -> float:
    """Share of values that lie in their interval."""
    inside = [low <= value <= high for (low, high), value in zip(intervals, values, strict=True)]
    return sum(inside) / len(inside) if inside else 0.0
