"""Short forks of a run: what would become of it at another rate.

Each begins at the same state, learns from the same examples, and is measured on the same held-out ones, so that two
differ by their rate alone. Who calls goes back to a state afterwards; the run's random state is part of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from danlu.train.chart import Where, unit
from danlu.train.learner import Gradient, Learner, State


@dataclass(frozen=True)
class Made:
    """A step of a fork."""

    examples: Sequence[Any]
    gradient: Gradient
    rate: float
    seconds: float


@dataclass(frozen=True)
class Fork:
    """What became of one.

    Attributes:
        loss: held out, at its end; infinite where it broke.
        steps: those that it made.
        end: the state at its end; None where it broke.
    """

    loss: float
    steps: list[Made] = field(default_factory=list)
    end: State | None = None


@dataclass(frozen=True)
class Move:
    """Where the run goes on, and how it came there.

    Attributes:
        made: steps of a fork that became the run's own.
    """

    to: Where
    made: Sequence[Made] = ()


class Trials:
    """Forks of one learner.

    Args:
        take: position in the plan -> examples of that step.
        held_out: examples that every fork is measured on.
    """

    def __init__(
        self, learner: Learner[Any, Any], take: Callable[[int], Sequence[Any]], held_out: Sequence[Any]
    ) -> None:
        self._learner, self._take, self._held_out = learner, take, held_out

    def look(self) -> float:
        """The held-out loss of the weights as they are; infinite where it is no number."""
        loss, _ = self._learner.look(self._held_out)
        return loss if math.isfinite(loss) else math.inf

    def fork(self, start: State, step: int, position: int, rates: Sequence[float]) -> Fork:
        """Make a step at each of `rates` from `start`, the state after `step` steps, and look.

        Args:
            position: of the first step in the plan.
        """
        self._learner.restore(start, step)
        made: list[Made] = []
        for at, rate in enumerate(rates):
            started = time.perf_counter()
            examples = self._take(position + at)
            gradient = self._learner.gradient(examples)
            if gradient.fault:
                return Fork(math.inf, made)
            self._learner.apply(rate, step + at + 1)
            made.append(Made(examples, gradient, rate, time.perf_counter() - started))
        return Fork(self.look(), made, self._learner.snapshot())


# Of the loss: what a lower rate has to be better by at the end of a fork. It looks better by 2 % in a run that is well,
# since noise comes to rest; less is asked where the run's rate is near the highest one that it bears.
LESS_PAYS, LESS_PAYS_AT_EDGE = 0.04, 0.01
# Of the loss of who scores everything alike: what a higher rate has to be below. A rate that is far too high ends
# there at once, and a run whose first scores are wild stands above it for a while.
BELOW_CHANCE = 0.05
TENFOLD, LESS = 10.0, 0.2
BROKE_OUT = 1.5  # times the loss at the run's own rate


class Compared:
    """A run at its own rate beside factors of it, each in a fork from the same state.

    Args:
        fork: the fork at a factor.
        left: how many forks there may be beside the run's own.
        more_pays: what a higher rate has to be better by than the run's own, of its loss.
        below: only factors below it are tried.
        chance: the loss of who scores everything alike; None where there is no such thing.
        earlier: the fork at a factor from weights that were better than the run's are; None where there are none.

    Attributes:
        below: as given.
        best: the factor that helps most; 1 where none does.
        forks: factor -> its fork. Only the best one's and the run's own keep the state at their end.
        made: forks beside the run's own.
        returned: the fork from earlier weights, if that was tried; with the state at its end where it is to be kept.
    """

    def __init__(
        self,
        fork: Callable[[float], Fork],
        left: int,
        more_pays: float = 0.0,
        below: float = math.inf,
        chance: float | None = None,
        earlier: Callable[[float], Fork] | None = None,
    ) -> None:
        self._fork, self._left, self._more_pays, self.below = fork, left, more_pays, below
        self._chance, self._earlier = chance, earlier
        self.made, self.best = 0, 1.0
        self.returned: Fork | None = None
        self.forks = {1.0: fork(1.0)}

    def helps(self, factor: float) -> bool:
        """Whether it is better than all that were tried before; no more is tried than may be."""
        own, best = self.forks[1.0], self.forks[self.best]

        def is_better(fork: Fork) -> bool:
            return fork.loss < best.loss and fork.loss <= self._limit(factor)

        # A fork that broke at the run's own rate says that something is wrong with the examples.
        if self._left < 1 or factor >= self.below or not math.isfinite(own.loss):
            return False
        if factor in self.forks and not is_better(self.forks[factor]):
            return False
        fork = self._made(self._fork, factor)
        helps = is_better(fork)
        if helps and best is not own:
            self.forks[self.best] = replace(best, end=None)  # it holds as much as the run
        self.forks[factor] = fork if helps else replace(fork, end=None)
        if helps:
            self.best = factor
        return helps

    def goes_back(self, factor: float) -> bool:
        """Whether less is better from the earlier weights on than the run at its own rate from where it is."""
        own = self.forks[1.0]
        if self._earlier is None or self._left < 1 or not math.isfinite(own.loss):
            return False
        fork = self._made(self._earlier, factor)
        helps = fork.loss <= own.loss - LESS_PAYS * unit(own.loss, self._chance)
        self.returned = fork if helps else replace(fork, end=None)
        return helps

    def _made(self, fork: Callable[[float], Fork], factor: float) -> Fork:
        self._left, self.made = self._left - 1, self.made + 1
        return fork(factor)

    def _limit(self, factor: float) -> float:
        """The loss that it has to reach; each lower rate looks better than the last by itself."""
        own = self.forks[1.0].loss
        whole = unit(own, self._chance)
        if factor > 1:
            is_second_try = TENFOLD in self.forks and self.best == 1.0  # ten times as much did not help
            highest = math.inf if self._chance is None else (1 - BELOW_CHANCE) * self._chance
            return min(own - self._more_pays * (2 if is_second_try else 1) * whole, highest)
        return self.forks[self.best].loss - (LESS_PAYS_AT_EDGE if self.is_at_edge else LESS_PAYS) * whole

    @property
    def is_at_edge(self) -> bool:
        """Whether a higher rate broke out: the run's own is near the highest that it bears."""
        own = self.forks[1.0].loss
        return any(fork.loss > BROKE_OUT * own for factor, fork in self.forks.items() if factor > 1)

    def climb(self) -> bool:
        """Ten times as much, as long as it helps; and at last what lies between that and what does not."""
        factor = TENFOLD
        while self.helps(factor):
            factor *= TENFOLD
        if self.best == 1.0:
            return False
        self.helps(self.best * math.sqrt(TENFOLD))
        return True


Order = Callable[[Compared], bool]


def up(tried: Compared) -> bool:
    """More, by tens or fives; below a rate that was left, halfway to it."""
    return tried.climb() or tried.helps(5.0) or (tried.below <= 10 and tried.helps(math.sqrt(tried.below)))


def down(tried: Compared) -> bool:
    """Less, by fives, as long as it helps."""
    factor = LESS
    while tried.helps(factor):
        factor /= 5
    return tried.best < 1


def up_or_down(tried: Compared) -> bool:
    """More, and where that does not help, less."""
    return up(tried) or down(tried)


def down_or_up(tried: Compared) -> bool:
    """Less, and where that does not help, more."""
    return down(tried) or up(tried)


def calmed(tried: Compared) -> bool:
    """Back to where it was better; else `down_or_up`; where more breaks out less again, of which less is asked then."""
    if tried.goes_back(LESS) or down_or_up(tried):
        return True
    return tried.is_at_edge and down(tried)


def spread(examples: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly over all."""
    count = min(len(examples), most)
    return [examples[at * len(examples) // count] for at in range(count)]
