"""Looks after a run while it goes: a symptom, what it says, and what helps.

The rules are those of practice: a loss that explodes wants a tenth of the rate, from the last good weights on; one that
falls too slowly at the start wants five or ten times as much; one that is flat or swings later is at a local minimum,
where less helps, or at a saddle, where more does; one that rises on held-out examples while it falls in training has
learnt enough. None of it is believed before it is measured: a rate is changed when short forks of the run
(trials.py), on the same examples, say that it pays, and not by a little. A run that needs nothing goes on bit for bit
as if nobody had looked.

What a run shows, the chart says (chart.py). Each finding is an event with its figures. `observe` says what it sees
in what the run measures anyway, and costs nothing; `act` looks for itself, and does what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from danlu.errors import TrainingError
from danlu.journal import Journal
from danlu.train.chart import Chart, Look, Where, risen
from danlu.train.learner import Gradient, Learner
from danlu.train.precision import OTHER_FORMATS
from danlu.train.trials import LESS, Compared, Fork, Move, Order, Trials, calmed, down_or_up, spread, up_or_down

Mode = Literal["off", "observe", "act"]

LOOKS = 20  # a run at most, of as many held-out examples as a step has, three steps apart: a ninth of its time
MORE_PAYS = (
    0.005  # of the loss: what a higher rate has to be better by at the end of a fork; its use lies further ahead
)
SPENT = 0.5  # of the run's steps at most: those of trials, and those taken back


# Symptom -> what it means that a lower rate helps, and a higher one; elsewhere it is a local minimum, or a saddle.
_MEANING = {
    "slow start": ("it was too high", "it was too low"),
    "came back": ("a tenth was not enough", "the rate was not to blame"),
}


class Doctor:
    """One run's.

    Args:
        take: position in the plan -> examples of that step.
        held_out: examples to look at; with none, only losses and gradients of training are seen.
        steps: of the plan.
        rate: position -> rate as planned.
        warmup: steps in which the planned rate rises.
        is_fresh: whether the weights began at random.
        most_examples: of a look.
    """

    def __init__(
        self,
        mode: Mode,
        learner: Learner[Any, Any],
        take: Callable[[int], Sequence[Any]],
        held_out: Sequence[Any],
        *,
        steps: int,
        rate: Callable[[int], float],
        warmup: int,
        is_fresh: bool,
        most_examples: int,
        journal: Journal,
    ) -> None:
        self._mode, self._learner, self._planned = mode, learner, rate
        self._steps, self._warmup, self._is_fresh, self._journal = steps, warmup, is_fresh, journal
        self._held_out = spread(held_out, most_examples) if mode == "act" else []
        self._trials = Trials(learner, take, self._held_out)
        self._interval = max(3, steps // LOOKS)
        self._short = min(12, max(4, steps // LOOKS))  # steps of a fork
        self._chart = Chart(chance=learner.stage.chance)
        self._best: tuple[Where, dict[str, Tensor]] | None = None

    # -- what the loop asks ---------------------------------------------------------------------------

    def rate(self, position: int) -> float:
        """Of the step at that position."""
        return self._planned(position) * self._chart.factor * self._chart.rise(position)

    def begin(self, now: Where) -> None:
        """Look at the weights as they come."""
        if self._held_out and not self._chart.looks:
            self._look(now)

    def before(self, found: Gradient, examples: Sequence[Any], now: Where) -> Gradient | Move:
        """The gradient that may be applied, or where the run goes on instead.

        Raises TrainingError where nothing helps, or nothing may be done.
        """
        if found.fault:
            return self._on_fault(found, examples, now)
        if self._mode != "off" and self._chart.is_outlier(found):
            return self._on_outlier(found, examples, now)
        return found

    def after(self, found: Gradient, now: Where, measured: float | None = None) -> Move | None:
        """After a step; None: go on.

        Args:
            measured: the held-out loss, where the run itself has just looked.
        """
        if self._mode == "off":
            return None
        self._chart.add(now.position, found)
        if not self._learner.stage.loss_falls:
            return None
        if self._mode == "observe":
            if measured is not None and self._is_far_enough(now):
                self._judge(self._chart.note(now, measured, self._around), now)
            elif self._chart.is_suspicious():
                self._once(
                    "explosion", "the loss rises: a tenth of the rate would help", step=now.step, loss=found.loss
                )
            return None
        due = now.position % self._interval == 0 or now.position >= self._steps
        if not self._held_out or not (due or self._chart.has_come_back(now) or self._chart.is_suspicious()):
            return None
        return self._judge(self._look(now), now)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: numbers, and the best weights."""
        where, weights = self._best or (None, {})
        at = None if where is None else {"step": where.step, "position": where.position}
        weights = self._learner.master.whole(weights)
        return {"mode": self._mode, "chart": self._chart.state(), "best": at, "weights": weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._chart = Chart.of(state["chart"])
        if state["mode"] != self._mode:  # the other one looked at other examples
            self._chart.looks, self._chart.treated = [], 0
        elif state["best"] is not None:
            self._best = (Where(**state["best"]), self._learner.master.parts(state["weights"]))

    # -- what is not finite, and what stands far out ----------------------------------------------------

    def _on_fault(self, found: Gradient, examples: Sequence[Any], now: Where) -> Gradient | Move:
        figures = {"step": now.step + 1, "loss": repr(found.loss), "grad_norm": repr(found.norm)}
        figures["learning_rate"] = self.rate(now.position)
        if self._mode != "act":
            self._journal.event("nonfinite", found.fault, **figures)
            raise self._given_up(found, now)
        again = self._learner.gradient(examples)
        if not again.fault:
            self._tell("transient", f"{found.fault}; computed again it is", **figures)
            return again
        if self._held_out and not math.isfinite(self._trials.look()):
            return self._back(f"{found.fault}, and so is what the weights say of held-out examples", figures, now)
        recent = [at for at in self._chart.skipped if at > now.position - 10]
        if len(recent) >= 2:
            return self._back(f"{found.fault}, for the third time in ten steps", figures, now)
        return self._skip(f"{found.fault} on these examples alone", examples, figures, now)

    def _on_outlier(self, found: Gradient, examples: Sequence[Any], now: Where) -> Gradient | Move:
        figures = {
            "step": now.step + 1,
            "loss": found.loss,
            "grad_norm": found.norm,
            "usual_norm": self._chart.usual_norm,
        }
        if self._mode == "act" and self._held_out and len(self._chart.skipped) < max(2, self._steps // 20):
            if (move := self._explosion(self._look(now), now)) is not None:
                return move
            return self._skip("loss and gradient stand far out, on these examples alone", examples, figures, now)
        self._tell("outlier", "loss and gradient stand far out", **figures)
        return found

    def _skip(self, why: str, examples: Sequence[Any], figures: Mapping[str, Any], now: Where) -> Move:
        self._chart.skipped.append(now.position)
        places = [place for place in (getattr(example, "place", "") for example in examples) if place]
        self._tell("skipped step", f"{why}: nothing is learnt from them", **figures, places=places[:8])
        return Move(Where(now.step, now.position + 1))

    def _back(self, why: str, figures: Mapping[str, Any], now: Where) -> Move:
        """To the best weights, at a tenth of the rate; weights that began at random get a warmup first."""
        if self._best is None or self._chart.backs >= 4:
            self._tell("nonfinite", why, **figures)
            raise TrainingError(f"step {now.step + 1}: {why}; nothing helped", fix="look at the data, and at the rate")
        chart, (best, weights) = self._chart, self._best
        warm = self._is_fresh and not self._warmup and not chart.backs
        length = max(1, self._steps // 10) if warm else self._short_rise
        self._undo(now, best, 1.0 if warm else 0.1, length)
        chart.start_is_seen, chart.came_back = False, True  # a tenth may be too little, or not enough
        what = f"a warmup of {length} steps" if warm else f"a tenth of the rate, over {length} steps"
        self._tell("went back", f"{why}: back to the weights of step {best.step}, {what}", **figures)
        self._learner.begin_from(weights, now.step)
        return Move(Where(now.step, best.position))

    @property
    def _short_rise(self) -> int:
        """Steps in which the rate rises again, once the run went back."""
        return max(1, self._steps // 20)

    def _undo(self, now: Where, best: Where, factor: float, length: int) -> None:
        """What came after the best weights never was; the run goes on there, at a factor of its rate."""
        chart = self._chart
        chart.factor *= factor
        chart.ramp, chart.backs, chart.treated = (best.position, length), chart.backs + 1, best.position
        chart.spent += now.position - best.position
        chart.forget_after(best.position)

    def _given_up(self, found: Gradient, now: Where) -> TrainingError:
        tenth = self._planned(min(self._warmup, self._steps - 1)) / 10
        lower = f"try a tenth of the rate, or train.doctor=act, which finds it: train.learning_rate={tenth:g}"
        return TrainingError(
            f"step {now.step + 1}: {found.fault} (loss {found.loss}, gradient norm {found.norm}); "
            "the step was not applied",
            fix=OTHER_FORMATS if found.beyond else lower,
        )

    # -- what looks say -------------------------------------------------------------------------------

    @property
    def _around(self) -> int:
        """Losses of training that a look stands among."""
        return max(4, self._interval)

    def _look(self, now: Where) -> Look:
        look = self._chart.note(now, self._trials.look(), self._around)
        if math.isfinite(look.loss) and look.loss <= self._chart.best.loss:
            self._best = (now, self._learner.weights())
        return look

    def _is_far_enough(self, now: Where) -> bool:
        """Whether a look of the run itself is as far from the one before as the doctor's own would be."""
        looks = self._chart.looks
        return not looks or now.position >= min(looks[-1].at.position + self._interval, self._steps)

    def _judge(self, look: Look, now: Where) -> Move | None:
        if (move := self._explosion(look, now)) is not None:
            return move
        if (move := self._overfitting(now)) is not None:
            return move
        if now.position >= self._steps:
            return None
        if self._chart.has_come_back(now):
            self._chart.came_back = False
            return self._try(
                down_or_up, now, look.loss, "came back", "it came back to earlier weights", at_once=0.0, lost=0
            )
        if now.position - self._chart.treated < 3 * self._interval:
            return None
        if not self._chart.start_is_seen:
            return self._on_start(look, now)
        has_pairs = self._chart.chance is not None  # too few to tell a plateau from noise
        if 0.2 * self._steps <= now.position <= 0.8 * self._steps and not has_pairs:
            return self._on_flat(now)
        return None

    def _explosion(self, look: Look, now: Where) -> Move | None:
        if not self._chart.has_exploded(look):
            return None
        best = self._chart.best.loss
        figures = {"step": now.step, "held_out": look.loss, "best": best, "learning_rate": self.rate(now.position - 1)}
        why = "the loss explodes" if math.isfinite(look.loss) else "the weights say nothing finite any more"
        if self._mode == "act":
            return self._back(why, figures, now)
        self._once("explosion", f"{why}: a tenth of the rate would help", **figures)
        return None

    def _on_start(self, look: Look, now: Where) -> Move | None:
        """Soon after the warmup: does it learn at all?"""
        chart = self._chart
        if now.position < self._warmup + max(2, self._interval):
            return None
        if chart.has_begun(look, self._mode == "act") and chart.factor == 1.0:
            chart.start_is_seen = True
            return None
        figures = {"step": now.step, "held_out": look.loss, "loss": look.losses, "at_first": chart.first[0]}
        if self._mode != "act":
            chart.start_is_seen = True
            self._tell("slow start", "the loss hardly falls: five or ten times the rate may help", **figures)
            return None
        return self._try(
            up_or_down, now, look.loss, "slow start", "the loss falls too slowly", at_once=0.0, lost=now.position
        )

    def _overfitting(self, now: Where) -> Move | None:
        if not self._chart.overfits():
            return None
        best, last = self._chart.best, self._chart.looks[-1]
        figures = {"step": now.step, "held_out": last.loss, "best": best.loss, "of_step": best.at.step}
        figures |= {"training": last.losses, "training_then": best.losses}
        why = "the held-out loss rises while that of training falls"
        advice = "next time: a lower lora.r, more lora.lora_dropout, more train.weight_decay, more data"
        if self._mode != "act" or self._best is None:
            self._once("overfitting", f"{why}; the best was after step {best.at.step}; {advice}", **figures)
            return None
        where, weights = self._best
        self._learner.begin_from(weights, now.step)
        self._tell("stopped", f"{why}: it ends with the weights of step {where.step}; {advice}", **figures)
        return Move(Where(now.step, self._steps))

    def _on_flat(self, now: Where) -> Move | None:
        """No progress for a fifth of the run: less, or more?"""
        if not self._chart.is_flat():
            return None
        swings, loss = self._chart.swings(), self._chart.looks[-1].loss
        symptom = "swinging" if swings else "plateau"
        if self._mode != "act":
            figures = {"step": now.step, "held_out": loss, "before": self._chart.looks[-4].loss}
            self._once(
                symptom, "no progress: a fifth of the rate helps at a local minimum, five times at a saddle", **figures
            )
            return None
        words = "the loss swings" if swings else "the loss is flat"
        order = calmed if swings else up_or_down
        return self._try(order, now, loss, symptom, words, at_once=MORE_PAYS, lost=3 * self._interval)

    def _try(
        self, order: Order, now: Where, loss: float, symptom: str, words: str, *, at_once: float, lost: int
    ) -> Move | None:
        """Fork the run at factors of its rate beside its own, and go on with what helps.

        Args:
            order: which are tried.
            at_once: of the loss, what a higher rate has to gain within the fork; its use lies further ahead.
            lost: steps that taught nothing, where more helps.
        """
        chart = self._chart
        count = min(self._short, self._steps - now.position)
        chart.treated = now.position
        left = int(SPENT * self._steps - chart.spent) // count
        if left < 2:
            self._once(symptom, f"{words}; no more trials: they took {chart.spent} steps", step=now.step)
            chart.start_is_seen = True
            return None
        start = self._learner.snapshot()
        rates = [self.rate(now.position + at) for at in range(count)]
        tried = Compared(
            lambda factor: self._trials.fork(start, now.step, now.position, [rate * factor for rate in rates]),
            left,
            at_once,
            chart.ceiling / chart.factor,
            chart.chance,
            self._from_best(now, count) if symptom == "swinging" else None,
        )
        order(tried)
        chart.spent += count * tried.made  # one fork becomes the run
        trials = {f"{factor:.3g}": fork.loss for factor, fork in tried.forks.items()}
        figures = {"step": now.step, "held_out": loss, "trials": trials, "steps": count, "made": tried.made}
        if tried.returned is not None:
            figures["from_the_best"] = tried.returned.loss
            if tried.returned.end is not None:
                return self._returns(tried.returned, now, words, figures)
        if tried.best != 1.0:
            return self._changes(tried.forks[tried.best], tried.best, now, lost, symptom, words, figures)
        chart.start_is_seen = True
        chart.still += symptom == "plateau" and chart.is_still()
        if chart.still == 2:
            self._learner.restore(start, now.step)
            self._tell("stopped", f"{words}, and no other rate helps: both losses are at their minimum", **figures)
            return Move(Where(now.step, self._steps))
        self._tell("trial", f"{words}; no other rate helps: it stays", **figures)
        own = tried.forks[1.0]
        if own.end is None:  # what is wrong there is seen when it comes
            self._learner.restore(start, now.step)
            return None
        return self._follow(own, now)

    def _from_best(self, now: Where, count: int) -> Callable[[float], Fork] | None:
        """A fork of so many steps from the best weights on; None where the run is no worse, or no room is left."""
        if self._best is None or not self._chart.is_worse():
            return None
        chart, (best, weights) = self._chart, self._best
        if now.position - best.position + count > SPENT * self._steps - chart.spent:
            return None

        def fork(factor: float) -> Fork:
            self._learner.begin_from(weights, now.step)
            ramp, at = (best.position, self._short_rise), range(best.position, best.position + count)
            rates = [self._planned(position) * chart.factor * factor * risen(position, ramp) for position in at]
            return self._trials.fork(self._learner.snapshot(), now.step, best.position, rates)

        return fork

    def _returns(self, fork: Fork, now: Where, words: str, figures: Mapping[str, Any]) -> Move:
        """Go on with a fork from the best weights."""
        assert self._best is not None
        best, _ = self._best
        self._chart.ceiling = self._chart.factor
        self._undo(now, best, LESS, self._short_rise)
        what = f"back to the weights of step {best.step}, {LESS:g} times the rate is better"
        self._tell("went back", f"{words} above what it was: {what}", **figures, factor=self._chart.factor)
        return self._follow(fork, Where(now.step, best.position))

    def _follow(self, fork: Fork, now: Where) -> Move:
        """The run goes on where the fork ended."""
        to = Where(now.step + len(fork.steps), now.position + len(fork.steps))
        assert fork.end is not None
        self._learner.restore(fork.end, to.step)
        for at, made in enumerate(fork.steps, start=now.position + 1):
            self._chart.losses.append((at, made.gradient.loss, made.gradient.norm))
        self._look(to)
        return Move(to, fork.steps)

    def _changes(
        self, fork: Fork, factor: float, now: Where, lost: int, symptom: str, words: str, figures: Mapping[str, Any]
    ) -> Move:
        """Go on with the fork; where more helps, the plan gets back the steps that taught nothing."""
        chart, to = self._chart, self._follow(fork, now).to
        if factor < 1:
            chart.ceiling = chart.factor
        chart.factor *= factor
        meaning = _MEANING.get(symptom, ("a local minimum", "a saddle"))[factor > 1]
        self._tell(
            "rate changed", f"{words}; {factor:g} times the rate is better: {meaning}", **figures, factor=chart.factor
        )
        room = int(SPENT * self._steps) - chart.spent - 2 * self._short  # for one more trial
        back = max(0, min(lost, to.position, room)) if factor > 1 else 0
        chart.spent += back
        chart.shift(back)
        if self._best is not None:
            self._best = (Where(self._best[0].step, max(0, self._best[0].position - back)), self._best[1])
        to = Where(to.step, to.position - back)
        chart.treated = to.position - 2 * self._interval if factor > 1 else to.position  # more may help further
        return Move(to, fork.steps)

    def _tell(self, kind: str, reason: str, **figures: Any) -> None:
        self._journal.event(kind, reason, by="doctor", **figures)

    def _once(self, kind: str, reason: str, **figures: Any) -> None:
        if kind not in self._chart.said:
            self._chart.said.add(kind)
            self._tell(kind, reason, **figures)
