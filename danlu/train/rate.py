"""`learning_rate: auto`: the advised rate, moved to where short forks of the run learn most.

From the advised rate the search goes up and down a ladder of threes. Each rung is a fork (trials.py) with a whole small
schedule of its own, warmup and fall included, measured on held-out examples; a direction is left as soon as a rung is
worse than the one before, and the two best are run again, twice as long. What is taken lies between rungs, at the
lowest point of a parabola through them, so that two that differ by chance alone do not move it by a factor of three. A
test with a rising rate bounds the ladder from above, and only that: where a loss falls fastest is no good rate for
transformers.

A short fork likes a higher rate than a long run: the best one falls with the length of a run as its power HORIZON
(Bjorck et al. 2024, arXiv:2409.19913), and the choice is moved by that. An adapter's falls by less: of four settings of
`make bench-rate` a fork's best and a run's lay apart as the half of that power says. A run too short for a search takes
the advised rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from danlu.train.learner import Learner, State
from danlu.train.trials import Trials

COST = 0.1  # of the run's steps, at most
RUNG = 3.0  # between two rates of the ladder
LOWEST, HIGHEST = 1e-6, 1.0
SHORTEST = 4  # steps of a fork
FORKS = 7  # shortest ones, that a search is paid with
RISING = 6  # steps of the bounding test
WORSE = 1.1  # times the lowest loss: where the bounding test has gone too far
HORIZON, HORIZON_OF_ADAPTERS = 0.32, 0.16


@dataclass
class Search:
    """What was tried.

    Attributes:
        rate: that was chosen.
        why: in words.
        tried: (rate, steps, held-out loss) of each fork.
        steps: that it took.
        bound: no rate from it on was tried.
    """

    rate: float
    why: str
    tried: list[tuple[float, int, float]] = field(default_factory=list)
    steps: int = 0
    bound: float = math.inf


def find_rate(
    learner: Learner[Any, Any],
    take: Callable[[int], Sequence[Any]],
    held_out: Sequence[Any],
    *,
    advised: float,
    steps: int,
    has_adapter: bool = False,
) -> Search:
    """The rate for a run of so many steps from the learner's state, to which it returns.

    Args:
        take: position -> examples of that step.
        held_out: examples that forks are measured on; with none, the advised rate stands.
        has_adapter: whether one is trained, and not the model's own weights.
    """
    short = int(COST * steps) // (FORKS + 2)
    if not held_out:
        return Search(advised, "there is nothing held out to compare rates by: the advised one")
    if short < SHORTEST:
        least = math.ceil(SHORTEST * (FORKS + 2) / COST)
        return Search(advised, f"a search costs too much in {steps} steps; it needs {least}: the advised one")
    horizon = HORIZON_OF_ADAPTERS if has_adapter else HORIZON
    return _Ladder(learner, Trials(learner, take, held_out), advised, short, steps, horizon).climb()


class _Ladder:
    """One search."""

    def __init__(
        self,
        learner: Learner[Any, Any],
        trials: Trials,
        advised: float,
        short: int,
        steps: int,
        horizon: float,
    ) -> None:
        self._learner, self._trials, self._horizon = learner, trials, horizon
        self._advised, self._short, self._steps = advised, short, steps
        self._start: State = learner.snapshot()
        self._found = Search(advised, "")
        self._losses: dict[int, float] = {}

    def climb(self) -> Search:
        found = self._found
        found.bound = self._bound()
        best = self._best_rung()
        lowest, bend = _lowest(self._losses, best)
        two = sorted(sorted(self._losses, key=lambda rung: self._losses[rung])[:2])
        if len(two) == 2 and two[1] - two[0] == 1 and self._left() >= 4 * self._short:
            low, high = (self._fork(rung, 2 * self._short) for rung in two)
            apart = (low - high) / bend if bend else 0.5 if high < low else -0.5
            lowest = sum(two) / 2 + max(-0.5, min(apart, 0.5))
        self._learner.restore(self._start, 0)
        length = max(steps for _, steps, _ in found.tried)
        shift = (length / self._steps) ** self._horizon
        found.rate = float(f"{self._rate(lowest) * shift:.2g}")
        found.why = (
            f"of {len(self._losses)} rates, about {self._rate(lowest):.2g} is best within {length} steps; "
            f"for {self._steps} steps {shift:.2g} times that"
        )
        return found

    def _best_rung(self) -> int:
        """Up from the advised rate until it is worse, and if it was at once, down."""
        self._losses[0] = self._fork(0, self._short)
        best = 0
        for way in (1, -1):
            while self._left() >= self._short and LOWEST <= self._rate(best + way) < self._found.bound:
                loss = self._losses[best + way] = self._fork(best + way, self._short)
                if not (loss < self._losses[best] or (math.isinf(loss) and way < 0)):
                    break
                best += way
            if best:
                break
        return best

    def _rate(self, rung: float) -> float:
        return self._advised * math.pow(RUNG, rung)

    def _left(self) -> int:
        return int(COST * self._steps) - self._found.steps

    def _fork(self, rung: int, count: int) -> float:
        rate = self._rate(rung)
        fork = self._trials.fork(self._start, 0, 0, [rate * _share(at, count) for at in range(count)])
        self._found.steps += count
        self._found.tried.append((rate, count, fork.loss))
        return fork.loss

    def _bound(self) -> float:
        """The rate at which the loss leaves its lowest, rising from the advised one by ten a step or so."""
        by = math.pow(HIGHEST / self._advised, 1 / (RISING - 1))
        rates = [self._advised * math.pow(by, at) for at in range(RISING)]
        fork = self._trials.fork(self._start, 0, 0, rates)
        self._found.steps += RISING
        losses = [made.gradient.loss for made in fork.steps]
        for at, loss in enumerate(losses):
            if loss > WORSE * min(losses[: at + 1]):
                return rates[at - 1]  # which has done it
        return rates[len(losses) - 1]


def _lowest(losses: Mapping[int, float], best: int) -> tuple[float, float]:
    """(where the parabola through the best rung and its two neighbours is lowest, its second difference).

    (the best rung, 0) where a neighbour was not tried, or broke.
    """
    below, above = losses.get(best - 1, math.inf), losses.get(best + 1, math.inf)
    bend = below + above - 2 * losses[best]
    if not (math.isfinite(bend) and bend > 0):
        return best, 0.0
    return best + (below - above) / (2 * bend), bend


def _share(step: int, steps: int) -> float:
    """Of the peak, in a fork: a rise of a fifth, and a line to zero, whatever the run's own shape is."""
    rise = math.ceil(steps / 5)
    return (step + 1) / (rise + 1) if step < rise else (steps - step) / (steps - rise + 1)
