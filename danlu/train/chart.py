"""What is known of a run while it goes, in plain numbers: the last losses and gradients, looks, and what was done.

Says what they show; what is done about it is the doctor's (doctor.py). Knows no model and no optimizer. A checkpoint
keeps all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from danlu.train.learner import Gradient

FLAT = 0.01  # of the loss: less than that, over four looks, is no progress
RISEN = 0.02  # of the loss: held out, above the best
LEARNT = 0.05  # of the loss: in training, below what it was at the best
EXPLODED = 0.5  # of what was learnt, lost again
PAIRS = (
    20.0  # times chance: what is a share of the loss elsewhere; that of eight pairs varies by chance and more by itself
)
OUTLIER = 8.0  # times the median: the norm of a gradient that nothing is learnt from
REMEMBERED = 64  # steps
FIRST = 3  # of them, whose loss is that at the start
SLOW = 0.15  # of the loss at the start: who has gained that much soon after the warmup did not start too slowly


@dataclass(frozen=True)
class Where:
    """A moment of a run.

    Attributes:
        step: optimizer steps that were applied.
        position: steps of the plan that are behind it; the schedule and the data follow it.
    """

    step: int
    position: int


@dataclass
class Look:
    """A look at held-out examples.

    Attributes:
        loss: held out; infinite where it is no number.
        losses: of training, around it.
    """

    at: Where
    loss: float
    losses: float


@dataclass
class Chart:
    """One run's.

    Attributes:
        factor: of every planned rate.
        ceiling: the factor that was last left for a lower one; none from it on is tried again.
        ramp: (position where a rate begins to rise again, steps of the rise).
        first: the first losses of training.
        losses: (position, loss, norm of the gradient) of the last steps.
        treated: the position of the last trial or treatment.
        backs: times that it went back.
        skipped: positions whose examples were left out.
        spent: steps of trials, and those taken back.
        came_back: whether other rates are to be tried at the weights that it went back to.
        still: times that nothing moved and no other rate helped.
        said: kinds of findings that are told once.
        chance: the loss of who scores everything alike; None where there is no such thing.
    """

    factor: float = 1.0
    ceiling: float = math.inf
    ramp: tuple[int, int] = (0, 0)
    first: list[float] = field(default_factory=list)
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    treated: int = 0
    backs: int = 0
    skipped: list[int] = field(default_factory=list)
    spent: int = 0
    start_is_seen: bool = False
    came_back: bool = False
    still: int = 0
    said: set[str] = field(default_factory=set)
    chance: float | None = None

    def unit(self, loss: float) -> float:
        """`unit`, of this run's losses."""
        return unit(loss, self.chance)

    def rise(self, position: int) -> float:
        """Share of the rate at that position, after it went back."""
        return risen(position, self.ramp)

    def has_come_back(self, now: Where) -> bool:
        """Whether the rate has risen again, and others are to be tried."""
        return self.came_back and now.position >= sum(self.ramp)

    def add(self, position: int, found: Gradient) -> None:
        """A step that was made."""
        if len(self.first) < FIRST:
            self.first = [*self.first, found.loss]
        self.losses = [*self.losses[1 - REMEMBERED :], (position, found.loss, found.norm)]

    def note(self, now: Where, loss: float, around: int) -> Look:
        """A look, among so many of the last losses; another one at the same moment takes its place."""
        recent = [value for _, value, _ in self.losses[-around:]]
        look = Look(now, loss if math.isfinite(loss) else math.inf, median(recent) if recent else math.nan)
        if self.looks and self.looks[-1].at == now:
            self.looks.pop()
        self.looks.append(look)
        return look

    @property
    def best(self) -> Look:
        """The look with the lowest loss."""
        return min(self.looks, key=lambda one: one.loss)

    @property
    def usual_norm(self) -> float:
        """Of the last gradients."""
        return median(norm for _, _, norm in self.losses[-16:])

    def is_outlier(self, found: Gradient) -> bool:
        """Whether a gradient and its loss stand far out of the last ones."""
        if len(self.losses) < 5 or found.norm <= OUTLIER * self.usual_norm:
            return False
        losses = [loss for _, loss, _ in self.losses[-16:]]
        return found.loss > median(losses) + max(8 * deviation(losses), 0.5 * abs(median(losses)), 0.1 * self.unit(0.0))

    def is_suspicious(self) -> bool:
        """Whether the last losses stand above those before by more than these differ."""
        losses = [loss for _, loss, _ in self.losses]
        before, last = losses[-16:-2], losses[-2:]
        if len(before) < 3:
            first = max([losses[0], *(look.loss for look in self.looks[:1])])
            return losses[-1] > first + 0.5 * self.unit(first)
        return min(last) > median(before) + max(6 * deviation(before), 0.2 * self.unit(median(before)))

    def has_exploded(self, look: Look) -> bool:
        """Whether half of what was learnt is lost again, in training as well."""
        first, calm = self.looks[0].loss, min(self.looks[:-1] or self.looks, key=lambda one: one.loss)
        limit = calm.loss + max(EXPLODED * (first - calm.loss), 0.1 * self.unit(calm.loss))
        learnt_worse = not look.losses <= calm.losses  # nothing was learnt yet, or it is learnt worse
        return look.loss > limit and learnt_worse

    def overfits(self) -> bool:
        """Whether the held-out loss goes on rising while that of training falls."""
        best, last = self.best, self.looks[-1]
        since = [look.loss for look in self.looks if look.at.position > best.at.position]
        rises = (
            len(since) >= 3
            and since[-3] <= since[-2] <= since[-1]
            and since[-2] >= best.loss + RISEN * self.unit(best.loss)
        )
        return rises and last.losses < (1 - LEARNT) * best.losses

    def is_worse(self) -> bool:
        """Whether the last look is worse than the best one by more than noise."""
        return self.looks[-1].loss >= self.best.loss + RISEN * self.unit(self.best.loss)

    def has_begun(self, look: Look, has_first_look: bool) -> bool:
        """Whether something is learnt: of what is held out, and in training where a few pairs say too little of that.

        Args:
            has_first_look: whether the weights were looked at as they came.
        """
        fallen = [(self.looks[0].loss, look.loss)] if has_first_look else []
        if self.chance is not None or not has_first_look:
            fallen.append((median(self.first), look.losses))
        return any(first - last >= SLOW * abs(first) for first, last in fallen)

    def is_flat(self) -> bool:
        """Whether the last two looks are hardly better than the two before."""
        looks = [look.loss for look in self.looks[-4:]]
        if len(looks) < 4:
            return False
        older, newer = sum(looks[:2]) / 2, sum(looks[2:]) / 2
        return older - newer < FLAT * abs(older)

    def swings(self) -> bool:
        """Whether the last looks differ by more than noise."""
        looks = [look.loss for look in self.looks[-4:]]
        return max(looks) - min(looks) > 4 * FLAT * abs(looks[0])

    def is_still(self) -> bool:
        """Whether the losses of training are as flat as the held-out ones."""
        looks = self.looks[-4:]
        fallen = [(looks[0].loss, looks[-1].loss), (looks[0].losses, looks[-1].losses)]
        return all(before - after < FLAT / 4 * abs(before) for before, after in fallen)

    def forget_after(self, position: int) -> None:
        """What came later never was."""
        self.losses = [row for row in self.losses if row[0] <= position]
        self.looks = [look for look in self.looks if look.at.position <= position]
        self.skipped = [at for at in self.skipped if at < position]

    def shift(self, back: int) -> None:
        """The plan goes back by so many steps, and what is known of it goes along."""
        self.ramp = (self.ramp[0] - back, self.ramp[1])
        self.skipped = [at - back for at in self.skipped]
        self.losses = [(at - back, loss, norm) for at, loss, norm in self.losses]
        for look in self.looks:
            look.at = Where(look.at.step, look.at.position - back)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        looks = [(look.at.step, look.at.position, look.loss, look.losses) for look in self.looks]
        return {**vars(self), "looks": looks, "said": sorted(self.said)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Chart:
        """What such a state holds."""
        looks = [Look(Where(step, at), loss, losses) for step, at, loss, losses in state["looks"]]
        losses = [tuple(row) for row in state["losses"]]
        return cls(
            **{**state, "looks": looks, "losses": losses, "ramp": tuple(state["ramp"]), "said": set(state["said"])}
        )


def risen(position: int, ramp: tuple[int, int]) -> float:
    """Share of the rate at that position, of a rise that begins at ramp[0] and takes ramp[1] steps."""
    start, length = ramp
    return min(1.0, (position - start + 1) / (length + 1)) if length else 1.0


def unit(loss: float, chance: float | None) -> float:
    """What a share of a loss is a share of: itself, or what a few pairs vary by where that is more."""
    return max(abs(loss), PAIRS * (chance or 0.0))


def deviation(values: Sequence[float]) -> float:
    """The median absolute deviation, as a standard deviation of normal noise."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)
