"""The learning rate of each step: peak x shape x what was made of it on the way.

A shape is a pure function of the step (and of the run's length), so a resumed run needs no state of it. Only
reduce_lr_on_plateau keeps some: it follows the held-out loss. Knows no optimizer and no loop.

Where transformers has a schedule of the same name, its parameters are those of `lr_scheduler_kwargs` there and its
rates are equal after warmup. While it warms up, transformers' first step has rate 0 and changes nothing; here W steps
have the rates 1/(W + 1) ... W/(W + 1) of the peak. And `constant` warms up as well; warmup_ratio=0 is transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from danlu.config import Options
from danlu.errors import ConfigError

SchedulerName = Literal[
    "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "constant", "polynomial", "inverse_sqrt", "step",
    "exponential", "reduce_lr_on_plateau", "warmup_stable_decay", "constant_with_warmup", "reduce_on_plateau",
]  # fmt: skip
# Other spellings -> the name.
_SPELT = {"constant_with_warmup": "constant", "reduce_on_plateau": "reduce_lr_on_plateau"}

PLATEAU = "reduce_lr_on_plateau"
_LR_END = 1e-7  # of polynomial, as transformers has it
_LEAST_FALL = 2  # steps: the first of a fall has the rate that it falls from, as in transformers
_LEAST_CHANGE = 1e-8  # of a rate, as torch's ReduceLROnPlateau has it


class SchedulerOptions(Options):
    """Parameters of schedules, named as transformers and torch name them. One that the schedule does not read is an
    error."""

    power: float | None = Field(None, gt=0, description="polynomial: the exponent; 1 (a line) if not given")
    lr_end: float | None = Field(None, ge=0, description="polynomial: the rate after the last step; 1e-7 if not given")
    timescale: int | None = Field(
        None, ge=1, description="inverse_sqrt: steps after which the rate has fallen by sqrt(2); the warmup, or 10,000"
    )
    num_cycles: float | None = Field(
        None,
        gt=0,
        description="cosine: waves, 0.5 (down once) if not given, also of another schedule's fall; "
        "cosine_with_restarts: falls, 1",
    )
    min_lr: float | None = Field(
        None, ge=0, description="cosine_with_min_lr, reduce_lr_on_plateau: the rate falls no lower; 0 if not given"
    )
    min_lr_rate: float | None = Field(
        None, ge=0, lt=1, description="cosine_with_min_lr: the same, as share of the peak"
    )
    step_size: int | None = Field(
        None, ge=1, description="step: epochs between two falls; 1 if not given. Within an epoch all data weigh alike"
    )
    gamma: float | None = Field(
        None, gt=0, lt=1, description="step and exponential: what a fall multiplies the rate by; 0.1 and 0.5"
    )
    num_decay_steps: int | None = Field(
        None, ge=_LEAST_FALL, description="warmup_stable_decay: the steps of the fall at the end"
    )
    decay_ratio: float | None = Field(
        None, gt=0, le=1, description="warmup_stable_decay: the same, as share of all steps; 0.1 if neither is given"
    )
    decay_type: Literal["cosine", "linear", "1-sqrt"] | None = Field(
        None, description="warmup_stable_decay: shape of the fall; cosine if not given"
    )
    min_lr_ratio: float | None = Field(
        None, ge=0, lt=1, description="warmup_stable_decay: where the fall ends, as share of the peak; 0 if not given"
    )
    factor: float | None = Field(
        None, gt=0, lt=1, description="reduce_lr_on_plateau: what a fall multiplies the rate by; 0.1 if not given"
    )
    patience: int | None = Field(
        None, ge=0, description="reduce_lr_on_plateau: looks without a better loss before the rate falls; 10"
    )
    threshold: float | None = Field(
        None, ge=0, description="reduce_lr_on_plateau: share by which a loss has to be lower to be better; 1e-4"
    )
    cooldown: int | None = Field(
        None, ge=0, description="reduce_lr_on_plateau: looks after a fall that do not count; 0 if not given"
    )


@dataclass(frozen=True)
class _Plan:
    """What a shape may depend on beside the step.

    Attributes:
        warmup: steps in which the rate rises.
        per_epoch: steps of an epoch.
        peak: the rate at the top.
    """

    steps: int
    warmup: int
    per_epoch: int
    peak: float
    given: SchedulerOptions

    def share(self, step: int) -> float:
        """How much of what comes after warmup is behind step, 0 to 1."""
        return (step - self.warmup) / max(1, self.steps - self.warmup)

    @property
    def decay(self) -> int:
        """Steps of the fall of warmup_stable_decay."""
        return self.given.num_decay_steps or max(_LEAST_FALL, math.ceil((self.given.decay_ratio or 0.1) * self.steps))


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value


def _wave(share: float) -> float:
    """Half a cosine, from 1 at 0 to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _cosine(step: int, plan: _Plan) -> float:
    return _wave(2 * _or(plan.given.num_cycles, 0.5) * plan.share(step))


def _with_restarts(step: int, plan: _Plan) -> float:
    return _wave((_or(plan.given.num_cycles, 1) * plan.share(step)) % 1.0)


def _with_min_lr(step: int, plan: _Plan) -> float:
    least = _or(plan.given.min_lr_rate, _or(plan.given.min_lr, 0.0) / plan.peak)
    return _cosine(step, plan) * (1 - least) + least


def _polynomial(step: int, plan: _Plan) -> float:
    least = _or(plan.given.lr_end, _LR_END) / plan.peak
    return float((1 - least) * (1 - plan.share(step)) ** _or(plan.given.power, 1.0) + least)


def _inverse_sqrt(step: int, plan: _Plan) -> float:
    scale = plan.given.timescale or plan.warmup or 10_000
    return 1 / math.sqrt((step - plan.warmup + scale) / scale)


def _step(step: int, plan: _Plan) -> float:
    return float(_or(plan.given.gamma, 0.1) ** (step // plan.per_epoch // (plan.given.step_size or 1)))


def _exponential(step: int, plan: _Plan) -> float:
    return float(_or(plan.given.gamma, 0.5) ** (step // plan.per_epoch))


def _stable_then_down(step: int, plan: _Plan) -> float:
    behind = (step - (plan.steps - plan.decay)) / plan.decay
    if behind <= 0:
        return 1.0
    falls: dict[str, Callable[[float], float]] = {
        "cosine": lambda share: _wave(2 * _or(plan.given.num_cycles, 0.5) * share),
        "linear": lambda share: 1 - share,
        "1-sqrt": lambda share: 1 - math.sqrt(share),
    }
    least = _or(plan.given.min_lr_ratio, 0.0)
    return falls[plan.given.decay_type or "cosine"](behind) * (1 - least) + least


# Name -> (the share of the peak at a step after warmup, the parameters that it reads).
_SHAPES: dict[str, tuple[Callable[[int, _Plan], float], tuple[str, ...]]] = {
    "linear": (lambda step, plan: 1 - plan.share(step), ()),
    "cosine": (_cosine, ("num_cycles",)),
    "cosine_with_restarts": (_with_restarts, ("num_cycles",)),
    "cosine_with_min_lr": (_with_min_lr, ("num_cycles", "min_lr", "min_lr_rate")),
    "constant": (lambda step, plan: 1.0, ()),
    "polynomial": (_polynomial, ("power", "lr_end")),
    "inverse_sqrt": (_inverse_sqrt, ("timescale",)),
    "step": (_step, ("step_size", "gamma")),
    "exponential": (_exponential, ("gamma",)),
    PLATEAU: (lambda step, plan: 1.0, ("factor", "patience", "threshold", "cooldown", "min_lr")),
    "warmup_stable_decay": (
        _stable_then_down, ("num_decay_steps", "decay_ratio", "decay_type", "min_lr_ratio", "num_cycles"),
    ),
}  # fmt: skip


Given = Annotated[float, Field(gt=0, le=10)] | Literal["auto"]


class ScheduleOptions(Options):
    """The rate, and how it changes. By default 3e-4, after 10 % warmup along a line to zero."""

    learning_rate: Given = Field(
        3e-4,
        description="peak rate; LoRA bears ten times a full tuning's. auto searches around the advised one with short "
        "forks of the run, by held-out loss, where that costs less than a tenth of it",
    )
    lr_scheduler_type: SchedulerName = Field(
        "linear",
        description="shape of the rate after warmup; linear, because a line to zero is hard to beat. step and "
        "exponential fall by epochs; reduce_lr_on_plateau where the held-out loss falls no more; the others by steps",
    )
    lr_scheduler_kwargs: SchedulerOptions | None = Field(None, description="parameters of that shape")
    warmup_ratio: float | None = Field(
        0.1, ge=0, lt=1, description="share of the steps in which the rate rises: large first steps do harm"
    )
    warmup_steps: int | None = Field(None, ge=0, description="the same, as a number of steps")

    @model_validator(mode="before")
    @classmethod
    def _steps_or_ratio(cls, given: Any) -> Any:
        """The usual ratio stands back where steps are given."""
        if isinstance(given, dict) and given.get("warmup_steps") is not None and "warmup_ratio" not in given:
            return {**given, "warmup_ratio": None}
        return given

    @field_validator("warmup_steps", mode="before")
    @classmethod
    def _no_share(cls, steps: Any) -> Any:
        if isinstance(steps, float) and 0 < steps < 1:
            raise ValueError("a share of the steps is warmup_ratio")
        return steps

    @field_validator("lr_scheduler_type")
    @classmethod
    def _schedule_by_one_name(cls, name: str) -> str:
        return _SPELT.get(name, name)

    @model_validator(mode="after")
    def _each_parameter_is_read(self) -> ScheduleOptions:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_ratio and warmup_steps are both given; leave one out, or set it to null")
        kwargs, (_, reads) = self.kwargs, _SHAPES[self.lr_scheduler_type]
        given = [name for name in type(kwargs).model_fields if getattr(kwargs, name) is not None]
        if idle := [f"lr_scheduler_kwargs.{name}" for name in given if name not in reads]:
            raise ValueError(
                f"{', '.join(idle)} has no effect with lr_scheduler_type={self.lr_scheduler_type}, which reads "
                f"{', '.join(reads) or 'none of them'}"
            )
        if "num_cycles" in given and kwargs.decay_type in ("linear", "1-sqrt"):
            raise ValueError(f"lr_scheduler_kwargs.num_cycles has no effect with decay_type={kwargs.decay_type}")
        for one, other in (("min_lr", "min_lr_rate"), ("num_decay_steps", "decay_ratio")):
            if one in given and other in given:
                raise ValueError(f"lr_scheduler_kwargs: {one} and {other} say the same; leave one out")
        for name, least in (("lr_end", _LR_END if "lr_end" in reads else 0.0), ("min_lr", 0.0)):
            if self.learning_rate != "auto" and (least := _or(getattr(kwargs, name), least)) >= self.learning_rate:
                raise ValueError(f"learning_rate {self.learning_rate:g} has to be above {name}, {least:g}")
        return self

    @property
    def kwargs(self) -> SchedulerOptions:
        """Parameters of the shape, given or not."""
        return self.lr_scheduler_kwargs or SchedulerOptions()

    @property
    def peak(self) -> float:
        """The peak rate that is given; 0 where it is still to be found."""
        return 0.0 if self.learning_rate == "auto" else self.learning_rate

    def warmup(self, steps: int) -> int:
        """Steps of the warmup in a run of so many."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil((self.warmup_ratio or 0.0) * steps)


def check_schedule(options: ScheduleOptions, steps: int, per_epoch: int) -> None:
    """Raise ConfigError for a schedule that a run of so many steps never gets to."""
    warmup, kind = options.warmup(steps), options.lr_scheduler_type
    plan = _Plan(steps, warmup, per_epoch, 1.0, options.kwargs)
    if options.warmup_steps and warmup >= steps:
        raise ConfigError(
            f"train.warmup_steps={warmup} in a run of {steps} steps: the rate would never reach learning_rate",
            fix="lower it, or give a share: train.warmup_ratio=0.1",
        )
    if kind == "warmup_stable_decay" and warmup + plan.decay > steps:
        raise ConfigError(
            f"warmup of {warmup} steps and a fall of {plan.decay} in a run of {steps}",
            fix="lower train.lr_scheduler_kwargs.num_decay_steps or decay_ratio, or the warmup",
        )
    if kind in ("step", "exponential") and _SHAPES[kind][0](steps - 1, plan) == 1:
        raise ConfigError(
            f"train.lr_scheduler_type={kind} falls by epochs of {per_epoch} steps; in a run of {steps} it never does",
            fix="train longer (train.num_train_epochs), or choose a shape by steps, such as linear",
        )


@dataclass
class _Plateau:
    """The held-out loss as reduce_lr_on_plateau follows it (torch's ReduceLROnPlateau, a share as threshold).

    Attributes:
        best: the lowest loss so far.
        bad: looks since then, or since the last fall.
        cooling: looks that do not count yet.
        multiplier: of the rate, by all falls so far.
    """

    best: float = math.inf
    bad: int = 0
    cooling: int = 0
    multiplier: float = 1.0

    def look(self, loss: float, given: SchedulerOptions, peak: float) -> None:
        if loss < self.best * (1 - _or(given.threshold, 1e-4)):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.cooling:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > _or(given.patience, 10):
            lower = max(self.multiplier * _or(given.factor, 0.1), _or(given.min_lr, 0.0) / peak)
            if (self.multiplier - lower) * peak > _LEAST_CHANGE:
                self.multiplier = lower
            self.bad, self.cooling = 0, given.cooldown or 0


class Rate:
    """The rates of a run. Whoever makes one step's rate asks here.

    Args:
        peak: the rate at the top, where it was found; None is the one that is given.
    """

    def __init__(self, options: ScheduleOptions, steps: int, per_epoch: int, peak: float | None = None) -> None:
        warmup = options.warmup(steps)
        self._plan = _Plan(steps, warmup, per_epoch, options.peak if peak is None else peak, options.kwargs)
        self._shape, _ = _SHAPES[options.lr_scheduler_type]
        self._plateau = _Plateau() if options.lr_scheduler_type == PLATEAU else None
        self._looks: list[tuple[int, dict[str, Any]]] = []  # (position, what was known of the plateau then)

    def at(self, step: int) -> float:
        """The rate of step `step`, from 0."""
        fallen = self._plateau.multiplier if self._plateau is not None else 1.0
        return self._plan.peak * self.factor(step) * fallen

    def factor(self, step: int) -> float:
        """Share of the peak at `step`: rising, above zero from the first step on, and then the shape's."""
        warmup = self._plan.warmup
        return (step + 1) / (warmup + 1) if step < warmup else self._shape(step, self._plan)

    def looked(self, loss: float, position: int) -> float | None:
        """Hear a held-out loss; what the rate is multiplied by because of it, None where it stays."""
        if self._plateau is None:
            return None
        before = self._plateau.multiplier
        self._plateau.look(loss, self._plan.given, self._plan.peak)
        self._looks.append((position, vars(self._plateau).copy()))
        return None if self._plateau.multiplier == before else self._plateau.multiplier / before

    def back(self, position: int) -> None:
        """What was heard after that position never was."""
        if self._plateau is not None:
            self._looks = [look for look in self._looks if look[0] <= position]
            self._plateau = _Plateau(**self._looks[-1][1]) if self._looks else _Plateau()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        plateau = vars(self._plateau).copy() if self._plateau is not None else None
        return {"peak": self._plan.peak, "plateau": plateau, "looks": self._looks.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self._plan = replace(self._plan, peak=state["peak"])
        if self._plateau is not None:
            self._plateau = _Plateau(**state["plateau"])
            self._looks = [(position, known) for position, known in state["looks"]]
