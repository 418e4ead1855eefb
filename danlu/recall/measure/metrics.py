"""How good ranked answers are, when it is known what was right. Over all candidates, never over a sample of them.

Of sampled metrics one model had 0.048 over all and 0.459 beside 99 others; they order models wrongly (Krichene & Rendle
2020, KDD). Ranks begin at 1. A question without anything right is left out of every mean, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.rows.bits import Array


@dataclass(frozen=True)
class Quality:
    """Means over the questions that have something right.

    Attributes:
        recall: share of what is right that is among the first k.
        precision: share of the first k that is right; fewer answers than k are no better for it.
        ndcg: gains 1 / log2(rank + 1) of what is right, over those of the best order (Järvelin & Kekäläinen 2002).
        hit_rate: share of questions with anything right among the first k.
        mrr: 1 over the rank of the first that is right, 0 beyond k.
        coverage: share of all candidates that are ever among the first k.
        answered: share of questions with k answers, or with all that could be given.
    """

    recall: float
    precision: float
    ndcg: float
    hit_rate: float
    mrr: float
    coverage: float
    answered: float

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]


@dataclass(frozen=True, eq=False)
class Judged:
    """Answers beside what is right.

    Attributes:
        right: bool (questions, most), whether the answer at this rank is right. there: whether there is one.
        relevant: int64 a question, how many are right.
        candidates: how many there are to choose from.
        used: bool (questions,), those with anything right.
    """

    right: Array
    there: Array
    columns: Array
    relevant: Array
    candidates: int

    @classmethod
    def of(cls, columns: Array, counts: Array, relevant: Matrix) -> Judged:
        """Args:
        columns: (questions, most), the answers, the best first. counts: how many of them there are.
        relevant: what is right for each question.
        """
        there = np.arange(columns.shape[1]) < counts[:, None]
        width = np.int64(relevant.width + 1)
        asked = np.arange(len(columns))[:, None] * width
        known = np.unique(relevant.rows.astype(np.int64) * width + relevant.columns)
        right = there & np.isin(asked + np.maximum(columns, 0), known)
        twice = there & _again(np.where(there, columns, -1))
        return cls(right & ~twice, there, columns, np.bincount(known // width, minlength=len(columns)), relevant.width)

    @property
    def used(self) -> Array:
        found: Array = self.relevant > 0
        return found

    def at(self, k: int) -> Quality:
        """Raises nothing for a k beyond the answers that were asked for: what is not there is not right."""
        used, right = self.used, self.right[:, :k][self.used]
        relevant, there = self.relevant[used], self.there[:, :k]
        hits, gains = right.sum(axis=1), 1 / np.log2(np.arange(2, right.shape[1] + 2))
        best = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])[np.minimum(relevant, k)]
        first = np.where(right.any(axis=1), right.argmax(axis=1) + 1.0, np.inf)
        met = np.unique(self.columns[:, :k][there])
        could = min(k, self.candidates)
        return Quality(
            recall=_mean(hits / np.maximum(relevant, 1)),
            precision=_mean(hits / k),
            ndcg=_mean((right @ gains) / np.maximum(best, 1e-300)),
            hit_rate=_mean(hits > 0),
            mrr=_mean(1 / first),
            coverage=len(met) / self.candidates if self.candidates else 0.0,
            answered=_mean(there[used].sum(axis=1) >= could),
        )

    def recalls(self, most: int) -> list[float]:
        """recall at 1, 2, … most."""
        right = self.right[self.used][:, :most]
        shares = np.cumsum(right, axis=1) / np.maximum(self.relevant[self.used], 1)[:, None]
        return [float(one) for one in shares.mean(axis=0)] if len(shares) else []


def unique_contributions(judged: Mapping[str, Judged], k: int) -> dict[str, float]:
    """Of each channel, the share of all that is right which it alone has among its first k."""
    owners: dict[tuple[int, int], list[str]] = {}
    total = 0
    for name, one in judged.items():
        total = int(one.relevant.sum())
        rows, places = np.nonzero(one.right[:, :k])
        for row, column in zip(rows.tolist(), one.columns[rows, places].tolist(), strict=True):
            owners.setdefault((row, column), []).append(name)
    alone = [names[0] for names in owners.values() if len(names) == 1]
    return {name: alone.count(name) / total if total else 0.0 for name in judged}


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one question asked alone."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        return cls(*(1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99)))


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0


def _again(columns: Array) -> Array:
    """Whether an answer stands before in its row: it counts once."""
    order = np.argsort(columns, axis=1, kind="stable")
    ordered = np.take_along_axis(columns, order, axis=1)
    again = np.zeros(columns.shape, np.bool_)
    same = np.zeros(columns.shape, np.bool_)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    np.put_along_axis(again, order, same, axis=1)
    return again
