"""One loop for every stage: accumulate, check, clip, step, log, save, resume.

The loop knows no stage. A stage (sft.py, ...) hands it examples and a few functions; what a batch means
and what is saved is the stage's business. Micro-batches are weighted by what the stage counts (learnt
tokens, pairs), so accumulation changes nothing but memory. Loss and gradient norm are looked at before
the step: a step that is not finite is never applied. Several processes go through it side by side, each with its part
of a gradient (learner.py); the first alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from pydantic import Field, field_validator, model_validator

from danlu.device import Device, PeakMemory, kept_memory, memory_faults, process_memory_bytes
from danlu.errors import DanluError, Interrupted
from danlu.journal import Journal
from danlu.train.batches import Batches, BatchOptions
from danlu.train.chart import Where
from danlu.train.checkpoint import Saved, clear_leftovers, last_checkpoint, save_checkpoint
from danlu.train.doctor import Doctor, Mode
from danlu.train.learner import Batch, Example, Gradient, Learner, Stage
from danlu.train.master import Master
from danlu.train.neftune import noisy_embeddings
from danlu.train.optim import OptimOptions
from danlu.train.rate import find_rate
from danlu.train.schedule import PLATEAU, Rate
from danlu.train.stopping import stop_requests
from danlu.train.trials import Move, spread

LEAST_LOOKED_AT = 8  # held-out examples that rates are compared on


class TrainOptions(BatchOptions, OptimOptions):
    """How long, in what portions, and how often to look and to save."""

    num_train_epochs: float = Field(1.0, gt=0, le=1000, description="passes over the data; fine-tuning wants one")
    max_steps: int | None = Field(
        None, ge=1, description="make so many optimizer steps, whatever num_train_epochs says, as in HF"
    )
    neftune_noise_alpha: float | None = Field(
        None,
        ge=0,
        description="noise on the embeddings of what is learnt, alpha / sqrt(tokens x width) at most (Jain et al. "
        "2023); 5 is usual, and makes answers longer. null or 0 is off",
    )
    gradient_checkpointing: bool = Field(
        False, description="blocks compute their inside twice instead of keeping it: long examples fit, a third slower"
    )
    eval_steps: int = Field(
        0, ge=0, description="steps between two looks at the held-out loss; 0 looks only at the end"
    )
    doctor: Mode = Field(
        "observe",
        description="observe tells what goes wrong; act heals it: it goes back, tries other rates, stops at the best; "
        "off looks at nothing",
    )
    save_steps: int = Field(50, ge=1, description="steps between two checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept, newest first")

    @field_validator("neftune_noise_alpha")
    @classmethod
    def _no_noise_is_off(cls, alpha: float | None) -> float | None:
        return alpha or None

    @model_validator(mode="after")
    def _a_plateau_is_looked_for(self) -> TrainOptions:
        if self.lr_scheduler_type == PLATEAU and not self.eval_steps:
            raise ValueError(f"lr_scheduler_type={PLATEAU} follows the held-out loss: set eval_steps")
        return self


@dataclass(frozen=True)
class Run(Generic[Example]):
    """What one training run works on.

    Attributes:
        batches: what each step learns from.
        held_out: looked at only; may be empty.
        identity: name -> value of what, besides seed and options, must be the same when the run is resumed.
        advised_rate: where `learning_rate: auto` begins to search.
        is_fresh: whether the weights began at random.
        saved: the checkpoint that it goes on from, by `resumable`; None begins at the first step.
        fallback: what a model in float16 goes on in when that does not hold its numbers; None: it is an error.
        how_to_resume: the command shown when the run is stopped.
        on_step: called with each metrics row.
    """

    batches: Batches[Example]
    held_out: Sequence[Example]
    seed: int
    identity: Mapping[str, str]
    advised_rate: float = 3e-4
    is_fresh: bool = False
    saved: Saved | None = None
    fallback: torch.dtype | None = None
    how_to_resume: str = "run the same command with resume=true"
    on_step: Callable[[dict[str, Any]], None] = lambda _row: None


# What the halves of a run may have otherwise: how long it is, how often it looks and saves, and how a step is cut.
_FREE = {
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "micro_batch_tokens",
    "gradient_checkpointing", "doctor", "eval_steps", "save_steps", "save_total_limit",
}  # fmt: skip


def planned_steps(options: TrainOptions, per_epoch: int) -> int:
    """Optimizer steps that `options` make of so many an epoch; max_steps overrides the epochs, as in HF."""
    return options.max_steps or max(1, round(per_epoch * options.num_train_epochs))


def full_identity(identity: Mapping[str, str], seed: int, options: TrainOptions) -> dict[str, str]:
    """What must be equal for a resumed run to go on as it would have: `identity`, the seed, and most options.

    What is not given is left out, so that an option which came later changes no earlier run.
    """
    free = _FREE - {"eval_steps"} if options.lr_scheduler_type == PLATEAU else _FREE
    fixed = options.model_dump(mode="json", exclude=free, exclude_none=True)
    return {**identity, "seed": str(seed), **{f"train.{name}": str(value) for name, value in fixed.items()}}


def resumable(
    folder: Path, identity: Mapping[str, str], seed: int, options: TrainOptions, per_epoch: int
) -> Saved | None:
    """The checkpoint in `folder` that such a run goes on from; None if there is none yet. Only reads.

    Raises ConfigError for a checkpoint of another run, DataError where all are damaged.
    """
    return last_checkpoint(folder, full_identity(identity, seed, options), planned_steps(options, per_epoch))


def train(
    stage: Stage[Example, Batch],
    model: Any,
    run: Run[Example],
    options: TrainOptions,
    journal: Journal,
    device: Device,
) -> None:
    """Train `model` in place; metrics, events and checkpoints go to the run directory.

    Raises TrainingError on a loss or gradient that is not finite (the step is not applied), Interrupted on
    Ctrl-C or SIGTERM (a checkpoint is saved first), MemoryShortage and DiskError as their names say.
    """
    noise = noisy_embeddings(model, options.neftune_noise_alpha)
    with (
        kept_memory(),
        Master(model, run.seed, copies=options.holds_copies) as master,
        noise,
        stop_requests() as stop,
        _memory_faults(options),
    ):
        loop = _Loop(stage, model, master, run, options, journal, device)
        loop.begin()
        while not loop.is_over:
            loop.advance()
            if any(device.processes.gathered(stop.asked)):  # each is asked at a moment of its own
                loop.save_checkpoint()
                journal.event("interrupted", "the user asked to stop", step=loop.step)
                raise Interrupted(
                    f"stopped after step {loop.step} of {loop.step + loop.steps - loop.position}; saved",
                    fix=run.how_to_resume,
                )


@dataclass(eq=False)
class _Loop(Generic[Example, Batch]):
    """State between two optimizer steps.

    `step` counts those that were applied, `position` those of the plan that are behind: the schedule and the data
    follow it. They differ where the doctor left one out or went back.
    """

    stage: Stage[Example, Batch]
    model: Any
    master: Master
    run: Run[Example]
    options: TrainOptions
    journal: Journal
    device: Device
    step: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        self.steps = planned_steps(self.options, self.run.batches.per_epoch)
        self.rate = Rate(self.options, self.steps, self.run.batches.per_epoch)
        self.learner = Learner(
            self.stage,
            self.model,
            self.master,
            self.options,
            self.options.most_tokens,
            self.device,
            most=self.options.per_device_train_batch_size,
            fallback=self.run.fallback,
        )
        self.doctor = Doctor(
            self.options.doctor,
            self.learner,
            self.run.batches.take,
            self.run.held_out,
            steps=self.steps,
            rate=self._planned_rate,
            warmup=self.options.warmup(self.steps),
            is_fresh=self.run.is_fresh,
            most_examples=self.options.batch_size,
            journal=self.journal,
        )
        self.peak = PeakMemory(self.device.name)

    @property
    def is_over(self) -> bool:
        return self.position >= self.steps

    def begin(self) -> None:
        torch.manual_seed(self.run.seed)
        if self.device.processes.is_first:
            clear_leftovers(self.journal.checkpoints)
        if self.run.saved is not None:
            self._restore(self.run.saved)
        elif self.options.learning_rate == "auto":
            self._find_rate()
        self.journal.rewind(self.step)
        self.doctor.begin(self._here())

    def _find_rate(self) -> None:
        found = find_rate(
            self.learner,
            self.run.batches.take,
            spread(self.run.held_out, max(LEAST_LOOKED_AT, 2 * self.options.batch_size)),
            advised=self.run.advised_rate,
            steps=self.steps,
            has_adapter=hasattr(self.model, "get_base_model"),
        )
        self.rate = Rate(self.options, self.steps, self.run.batches.per_epoch, found.rate)
        tried = [{"learning_rate": rate, "steps": steps, "eval_loss": loss} for rate, steps, loss in found.tried]
        figures = {"learning_rate": found.rate, "advised": self.run.advised_rate, "steps": found.steps, "tried": tried}
        self.journal.event("rate found", found.why, **figures)

    def advance(self) -> None:
        """One optimizer step, or what the doctor does instead, and what falls due after it."""
        before, started = self.step, time.perf_counter()
        self.peak.begin()
        examples = self._take()
        rate = self.doctor.rate(self.position)
        gradient = self.learner.gradient(examples)
        self._say_changes(gradient, self.step + 1)
        found = self.doctor.before(gradient, examples, self._here())
        if isinstance(found, Move):
            self._follow(found)
        else:
            if found is not gradient:
                self._say_changes(found, self.step + 1)
            self.step, self.position = self.step + 1, self.position + 1
            self.learner.apply(rate, self.step)
            row = self._row(examples, found, rate, time.perf_counter() - started)
            looked = self._looked(before)
            self._tell({**row, **looked})
            move = self.doctor.after(found, self._here(), looked.get("eval_loss"))
            if move is not None:
                self._follow(move)
        if self.is_over or self.step // self.options.save_steps > before // self.options.save_steps:
            self.save_checkpoint()

    def _say_changes(self, found: Gradient, step: int) -> None:
        for change in found.changes:
            self.journal.event(change.kind, change.reason, step=step, **change.details)

    def _here(self) -> Where:
        return Where(self.step, self.position)

    def _planned_rate(self, position: int) -> float:
        return self.rate.at(position)

    def _take(self) -> Sequence[Example]:
        """What this step learns from; where there is a fault in it, what was learnt before is saved first."""
        try:
            return self.run.batches.take(self.position)
        except DanluError:
            if self.step % self.options.save_steps:
                self.save_checkpoint()
            raise

    def _follow(self, move: Move) -> None:
        """Go on where the doctor says; steps of a fork that was kept are the run's own."""
        first = move.to.step - len(move.made)
        if not move.made and move.to.position < self.position:
            self.rate.back(move.to.position)
        for at, made in enumerate(move.made, start=first + 1):
            self.step, self.position = at, move.to.position - (move.to.step - at)
            self._say_changes(made.gradient, at)
            looked = self._looked(first) if at == move.to.step else {}  # the weights are those of the last
            self._tell({**self._row(made.examples, made.gradient, made.rate, made.seconds), **looked})
        self.step, self.position = move.to.step, move.to.position
        if self.is_over and not move.made and self.run.held_out:
            self.journal.event("held out", "at its end", step=self.step, **self._held_out())

    def _row(self, examples: Sequence[Example], found: Gradient, rate: float, seconds: float) -> dict[str, Any]:
        count = self.stage.count or self.stage.weight
        return {
            "step": self.step,
            "steps": self.step + self.steps - self.position,
            "tokens": sum(map(self.stage.length, examples)),
            self.stage.counted: sum(map(count, examples)),
            "loss": found.loss,
            "lr": rate,
            "grad_norm": found.norm,
            "memory_bytes": process_memory_bytes(self.device.name),
            "peak_memory_bytes": self.peak.bytes(),
            "seconds": seconds,
            **found.metrics,
            **self.learner.figures(),
            **self.run.batches.figures(),
        }

    def _looked(self, before: int) -> dict[str, Any]:
        """The held-out loss, where it is due after this step."""
        every = self.options.eval_steps
        due = every and self.step // every > before // every
        found = self._held_out() if self.run.held_out and (self.is_over or due) else {}
        if found and due and (by := self.rate.looked(found["eval_loss"], self.position)) is not None:
            figures = {"eval_loss": found["eval_loss"], "factor": by}
            self.journal.event("rate lowered", "the held-out loss falls no more", step=self.step, **figures)
        return found

    def _held_out(self) -> dict[str, Any]:
        loss, metrics = self.learner.look(self.run.held_out)
        return {"eval_loss": loss, **{f"eval_{name}": value for name, value in metrics.items()}}

    def _tell(self, row: dict[str, Any]) -> None:
        self.journal.metric(**row)
        self.run.on_step(row)

    # -- state ---------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        state = {
            "step": self.step,
            "position": self.position,
            "steps": self.steps,
            "batches": self.run.batches.state(),
            "doctor": self.doctor.state(),
            "rate": self.rate.state(),
            **self.learner.whole(self.learner.state()),
        }
        if not self.device.processes.is_first:
            return
        identity = full_identity(self.run.identity, self.run.seed, self.options)
        save_checkpoint(self.journal.checkpoints, self.step, state, identity, keep=self.options.save_total_limit)

    def _restore(self, saved: Saved) -> None:
        for fault in saved.damaged:
            self.journal.event("damaged", f"{fault}; the one before it is used")
        state = saved.state
        self.learner.restore(self.learner.part(state), saved.step)
        self.run.batches.restore(state["batches"])
        self.doctor.restore(state["doctor"])
        self.rate.restore(state["rate"])
        self.step, self.position = saved.step, state["position"]
        longer = f"; {self.steps} steps instead of {state['steps']}: the rate follows the new length"
        reason = f"from {saved.path.name}" + (longer if self.steps != state["steps"] else "")
        self.journal.event("resumed", reason, step=self.step)


def _memory_faults(options: TrainOptions) -> AbstractContextManager[None]:
    tokens = options.most_tokens
    fix = f"lower it, for instance train.micro_batch_tokens={max(1, tokens // 2)}; the result stays the same"
    return memory_faults(f"out of memory at train.micro_batch_tokens={tokens}", fix)
