"""What the kinds of training on preferences share: pairs from a recipe's data, and questions for their proof."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from danlu.data.batches.pairs import Pair, no_preference, pairs_of
from danlu.data.records import Conversation, Preference, Record, Skipped
from danlu.data.source import DataOptions, Split, read
from danlu.errors import DataError
from danlu.evaluate.held_out import Question
from danlu.model.lora_options import LoraOptions
from danlu.recipe import TrainingRecipe, TrainingSections
from danlu.steps.prepare import Base, Sizes, digest_of
from danlu.steps.prove import check_provable
from danlu.train.sft import refuse_unknown_tokens


class PairData(DataOptions):
    """Pairs of a better and a worse answer."""

    too_long: Literal["raise", "skip"] = Field("raise", description=DataOptions.model_fields["too_long"].description)


class PairLora(LoraOptions):
    """LoRA for the difference of two answers, which dropout would blur."""

    lora_dropout: float = Field(0.0, ge=0, lt=1, description=LoraOptions.model_fields["lora_dropout"].description)


class PairSections(TrainingSections):
    """A training on pairs, or on their prompts."""

    data: PairData
    lora: PairLora | None = Field(
        default_factory=PairLora, description=TrainingSections.model_fields["lora"].description
    )


def pairs_from(recipe: TrainingRecipe, split: Split, base: Base, skipped: Skipped) -> tuple[list[Pair], list[Pair]]:
    """(pairs to learn from, pairs held out)."""
    data = recipe.data
    found = []
    for records in (split.train, split.held_out):
        pairs = pairs_of(
            records,
            base.chat,
            max_length=data.max_length,
            skip_too_long=data.too_long == "skip",
            skip=skipped.add if "skip" in (data.on_error, data.too_long) else None,
        )
        found.append(list(pairs))
    train, held_out = found
    if not train:
        raise DataError("every pair was left out; none is left to train on", fix="see the faults in events.jsonl")
    for pair in (*train, *held_out):
        refuse_unknown_tokens((pair.chosen, pair.rejected), base.loaded.model, base.loaded.tokenizer)
    return train, held_out


def check_pairs(recipe: TrainingRecipe) -> None:
    """Every row is a preference, and there are enough of them to prove a change. Raises DataError."""
    split = read(recipe.data, recipe.seed, Skipped())
    for record in (*split.train, *split.held_out):
        if not isinstance(record, Preference):
            raise no_preference(record)
    check_provable(recipe.prove, split.held_out, [])


def digest_of_pairs(pairs: Sequence[Pair]) -> str:
    """Of every token of every answer."""
    return digest_of(answer for pair in pairs for answer in (pair.chosen, pair.rejected))


def sizes_of_pairs(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> Sizes:
    """How much there is to learn from."""
    learnt = sum(pair.chosen.learnt_tokens + pair.rejected.learnt_tokens for pair in pairs)
    return Sizes(len(pairs), len(held_out), sum(pair.tokens for pair in pairs), learnt)


def preferred_questions(records: Sequence[Record], count: int, seed: int) -> list[Question]:
    """A random choice of the held-out prompts, the better answer as reference."""
    fit = [
        Question(Conversation((*record.prompt, *record.chosen), record.place, record.group))
        for record in records
        if isinstance(record, Preference) and record.chosen[-1].get("content")
    ]
    return random.Random(seed).sample(fit, min(count, len(fit)))
