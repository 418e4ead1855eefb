"""A step that trains a pair head: a small encoder that says how far a claim follows from a source."""

from __future__ import annotations

from pydantic import Field

from danlu.device import read_device
from danlu.evaluate.pair_head import FILE
from danlu.evaluate.pair_training import PairOptions, PairTrain, lessons, train_head
from danlu.journal import Journal
from danlu.steps.directory import opened
from danlu.steps.step import Kind, Place, Product, Show, StepOptions


class JudgeStep(PairOptions, StepOptions):
    """A judge for danlu evaluate, from pairs of texts: its folder is the step's `model`."""

    train: PairTrain = Field(default_factory=PairTrain)

    @property
    def works_on(self) -> str:
        return self.start or self.encoder


def _inputs(options: JudgeStep, place: Place) -> dict[str, str]:
    return place.read(*options.data)


def _leaves(options: JudgeStep, place: Place, start: Product) -> Product:
    return Product(str(Journal(place.directory).model), judges=True)


def _check(options: JudgeStep, place: Place, start: Product, is_made: bool) -> None:
    if place.is_there(*options.data):
        next(lessons(options, place.seed), None)


def _run(options: JudgeStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    with opened(place, options, show, go_on) as journal:
        if (journal.model / FILE).exists():
            return
        about = train_head(
            options.model_copy(update={"encoder": start.model}), options.train, journal, read_device(), seed=place.seed,
            resume=go_on, how_to_resume=place.how_to_resume, say=show.say, on_step=show.step,
        )  # fmt: skip
        show.say(f"danlu evaluate answers.jsonl --judge {journal.model} --measures truthfulness --out report")
        journal.event("trained", f"{about.pairs:,} pairs; held out: accuracy {about.held_out['accuracy']:.3f}")


JUDGE = Kind(JudgeStep, needs_adapter=False, inputs=_inputs, leaves=_leaves, check=_check, run=_run)
