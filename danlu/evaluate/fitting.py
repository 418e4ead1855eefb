"""Figures of rows and people's ratings -> a prediction with its distribution. Ridge and isotonic regression, in numpy.

Each figure is taken by its rank among the rows that were learnt from, and so are the ratings: people's ratings crowd at
one end of the scale and figures have long tails, so that a fit to the numbers themselves loses to the best single
figure by rank. A weighted sum of the ranks (ridge: Hoerl & Kennard 1970) puts rows in order. For each score of the
scale a curve that only rises (isotonic: Barlow et al. 1972) says with which probability people give that score or more;
the curves' differences are the distribution. What is learnt of doubt comes from rows that the fit has not seen: folds
hold whole groups. Knows no rows and no judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from danlu.errors import DataError
from danlu.evaluate.bootstrap import Floats
from danlu.evaluate.correlation import correlation
from danlu.evaluate.scale import LEVEL
from danlu.evaluate.significance import conformal_quantile

FOLDS = 5
LEAST_ROWS = 30
PENALTIES = (1.0, 10.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
_KNOTS = 64  # values of a figure whose rank is kept; between them it is straight
_TILT = 0.25  # of what is left to 0 or 1, how far a curve goes on beyond its outermost steps: no two sums are alike
_LEAST_DEVIATION = 0.1  # of a distribution, where its width is what an error is measured by
_OWN = 2.0  # rows of the whole sample that each step of a curve is mixed with, so that nothing is certain

Curve = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Fit:
    """What was learnt of one language.

    Attributes:
        names: of the figures.
        ranks: of each, values and their ranks, -0.5 to 0.5, among the rows that were learnt from.
        weights: of each, by its rank.
        curves: for each score but the lowest, places on the weighted sum and the probability of that score or more.
        low: the lowest score.
        error: in standard deviations of the distribution, what `LEVEL` of unseen rows were off by at most.
        rows: learnt from.
    """

    names: tuple[str, ...]
    ranks: tuple[Curve, ...]
    weights: tuple[float, ...]
    curves: tuple[Curve, ...]
    low: int
    error: float
    rows: int

    def sums(self, figures: Floats) -> Floats:
        """(rows,) of (rows, figures)."""
        return np.asarray(_ranked(figures, self.ranks) @ np.array(self.weights))

    def distributions(self, figures: Floats) -> Floats:
        """(rows, scores): they sum to one."""
        return _distributions(self.curves, self.sums(figures))

    def interval(self, distribution: Floats) -> tuple[float, float]:
        """Around the mean of a distribution, within the scale."""
        return interval_of(distribution, self.low, self.error)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fit:
        lists = {name: tuple(value[name]) for name in ("names", "weights")}
        curves = {name: tuple((tuple(xs), tuple(ys)) for xs, ys in value[name]) for name in ("ranks", "curves")}
        return cls(**{**value, **lists, **curves})


@dataclass(frozen=True)
class Unseen:
    """What folds predicted of rows that they had not learnt from, in the order of the rows.

    Attributes:
        distributions: (rows, scores).
    """

    distributions: Floats
    intervals: list[tuple[float, float]]


def fit(
    figures: Floats, ratings: Sequence[float], groups: Sequence[str], names: Sequence[str], scale: tuple[int, int]
) -> tuple[Fit, Unseen]:
    """Learn from rated rows: figures (rows, figures). Raises DataError for too few rows or groups, or equal ratings."""
    rated = np.asarray(ratings, dtype=np.float64)
    if len(rated) < LEAST_ROWS or len(set(groups)) < FOLDS or np.ptp(rated) == 0:
        raise DataError(
            f"{len(rated)} rated rows in {len(set(groups))} groups, with {len(set(rated.tolist()))} different ratings",
            allowed=f"{LEAST_ROWS} rows in {FOLDS} groups, and ratings that differ; a few hundred are better",
        )
    folds = _folds(groups)
    penalty = max(PENALTIES, key=lambda size: _order(figures, rated, folds, size))
    sums = _unseen_sums(figures, rated, folds, penalty)
    shares = np.zeros((len(rated), scale[1] - scale[0] + 1))
    for fold in range(FOLDS):
        others = folds != fold
        shares[~others] = _distributions(_curves(sums[others], rated[others], scale), sums[~others])
    off = errors_of(shares, rated, scale[0])
    ranks, weights = _ridge(figures, rated, penalty)
    made = Fit(
        tuple(names), ranks, tuple(weights.tolist()), _curves(sums, rated, scale), scale[0],
        conformal_quantile(off.tolist(), LEVEL), len(rated),
    )  # fmt: skip
    bounds = [made_without.interval(one) for made_without, one in _bounded(made, off, folds, shares)]
    return made, Unseen(shares, bounds)


def _bounded(made: Fit, off: Floats, folds: Floats, shares: Floats) -> list[tuple[Fit, Floats]]:
    """Each row's distribution, with the error that rows of other folds were off by."""
    errors = [conformal_quantile(off[folds != fold].tolist(), LEVEL) for fold in range(FOLDS)]
    fits = [Fit(**{**vars(made), "error": error}) for error in errors]
    return [(fits[int(fold)], one) for fold, one in zip(folds, shares, strict=True)]


def _folds(groups: Sequence[str]) -> Floats:
    """A fold of each row: whole groups, dealt in turn by their size."""
    names, counts = np.unique(np.asarray(groups, dtype=str), return_counts=True)
    sizes, home = [0] * FOLDS, {}
    for at in np.argsort(-counts, kind="stable"):
        fold = sizes.index(min(sizes))
        home[str(names[at])] = fold
        sizes[fold] += int(counts[at])
    return np.array([home[group] for group in groups], dtype=np.float64)


def _ridge(figures: Floats, rated: Floats, penalty: float) -> tuple[tuple[Curve, ...], Floats]:
    """What ranks figures, and their weights; ranks have mean zero, so there is no constant."""
    ranks = tuple(_ranks(column) for column in figures.T)
    ranked = _ranked(figures, ranks)
    inner = ranked.T @ ranked + penalty / 12 * np.eye(figures.shape[1])  # 1/12: the variance of even ranks
    wanted = _ranked(rated[:, None], (_ranks(rated),))[:, 0]
    return ranks, np.asarray(np.linalg.solve(inner, ranked.T @ wanted), dtype=np.float64)


def _ranks(values: Floats) -> Curve:
    """Different values, `_KNOTS` of them at most, and the mean rank of each, -0.5 to 0.5."""
    places, counts = np.unique(values, return_counts=True)
    heights = (np.cumsum(counts) - counts / 2) / len(values) - 0.5
    if len(places) > _KNOTS:
        marks = np.searchsorted(heights, np.linspace(heights[0], heights[-1], _KNOTS))
        kept = np.unique(np.clip(marks, 0, len(places) - 1))
        places, heights = places[kept], heights[kept]
    return tuple(places.tolist()), tuple(heights.tolist())


def _ranked(figures: Floats, ranks: Sequence[Curve]) -> Floats:
    columns = [np.interp(column, *curve) for column, curve in zip(figures.T, ranks, strict=True)]
    return np.stack(columns, axis=1)


def _unseen_sums(figures: Floats, rated: Floats, folds: Floats, penalty: float) -> Floats:
    sums = np.zeros(len(rated))
    for fold in range(FOLDS):
        others = folds != fold
        ranks, weights = _ridge(figures[others], rated[others], penalty)
        sums[~others] = _ranked(figures[~others], ranks) @ weights
    return sums


def _order(figures: Floats, rated: Floats, folds: Floats, penalty: float) -> float:
    """How well a fit of this penalty puts unseen rows in order; their scale is the curves' business."""
    sums = _unseen_sums(figures, rated, folds, penalty)
    return correlation("spearman", sums.tolist(), rated.tolist()) if np.ptp(sums) > 0 else 0.0


def _curves(sums: Floats, rated: Floats, scale: tuple[int, int]) -> tuple[Curve, ...]:
    rounded = np.floor(rated + 0.5)
    reached = [(rounded >= score).astype(np.float64) for score in range(scale[0] + 1, scale[1] + 1)]
    return tuple(_tilted(isotonic(sums, heights), float(sums.min()), float(sums.max())) for heights in reached)


def _tilted(curve: Curve, low: float, high: float) -> Curve:
    """The curve with ends of its own, so that it rises there too and rows keep their order."""
    places, heights = curve
    ends = (1 - _TILT) * heights[0], heights[-1] + _TILT * (1 - heights[-1])
    before, after = min(low, places[0]) - 1e-9, max(high, places[-1]) + 1e-9
    return (before, *places, after), (ends[0], *heights, ends[1])


def isotonic(places: Floats, heights: Floats) -> Curve:
    """The rising steps nearest to the points (pool adjacent violators), each at its mean place; straight between."""
    order = np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # (sum of places, sum of heights, points)
    for place, height in zip(places[order].tolist(), heights[order].tolist(), strict=True):
        blocks.append([place, height, 1.0])
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]:
            last = blocks.pop()
            blocks[-1] = [one + other for one, other in zip(blocks[-1], last, strict=True)]
    whole = float(heights.mean())
    xs = tuple(block[0] / block[2] for block in blocks)
    ys = tuple((block[1] + _OWN * whole) / (block[2] + _OWN) for block in blocks)
    return xs, tuple(np.maximum.accumulate(ys).tolist())


def _distributions(curves: Sequence[Curve], sums: Floats) -> Floats:
    reached = np.stack([np.interp(sums, *curve) for curve in curves], axis=1)  # P(score or more)
    reached = np.minimum.accumulate(reached, axis=1)  # a higher score is no likelier to be reached
    ends = np.concatenate([np.ones((len(sums), 1)), reached, np.zeros((len(sums), 1))], axis=1)
    return np.asarray(ends[:, :-1] - ends[:, 1:])


def _moments(shares: Floats, low: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each distribution."""
    scores = low + np.arange(shares.shape[1])
    means = shares @ scores
    deviations = np.sqrt(np.maximum((shares * (scores[None] - means[:, None]) ** 2).sum(axis=1), 0))
    return means, np.maximum(deviations, _LEAST_DEVIATION)


def errors_of(distributions: Floats, ratings: Floats, low: int) -> Floats:
    """(rows,): how far ratings are from the means of distributions (rows, scores), in their deviations."""
    means, deviations = _moments(distributions, low)
    return np.abs(ratings - means) / deviations


def error_of(distributions: Floats, ratings: Sequence[float], low: int) -> float:
    """What `LEVEL` of rows that were not fitted to are off by at most."""
    return conformal_quantile(errors_of(distributions, np.asarray(ratings, dtype=np.float64), low).tolist(), LEVEL)


def interval_of(distribution: Floats, low: int, error: float) -> tuple[float, float]:
    """`error` deviations around the mean of a distribution (scores,), within the scale."""
    (mean,), (deviation,) = _moments(distribution[None], low)
    reach, top = error * deviation, low + len(distribution) - 1
    return max(float(low), float(mean - reach)), min(float(top), float(mean + reach))


def checked_figures(rows: Sequence[Mapping[str, float]]) -> tuple[list[str], Floats]:
    """The figures that all rows have, and a table of them (rows, figures). Raises DataError for none."""
    shared = set.intersection(*(set(row) for row in rows)) if rows else set()
    names = sorted(name for name in shared if all(math.isfinite(row[name]) for row in rows))
    if not names:
        raise DataError(f"{len(rows)} rows have no figure in common", fix="give rows with the same texts")
    return names, np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
