"""Held-out examples before and after: what every step that changes a model proves, and a step of its own.

The step measures two models on the same examples, one after the other: what it is given, and what it is held against.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Protocol

from pydantic import Field, model_validator

from danlu.data.example import Example
from danlu.data.formats import Conversation, Record, Skipped
from danlu.data.source import DataOptions, fingerprints, read
from danlu.device import Device, read_device, release_memory
from danlu.errors import ConfigError, DataError
from danlu.evaluate.held_out import Measured, Question, differences, measure
from danlu.generate.engine import Engine
from danlu.hub import cache_directory
from danlu.journal import Journal
from danlu.model.likelihood import prepare
from danlu.model.named import ModelOptions, load
from danlu.recipe import LossProof, ProveOptions
from danlu.steps.directory import opened
from danlu.steps.step import Kind, Place, Product, Show, StepOptions
from danlu.train.loop import TrainOptions
from danlu.train.sft import refuse_unknown_tokens, sft_examples


def questions_of(records: Sequence[Record], options: ProveOptions | None, seed: int) -> list[Question]:
    """A random choice of the held-out conversations that end with an answer in words."""
    if options is None:
        return []
    fit = [Question(r) for r in records if isinstance(r, Conversation) and r.messages[-1].get("content")]
    return random.Random(seed).sample(fit, min(options.questions, len(fit)))


def check_provable(options: LossProof | None, held_out: Sequence[Grouped], questions: Sequence[Question]) -> None:
    """Say before training, not after, that an interval could not be made."""
    if options is None:
        return
    groups = {group_of(example) for example in held_out}
    asked = {group_of(question.conversation) for question in questions}
    if len(groups) < 2 or len(asked) == 1:
        raise DataError(
            f"{len(held_out)} held-out examples in {len(groups)} group(s): too few to prove a change",
            allowed="at least two groups; an interval means little below thirty",
            fix="raise data.held_out, give data.held_out_path, or leave the proof out with prove=null",
        )


def groups_of(held_out: Sequence[Example], questions: Sequence[Question]) -> dict[str, list[str]]:
    """Of each measure, the group of each of its items."""
    asked = [group_of(question.conversation) for question in questions]
    return {"loss": [group_of(example) for example in held_out], "overlap": asked, "ended": asked}


class Grouped(Protocol):
    """What comes from a place, and may belong to a group."""

    @property
    def place(self) -> str: ...
    @property
    def group(self) -> str | None: ...


def group_of(example: Grouped) -> str:
    return example.group or example.place


_SAID = {
    "loss": "held-out loss {:.3f}",
    "preference_loss": "loss of held-out pairs {:.3f}",
    "preferred": "{:.0f} % of them judged rightly",
    "reward_gap": "gap of rewards {:.3f}",
    "perplexity": "perplexity {:.1f}",
    "overlap": "overlap {:.1f}",
    "reward": "reward {:.3f}",
    "kl": "{:.2f} nats from the reference",
    "ended": "{:.0f} % of the answers ended",
}


def said(when: str, measured: Measured) -> str:
    """A line for the terminal."""
    figures = measured.summary()
    return f"{when}: " + ", ".join(text.format(figures[name]) for name, text in _SAID.items() if name in figures)


def compare(
    journal: Journal,
    show: Show,
    shown: int,
    groups: Mapping[str, Sequence[str]],
    questions: Sequence[Question],
    before: Measured,
    after: Measured,
) -> None:
    """Keep the changes with their intervals, and so many answers side by side."""
    changes = differences(before, after, groups)
    journal.result("difference", {name: asdict(interval) for name, interval in changes.items()})
    answers = list(zip(questions, before.answers, after.answers, strict=True))[:shown]
    journal.result(
        "examples",
        [
            {"prompt": q.prompt, "reference": q.reference, "before": b, "after": a, "place": q.conversation.place}
            for q, b, a in answers
        ],
    )
    name, first = next(iter(changes.items()))
    spread = f"(95 % interval {first.low:+.3f} to {first.high:+.3f})"
    show.say(f"the {_MEASURED.get(name, name)} changed by {first.value:+.3f} {spread}")


_MEASURED = {
    "loss": "held-out loss",
    "preference_loss": "loss of held-out pairs",
    "reward": "reward of answers to held-out prompts",
}


# -- as a step ---------------------------------------------------------------------------------------------


class ProveStep(ProveOptions, StepOptions):
    """Two models on the same held-out examples."""

    data: DataOptions = Field(description="whose held-out part is measured")
    against: str | None = Field(None, description="an earlier step, or a model; what the chain began with if not given")

    @model_validator(mode="after")
    def _has_held_out(self) -> ProveStep:
        if self.data.held_out == 0 and self.data.held_out_path is None:
            raise ValueError("prove needs held-out data: set data.held_out or data.held_out_path")
        return self


def _inputs(options: ProveStep, place: Place) -> dict[str, str]:
    other = _other(options, place)
    of = place.digests.get(options.against or "", f"{other.model} {other.adapter}")
    return {**fingerprints(options.data, place.files), "against": of}


def _other(options: ProveStep, place: Place) -> Product:
    name = options.against
    if name is None:
        return place.first
    return place.earlier[name] if name in place.earlier else Product(name, accept_licence=place.first.accept_licence)


def _leaves(options: ProveStep, place: Place, start: Product) -> Product:
    return start


def _check(options: ProveStep, place: Place, start: Product, is_made: bool) -> None:
    if _other(options, place) == start:
        raise ConfigError(
            f"steps.{place.name} holds {start.model} against itself",
            fix=f"name another model, or an earlier step, with steps.{place.name}.against",
        )
    if place.is_there(*options.data.files):
        held_out = read(options.data, place.seed, Skipped()).held_out
        check_provable(options, held_out, questions_of(held_out, options, place.seed))


def _run(options: ProveStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    with opened(place, options, show, go_on) as journal:
        _prove(options, place, start, show, journal)


def _prove(options: ProveStep, place: Place, start: Product, show: Show, journal: Journal) -> None:
    device = read_device()
    records = read(options.data, place.seed, Skipped()).held_out
    questions = questions_of(records, options, place.seed)
    looks: list[tuple[list[Example], Measured]] = []
    for when, product in (("before", _other(options, place)), ("after", start)):
        show.say(f"measuring {len(records)} held-out records: {product.place}")
        looks.append(_look(options, product, records, questions, device))
        journal.result(when, looks[-1][1].summary())
        show.say(said(when, looks[-1][1]))
        release_memory()
    (held_out, before), (others, after) = looks
    if [one.token_ids for one in held_out] != [one.token_ids for one in others]:
        raise ConfigError(
            f"{_other(options, place).model} and {start.model} write these examples as other tokens: "
            "a loss of the one says nothing about the other",
            fix=f"choose steps.{place.name}.against among models of one tokenizer and one chat template",
        )
    compare(journal, show, options.examples, groups_of(held_out, questions), questions, before, after)


def _look(
    options: ProveStep, product: Product, records: Sequence[Record], questions: Sequence[Question], device: Device
) -> tuple[list[Example], Measured]:
    data = options.data
    loading = ModelOptions(name=product.model, adapter=product.adapter, accept_licence=product.accept_licence)
    loaded = load(loading, device, cache=cache_directory())
    chat = data.chat(loaded.tokenizer, loaded.model.generation_config)
    examples = list(
        sft_examples(
            records, chat, max_length=data.max_length, too_long=data.too_long, window_overlap=data.window_overlap
        )
    )
    refuse_unknown_tokens(examples, loaded.model, loaded.tokenizer)
    prepare(loaded.model)
    engine = Engine.around(loaded.model, chat, in_place=True)
    try:
        return examples, measure(
            loaded.model,
            engine,
            examples,
            questions,
            device,
            max_tokens=TrainOptions().most_tokens,
            max_new_tokens=options.max_new_tokens,
        )
    finally:
        engine.close()


PROVE = Kind(ProveStep, needs_adapter=None, inputs=_inputs, leaves=_leaves, check=_check, run=_run)
