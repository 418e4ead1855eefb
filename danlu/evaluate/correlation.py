"""How a judge's figures go with people's: Pearson, Spearman and Kendall's tau-b, with intervals over documents.

Where people gave one of two ratings, the area under the curve counts instead: how often the better of two rows has the
higher figure, a tie half (Hanley & McNeil 1982). Spearman is unfair there: a figure without ties reaches 0.87 at most,
and one that is the same for all good rows 1.

An interval comes from resampling whole groups (bootstrap.py); a resample is how often each row was drawn, so that all
of them are worked out at once. Pearson tells judges apart best (Gu et al. 2024, arXiv:2410.16834), and the other two do
not mind a judge's own scale. Knows numbers and groups, and no models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from danlu.errors import DataError
from danlu.evaluate.bootstrap import Floats, Interval

Name = Literal["pearson", "spearman", "kendall", "auc"]
NAMES: tuple[Name, ...] = ("pearson", "spearman", "kendall")
CHANCE = 0.5  # the area of figures that tell nothing

_DRAWS_AT_ONCE = 2_000_000  # numbers of 8 bytes
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Compared:
    """A judge beside a baseline, on the same rows.

    Attributes:
        judge, baseline: each with people, with an interval.
        difference: judge minus baseline, drawn together; above zero the judge is better.
    """

    judge: Interval
    baseline: Interval
    difference: Interval


def ranking(people: Sequence[float]) -> Name:
    """By which of all a judge is held against the baseline: by rank, or by area where people gave two ratings."""
    return "auc" if len(set(people)) == 2 else "spearman"


def correlation(name: Name, ours: Sequence[float], people: Sequence[float]) -> float:
    """One of them. Raises DataError for unequal lengths, fewer than three rows, and figures that do not differ."""
    x, y = _checked(ours, people)
    return float(_STATISTICS[name](x, y)(np.ones((1, len(x))))[0]) + _centre(name)


def correlation_interval(
    name: Name,
    ours: Sequence[float],
    people: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`correlation`, with the interval of a percentile bootstrap over groups."""
    x, y = _checked(ours, people)
    statistic = _STATISTICS[name](x, y)
    drawn = np.concatenate([statistic(weights) for weights in _drawn(_places(groups, len(x)), samples, seed)])
    centre = _centre(name)
    return _interval(float(statistic(np.ones((1, len(x))))[0]) + centre, drawn + centre, level)


def compare(
    name: Name,
    judge: Sequence[float],
    baseline: Sequence[float],
    people: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Compared:
    """Judge and baseline with people, and their paired difference.

    A baseline that goes against people (length, often) is turned round: what counts is how much it tells.
    """
    x, y = _checked(judge, people)
    base, _ = _checked(baseline, people)
    ones = np.ones((1, len(x)))
    ours, other = _STATISTICS[name](x, y), _STATISTICS[name](base, y)
    sign = -1.0 if other(ones)[0] < 0 else 1.0
    pairs = [
        np.stack([ours(weights), sign * other(weights)]) for weights in _drawn(_places(groups, len(x)), samples, seed)
    ]
    of_judge, of_baseline = np.concatenate(pairs, axis=1)
    mine, theirs, centre = float(ours(ones)[0]), sign * float(other(ones)[0]), _centre(name)
    return Compared(
        _interval(mine + centre, of_judge + centre, level),
        _interval(theirs + centre, of_baseline + centre, level),
        _interval(mine - theirs, of_judge - of_baseline, level),
    )


def _centre(name: Name) -> float:
    """What is added to a statistic, which is 0 where nothing is told."""
    return CHANCE if name == "auc" else 0.0


# -- each of them, for many resamples at once: weights (samples, rows) -> (samples,) -----------------------


def _pearson(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    return lambda weights: _weighted_pearson(weights, x[None], y[None])


def _spearman(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    def of(weights: Floats) -> Floats:
        return _weighted_pearson(weights, _ranks(x, weights), _ranks(y, weights))

    return of


def _kendall(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    def of(weights: Floats) -> Floats:
        agree, own, theirs = (np.zeros(len(weights)) for _ in range(3))
        for start in range(0, len(x), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            a, b = (np.sign(values[part, None] - values[None]).astype(np.float32) for values in (x, y))
            left, whole = weights[:, part].astype(np.float32), weights.astype(np.float32)
            agree += ((left @ (a * b)) * whole).sum(axis=1, dtype=np.float64)
            own += ((left @ np.abs(a)) * whole).sum(axis=1, dtype=np.float64)
            theirs += ((left @ np.abs(b)) * whole).sum(axis=1, dtype=np.float64)
        return _ratio(agree, np.sqrt(own * theirs))

    return of


def _area(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """Less CHANCE, so that its sign says which way the figures go; the better rows are those above the mean rating."""
    good = (y > y.mean()).astype(np.float64)

    def of(weights: Floats) -> Floats:
        better = (weights * good).sum(axis=1)
        pairs = better * (weights.sum(axis=1) - better)
        above = (weights * good * _ranks(x, weights)).sum(axis=1) - better * (better + 1) / 2
        return np.where(pairs > 0, _ratio(above, pairs) - CHANCE, 0.0)

    return of


_STATISTICS: dict[Name, Callable[[Floats, Floats], Callable[[Floats], Floats]]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "kendall": _kendall,
    "auc": _area,
}


def _weighted_pearson(weights: Floats, x: Floats, y: Floats) -> Floats:
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    both, own, theirs = ((weights * product).sum(axis=1) for product in (x * y, x * x, y * y))
    return _ratio(both, np.sqrt(own * theirs))


def _ranks(values: Floats, weights: Floats) -> Floats:
    """(samples, rows): the mean rank of each row's value where row i stands weights[i] times."""
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)  # (samples, different values)
    below = np.cumsum(counts, axis=1) - counts
    return np.asarray((below + (counts + 1) / 2)[:, places])


def _ratio(over: Floats, under: Floats) -> Floats:
    """Zero for a resample all of whose figures are the same: it shows nothing."""
    return np.divide(over, under, out=np.zeros_like(over), where=under > 1e-12)


# -- resamples ---------------------------------------------------------------------------------------------


def _checked(ours: Sequence[float], people: Sequence[float]) -> tuple[Floats, Floats]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (ours, people))
    if len(x) != len(y):
        raise DataError(f"{len(x)} figures beside {len(y)} of people", allowed="one each a row")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("a figure is not a finite number", fix="leave out rows that could not be judged; count them")
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise DataError(
            f"no correlation of {len(x)} rows with {len(set(x.tolist()))} and {len(set(y.tolist()))} different figures",
            allowed="three rows and two different figures on each side, at least",
        )
    return x, y


def _places(groups: Sequence[str] | None, count: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise DataError(f"{count} rows and {len(groups)} groups", allowed="one each a row")
    places = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    if places.max() == 0:
        raise DataError("all rows are of one group", allowed="two groups at least", fix="leave the groups out")
    return places


def _drawn(places: np.ndarray[tuple[int], np.dtype[np.intp]], samples: int, seed: int) -> Iterator[Floats]:
    """How often each row stands in each resample of groups, some resamples at a time."""
    rng, count = np.random.default_rng(seed), int(places.max()) + 1
    at_once = max(1, _DRAWS_AT_ONCE // len(places))
    for start in range(0, samples, at_once):
        size = min(at_once, samples - start)
        picks = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)
        yield times[:, places].astype(np.float64)


def _interval(value: float, drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)
