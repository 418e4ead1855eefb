"""Ranked rows of several channels -> one list, in which every row says which channels have found it.

Rows are fused by rank (reciprocal rank fusion, Cormack et al., SIGIR 2009) or by score (convex combination; with
weights from a few labels it beats ranks: Bruch et al., TOIS 2023). Knows nothing of columns and of how channels find.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log2

import numpy as np

from danlu.errors import ConfigError, nearest
from danlu.recall.query import Found, Fuse
from danlu.recall.rows.bits import Array

# Weights that are tried, in parts of their sum.
_STEPS = 20


@dataclass(frozen=True)
class Place:
    """Where a channel has a row: rank from 1, and the channel's own score."""

    rank: int
    score: float


@dataclass(frozen=True)
class Fused:
    """A row with its score, and channel -> its place there."""

    row: int
    score: float
    places: dict[str, Place]


def fused(lists: Mapping[str, Found], how: Fuse, top: int) -> list[Fused]:
    """The best rows, the best first; of equal ones the first row. `how` is one that passes `check`."""
    rows, scores = _added(_asked(lists, how), how)
    chosen = _with_quotas(lists, how, rows.tolist(), top) if how.quotas else rows[:top].tolist()
    places = _places(lists, set(chosen))
    score_of = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    return [Fused(row, score_of[row], places[row]) for row in chosen]


def ranks(lists: Mapping[str, Found], how: Fuse, top: int) -> tuple[Array, Array]:
    """(int64 rows, float64 scores) of `fused`, without quotas."""
    if len(lists) == 1 and not how.weights:
        (found,) = lists.values()
        return found.rows[:top], _gains(found, how)[:top]
    rows, scores = _added(_asked(lists, how), how)
    return rows[:top], scores[:top]


def places_of(lists: Mapping[str, Found], rows: Array) -> list[dict[str, Place]]:
    """Channel -> place there, of each row."""
    places = _places(lists, set(rows.tolist()))
    return [places[row] for row in rows.tolist()]


def _asked(lists: Mapping[str, Found], how: Fuse) -> dict[str, Found]:
    """Lists that count, in the order of their names."""
    return {name: found for name, found in sorted(lists.items()) if how.weights.get(name, 1.0) > 0}


def check(how: Fuse, channels: Collection[str], top: int) -> None:
    """Raises ConfigError for channels that are not asked, and for numbers that cannot be."""
    if not (how.weights or how.quotas):
        return
    for option in ("weights", "quotas"):
        for name in getattr(how, option):
            if name not in channels:
                known = ", ".join(channels) or "(none)"
                raise ConfigError(f"{option}: no channel {name!r} is asked", allowed=known, fix=nearest(name, channels))
    if any(weight < 0 for weight in how.weights.values()) or any(least < 0 for least in how.quotas.values()):
        raise ConfigError("weights and quotas below 0", allowed="0 or more")
    if sum(how.quotas.values()) > top:
        seen = f"quotas of {sum(how.quotas.values())} rows together; {top} are wanted"
        raise ConfigError(seen, fix="ask for more rows, or lower the quotas")


def _added(lists: Mapping[str, Found], how: Fuse) -> tuple[Array, Array]:
    """(rows, scores), the best first: channels are added in the order of their names."""
    gains = {name: how.weights.get(name, 1.0) * _gains(found, how) for name, found in lists.items()}
    if len(lists) == 1:
        ((name, found),) = lists.items()
        return found.rows, gains[name]
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *(found.rows for found in lists.values())]))
    scores = np.zeros(len(rows))
    for name, found in lists.items():
        scores[np.searchsorted(rows, found.rows)] += gains[name]
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


def _gains(found: Found, how: Fuse) -> Array:
    return _reciprocals(how.rrf_k, len(found.rows)) if how.fuse == "rrf" else normal(found)


@lru_cache(maxsize=64)
def _reciprocals(rrf_k: float, count: int) -> Array:
    """Of the first ranks; to be read alone."""
    made: Array = 1 / (rrf_k + np.arange(1, count + 1))
    made.flags.writeable = False
    return made


def normal(found: Found) -> Array:
    """Scores from 0, which is what no row scores less than (or the last one has), to 1, which the first one has."""
    if not len(found.scores):
        return found.scores
    least = found.scores[-1] if found.least is None else found.least
    spread = found.scores[0] - least
    return (found.scores - least) / spread if spread > 0 else np.ones(len(found.scores))


def _with_quotas(lists: Mapping[str, Found], how: Fuse, ranked: Sequence[int], top: int) -> list[int]:
    """The first rows, and those that a quota brings in; in the order in which they are ranked."""
    wanted = {row for name, least in how.quotas.items() for row in lists[name].rows[:least].tolist()}
    free = top - len(wanted)
    chosen = []
    for row in ranked:
        if row in wanted or free > 0:
            chosen.append(row)
            free -= row not in wanted
    return chosen


def _places(lists: Mapping[str, Found], wanted: set[int]) -> dict[int, dict[str, Place]]:
    made: dict[int, dict[str, Place]] = {row: {} for row in wanted}
    for name, found in lists.items():
        for at, row in enumerate(found.rows.tolist()):
            if row in wanted:
                made[row][name] = Place(at + 1, float(found.scores[at]))
    return made


# -- weights out of labels --------------------------------------------------------------------------------


def tuned(cases: Sequence[tuple[Mapping[str, Found], Collection[int]]], how: Fuse, top: int) -> Fuse:
    """Weights with which the most relevant rows are among the first `top`, and the nearest to the beginning.

    Args:
        cases: for each query what the channels have found, and the rows that are relevant.

    Each weight in turn is set to the best of 21 values until none changes; of equal ones, the nearest to the others.
    """
    names = sorted({name for lists, _ in cases for name in lists})
    weights = dict.fromkeys(names, 1 / max(len(names), 1))
    best = quality(cases, how.model_copy(update={"weights": weights}), top)
    is_better = len(names) > 1
    while is_better:
        is_better = False
        for name in names:
            for share in range(_STEPS + 1):
                tried = _with_share(weights, name, share / _STEPS)
                found = quality(cases, how.model_copy(update={"weights": tried}), top)
                if found > best:
                    best, weights, is_better = found, tried, True
    return how.model_copy(update={"weights": weights})


def _with_share(weights: Mapping[str, float], name: str, share: float) -> dict[str, float]:
    """Weights that add up to 1, one of them as given, the others as they were to each other."""
    others = sum(weight for other, weight in weights.items() if other != name)
    rest = {
        other: (1 - share) * (weight / others if others else 1 / (len(weights) - 1))
        for other, weight in weights.items()
    }
    return {**rest, name: share}


def quality(cases: Iterable[tuple[Mapping[str, Found], Collection[int]]], how: Fuse, top: int) -> tuple[float, float]:
    """(recall, nDCG) of the first `top`, averaged over the cases that have a relevant row."""
    found = [_quality([one.row for one in fused(lists, how, top)], set(rows), top) for lists, rows in cases if rows]
    if not found:
        raise ConfigError("no label: no query has a row that is relevant", fix="give ids of rows that are there")
    recall, ndcg = np.array(found).mean(0).tolist()
    return recall, ndcg


def _quality(rows: Sequence[int], relevant: set[int], top: int) -> tuple[float, float]:
    gain = sum(1 / log2(at + 2) for at, row in enumerate(rows) if row in relevant)
    most = sum(1 / log2(at + 2) for at in range(min(top, len(relevant))))
    return len(relevant.intersection(rows)) / min(top, len(relevant)), gain / most
