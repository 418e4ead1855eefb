"""Per-example figures -> a mean or a difference, and how far chance alone could move it.

Percentile bootstrap: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13. Examples that
resemble each other (functions of one module, questions on one passage) share a group, and whole groups
are drawn: Cameron, Gelbach & Miller 2008, "Bootstrap-Based Improvements for Inference with Clustered
Errors". Knows nothing of models. With few groups (about 30 or fewer) the interval comes out too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.errors import DataError

Floats = NDArray[np.float64]

# Draws held in memory at once: (samples, groups) of 8-byte numbers, so about 32 MB.
_DRAWS_AT_ONCE = 4_000_000
_ROUNDING = 1e-9  # of a sum of many figures


@dataclass(frozen=True)
class Interval:
    """A measured `value` and the range that holds the true one with confidence `level` (0 to 1)."""

    value: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a change of this size is more than chance."""
        return self.low > 0 or self.high < 0

    @property
    def is_point(self) -> bool:
        """Whether its ends are the same, but for rounding."""
        return self.high - self.low <= _ROUNDING * max(1.0, abs(self.value))


def bootstrap_difference(
    before: Sequence[tuple[float, float]],
    after: Sequence[tuple[float, float]],
    groups: Sequence[str] | None = None,
    *,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Weighted mean after minus weighted mean before, over the same examples.

    Args:
        before, after: one (sum, weight) an example, in the same order: with (loss summed over the learnt
            tokens, number of learnt tokens) the difference is in loss a token; with (score, 1) in score.
        groups: name of each example's group; None makes every example its own.
        samples: number of resamples.
        level: share of resamples inside the interval.
        seed: of the draws; the same seed gives the same interval.

    Before and after are drawn together, so what makes an example hard for both cancels out.
    Raises DataError for unequal lengths, figures that are not finite, weights below zero, and fewer
    than two groups that weigh anything.
    """
    _check_lengths(before=before, after=after, groups=groups)
    table = np.hstack([_pairs("before", before), _pairs("after", after)])  # (examples, 4)
    totals = _totals_by_group(table, groups)  # (groups, 4)
    return _interval(totals, _difference, samples, level, seed)


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of one figure an example, with its interval; arguments and errors as in bootstrap_difference."""
    _check_lengths(values=values, groups=groups)
    totals = _totals_by_group(_pairs("values", [(value, 1.0) for value in values]), groups)  # (groups, 2)
    return _interval(totals, _mean, samples, level, seed)


def unlike(interval: Interval, count: int, ends: tuple[float, float]) -> Interval:
    """The interval of `count` examples that are all the same, which says nothing by itself: so are all resamples.

    Where none of `count` differs, a share of at most 1 - (1 - level)^(1 / count) of all do, with confidence `level`
    (about 3 / count: Hanley & Lippman-Hand 1983, "If nothing goes wrong, is everything all right?"). Those could be
    at either end of the scale. Any other interval is given back as it is.

    Args:
        count: of examples, or of groups.
        ends: lowest and highest value that one can have.
    """
    if not interval.is_point:
        return interval
    share, value = 1 - (1 - interval.level) ** (1 / count), interval.value
    low, high = value - share * (value - ends[0]), value + share * (ends[1] - value)
    return Interval(value, min(value, low), max(value, high), interval.level)


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _difference(sums: Floats) -> Floats:
    return _mean(sums[..., 2:]) - _mean(sums[..., :2])


def _check_lengths(**columns: Sequence[Any] | None) -> None:
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        seen = ", ".join(f"{count} in {name}" for name, count in lengths.items())
        raise DataError(f"the examples do not line up: {seen}", allowed="one entry an example in each")


def _pairs(name: str, pairs: Sequence[tuple[float, float]]) -> Floats:
    """(sum, weight) pairs as an array (examples, 2), checked."""
    array = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    faulty = ~np.isfinite(array).all(axis=1) | (array[:, 1] < 0)
    if faulty.any():
        place = int(faulty.argmax())
        raise DataError(
            f"{name}: example {place} (counted from 0) holds {tuple(array[place].tolist())}",
            allowed="a finite sum and a weight of zero or more",
            fix="count the examples that could not be measured apart, and leave them out here",
        )
    return array


def _totals_by_group(table: Floats, groups: Sequence[str] | None) -> Floats:
    """Column sums of each group, (groups, columns); those that weigh nothing are left out."""
    if groups is not None:
        names, places = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        totals = np.zeros((len(names), table.shape[1]))
        np.add.at(totals, places, table)
    else:
        totals = table
    kept = totals[(totals[:, 1::2] > 0).all(axis=1)]
    if len(kept) < 2:
        unit = "groups" if groups is not None else "examples"
        raise DataError(
            f"{len(kept)} {unit} to compare, of {len(table)} examples",
            allowed=f"at least two {unit} that weigh more than zero; an interval means little below 30",
            fix="hold out more data, or group it more finely",
        )
    return kept


def _interval(totals: Floats, statistic: Callable[[Floats], Floats], samples: int, level: float, seed: int) -> Interval:
    assert samples >= 1, "an interval needs resamples"
    assert 0 < level < 1, "a level is a share, such as 0.95"
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // len(totals))
    sizes = [min(at_once, samples - start) for start in range(0, samples, at_once)]
    drawn = np.concatenate([statistic(_resampled(totals, size, rng)) for size in sizes])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(totals.sum(axis=0))), float(low), float(high), level)


def _resampled(totals: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """Column sums of `samples` draws of as many groups as there are, with replacement: (samples, columns)."""
    count = len(totals)
    picks = rng.integers(count, size=(samples, count)) + count * np.arange(samples)[:, None]
    times = np.bincount(picks.ravel(), minlength=samples * count).reshape(samples, count)
    return np.asarray(times @ totals)
