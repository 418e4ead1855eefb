"""Short forks of a run: what would become of it at another rate.

Each begins at the same state, learns from the same examples, and is measured on the same held-out ones, so that two
differ by their rate alone. Who calls goes back to a state afterwards; the run's random state is part of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def spread(examples: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly over all."""
    count = min(len(examples), most)
    return [examples[at * len(examples) // count] for at in range(count)]
