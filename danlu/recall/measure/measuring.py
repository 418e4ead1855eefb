"""Channels -> how good and how fast each is, what it alone finds, and how good they are together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from danlu.errors import ConfigError, DataError
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.plain import Top
from danlu.recall.measure.metrics import Judged, Latency, Quality, unique_contributions
from danlu.recall.rows.bits import Array

# (questions, by their numbers; answers of each) -> answers
Ask = Callable[[Array, int], Top]
# Questions that are asked alone, for the time they take.
TIMED = 200


@dataclass(frozen=True)
class Channel:
    """What was measured of one channel.

    Attributes:
        at: k -> quality. alone: k -> share of all that is right which no other channel finds.
        recalls: recall at 1, 2, … of as many answers as were asked for.
    """

    name: str
    at: dict[int, Quality]
    alone: dict[int, float]
    recalls: list[float]
    latency: Latency


@dataclass(frozen=True)
class Measured:
    """Attributes:
    questions: those with something right, over which all means are. left_out: those without.
    """

    questions: int
    left_out: int
    candidates: int
    channels: list[Channel]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(channels: Mapping[str, Ask], relevant: Matrix, ks: tuple[int, ...] = (10,), timed: int = TIMED) -> Measured:
    """Ask every channel every question that has something right.

    Args:
        relevant: of each question the candidates that are right; its width says how many candidates there are.
        ks: how many answers are looked at. timed: questions that are asked once more alone, for the time they take.

    Raises ConfigError for a k below 1, DataError where no question has anything right.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"k {min(ks, default=None)}", allowed="1 or more")
    asked = np.flatnonzero(relevant.sizes > 0)
    if not len(asked):
        raise DataError("no question has anything right", fix="give labels, or events of users with two or more items")
    wanted, judged, latencies = relevant.taken(asked), {}, {}
    for name, ask in channels.items():
        top = ask(asked, max(ks))
        judged[name] = Judged.of(top.columns, top.counts, wanted)
        latencies[name] = Latency.of(list(_seconds(ask, asked, max(ks), timed)))
    alone = {k: unique_contributions(judged, k) for k in ks}
    found = [
        Channel(
            name,
            {k: one.at(k) for k in ks},
            {k: alone[k][name] for k in ks},
            one.recalls(max(ks)),
            latencies[name],
        )
        for name, one in judged.items()
    ]
    return Measured(len(asked), len(relevant) - len(asked), relevant.width, found)


def _seconds(ask: Ask, asked: Array, most: int, timed: int) -> list[float]:
    """Of so many questions, evenly taken from all, one after the other; what the first one makes is not counted."""
    chosen = asked[np.linspace(0, len(asked) - 1, min(timed, len(asked))).astype(np.int64)]
    ask(chosen[:1], most)
    taken = []
    for one in chosen:
        begun = perf_counter()
        ask(np.array([one]), most)
        taken.append(perf_counter() - begun)
    return taken
