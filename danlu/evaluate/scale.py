"""What a judge gives each score -> an integer on the scale, its expectation, and how sure that is. Plain numbers.

The integer is the one nearest to the expectation: the mean of a judge's distribution agrees better with people than its
likeliest score in most comparisons (Wang et al. 2025, arXiv:2503.03064).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from danlu.errors import DataError

# Of a distribution, the part between the two ends of `Judged.interval`.
LEVEL = 0.9


@dataclass(frozen=True)
class Reading:
    """What a judge has said, before anything is made of it.

    Attributes:
        masses: probability of each score of the scale, lowest first; they need not sum to one.
        outside: probability of everything else.
        interval: of the true score, where the judge knows better than its distribution; else None.
    """

    masses: tuple[float, ...]
    outside: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Failed:
    """A row that could not be judged. It is counted, and is no number."""

    reason: str


@dataclass(frozen=True)
class Judged:
    """A judgement.

    Attributes:
        score: an integer of the scale, always.
        expectation: the mean of the distribution.
        deviation: its standard deviation.
        distribution: of each score, lowest first; they sum to one.
        interval: the lowest and highest value that the true score has with probability `LEVEL`, by the distribution;
            of a trained judge, by how far it was off on rows that it was not fitted to (conformal).
        outside: what the judge gave to anything but a score.
    """

    score: int
    expectation: float
    deviation: float
    distribution: tuple[float, ...]
    interval: tuple[float, float]
    outside: float = 0.0


def normalised(masses: Sequence[float]) -> list[float]:
    """The same with sum one. Raises DataError where nothing is there to be shared out."""
    total = math.fsum(masses)
    if not math.isfinite(total) or total <= 0 or any(mass < 0 for mass in masses):
        raise DataError(f"no distribution: {list(masses)}", allowed="numbers of zero or more, one of them above zero")
    return [mass / total for mass in masses]


def calibrated(masses: Sequence[float], prior: Sequence[float]) -> list[float]:
    """Contextual calibration: p(score) / prior(score), with sum one (Zhao et al. 2021, arXiv:2102.09690).

    Args:
        prior: the mean distribution for answers that say nothing about the row.
    """
    return normalised([mass / max(before, 1e-9) for mass, before in zip(normalised(masses), prior, strict=True)])


def judged(
    low: int, distribution: Sequence[float], outside: float = 0.0, interval: tuple[float, float] | None = None
) -> Judged:
    """A distribution over the scores from `low` on as a judgement; its interval is the distribution's if not given."""
    shares = normalised(distribution)
    mean = math.fsum((low + at) * share for at, share in enumerate(shares))
    variance = math.fsum((low + at - mean) ** 2 * share for at, share in enumerate(shares))
    own = (_quantile(low, shares, (1 - LEVEL) / 2), _quantile(low, shares, (1 + LEVEL) / 2))
    score = nearest_score(mean, low, len(shares))
    return Judged(score, mean, math.sqrt(variance), tuple(shares), interval or own, outside)


def nearest_score(value: float, low: int, count: int) -> int:
    """The integer of the scale nearest to `value`, the upper of two."""
    return min(max(math.floor(value + 0.5), low), low + count - 1)


def _quantile(low: int, shares: Sequence[float], level: float) -> float:
    total = 0.0
    for at, share in enumerate(shares):
        total += share
        if total >= level - 1e-12:
            return float(low + at)
    return float(low + len(shares) - 1)
