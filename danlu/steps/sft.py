"""Supervised fine-tuning: what it learns from and what is measured; the order is training.py's."""

from __future__ import annotations

from functools import partial

from danlu.data.example import Example
from danlu.data.formats import Conversation, Skipped
from danlu.data.source import read
from danlu.device import Device
from danlu.evaluate.held_out import Question, measure
from danlu.fingerprint import of_texts
from danlu.generate.engine import Engine
from danlu.journal import Draft
from danlu.recipe import Recipe, SftSections
from danlu.steps.parts import Parts, Proof
from danlu.steps.prepare import (
    Ready,
    Sizes,
    describe,
    digest_of,
    examples_of,
    identity_of,
    load_base,
    make_trainable,
    read_split,
    saver_of,
    tokens_to_learn,
)
from danlu.steps.prove import check_provable, groups_of, questions_of
from danlu.steps.step import Show
from danlu.steps.training import TrainingStep, training_kind
from danlu.train.batches import Shuffled
from danlu.train.sft import sft_stage


def prepare(recipe: Recipe, journal: Draft, device: Device, show: Show) -> Parts:
    """All that the training works on, in memory alone; what is to be told stands in the draft."""
    skipped = Skipped()
    split = read_split(recipe, journal, skipped, show)
    base = load_base(recipe, device, show)
    examples, held_out = examples_of(recipe, split, base, skipped, journal, show)
    questions = questions_of(split.held_out, recipe.prove, recipe.seed)
    check_provable(recipe.prove, held_out, questions)
    learns_answers = any(isinstance(record, Conversation) for record in split.train)
    tokens = tokens_to_learn(recipe, base, examples, journal, show) if learns_answers else ()
    ready = make_trainable(recipe, base, tokens, show)
    batches = Shuffled(examples, recipe.train.batch_size, recipe.seed)
    identity = identity_of(recipe, ready.model, digest_of(examples))
    describe(recipe, journal, device, ready, Sizes.of(examples, held_out), skipped, batches.per_epoch)
    return Parts(
        recipe=recipe,
        device=device,
        show=show,
        ready=ready,
        kind="instruct" if learns_answers else None,
        stage=sft_stage(device),
        save=saver_of(recipe, base),
        batches=batches,
        held_out=held_out,
        identity=identity,
        proof=_proof(recipe, ready, held_out, questions, device),
    )


def _proof(
    recipe: Recipe, ready: Ready, held_out: list[Example], questions: list[Question], device: Device
) -> Proof | None:
    options = recipe.prove
    if options is None:
        return None
    look = partial(
        measure,
        ready.model,
        Engine.around(ready.model, ready.base.chat, in_place=True),
        held_out,
        questions,
        device,
        max_tokens=recipe.train.most_tokens,
        max_new_tokens=options.max_new_tokens,
    )
    name = _name_of(held_out, questions, options.max_new_tokens)
    return Proof(look, name, groups_of(held_out, questions), questions, options.examples)


def _name_of(held_out: list[Example], questions: list[Question], max_new_tokens: int) -> str:
    asked = [question.conversation.messages for question in questions]
    return of_texts([digest_of(held_out), repr(asked), repr(max_new_tokens)])


def _check_data(recipe: Recipe) -> None:
    split = read(recipe.data, recipe.seed, Skipped())
    check_provable(recipe.prove, split.held_out, questions_of(split.held_out, recipe.prove, recipe.seed))


class SftStep(SftSections, TrainingStep):
    """Supervised fine-tuning as a step."""


SFT = training_kind(SftStep, Recipe, prepare, _check_data)
