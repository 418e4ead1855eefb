"""Held-out examples, before and after: loss, perplexity, overlap of greedy answers, with intervals.

Reads a model and answers through an engine; knows nothing of how the model came to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from danlu.data.batches.packing import collate, micro_batches
from danlu.data.example import Example
from danlu.data.formats import Conversation
from danlu.device import Device, memory_faults
from danlu.evaluate.bootstrap import Interval, bootstrap_difference
from danlu.evaluate.overlap import chrf
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.model.likelihood import token_losses

_LESS = "lower train.micro_batch_tokens; the result stays the same"


@dataclass(frozen=True)
class Measured:
    """One look at a model.

    Attributes:
        values: measure -> (value, weight) of each held-out item, in order. "loss" is in nats, summed over an example
            whose weight is its learnt tokens: its value is that sum.
        answers: greedy answers to the questions, in order.
    """

    values: dict[str, list[tuple[float, float]]]
    answers: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """The mean of each measure; of the loss, in nats a token, its perplexity as well."""
        means = {
            name: sum(value for value, _ in items) / sum(weight for _, weight in items)
            for name, items in self.values.items()
            if items
        }
        return means | ({"perplexity": math.exp(means["loss"])} if "loss" in means else {})


@dataclass(frozen=True)
class Question:
    """A held-out conversation whose last turn is the reference."""

    conversation: Conversation

    @property
    def messages(self) -> Sequence[dict[str, Any]]:
        return self.conversation.messages[:-1]

    @property
    def reference(self) -> str:
        return str(self.conversation.messages[-1]["content"])

    @property
    def prompt(self) -> str:
        return str(self.messages[-1]["content"])


def example_losses(
    model: Any, examples: Sequence[Example], device: Device, max_tokens: int
) -> list[tuple[float, float]]:
    """(summed loss in nats, learnt tokens) of each example, in order; both weighted where the data names weights."""
    result: dict[int, tuple[float, float]] = {}
    model.eval()
    lengths = [len(example.token_ids) for example in examples]
    for group in micro_batches(lengths, range(len(examples)), max_tokens):
        batch = collate([examples[index] for index in group]).to(device.name)
        with torch.no_grad(), memory_faults(f"out of memory in a pass over {batch.tokens} tokens", _LESS):
            losses = batch.weighted(token_losses(model, batch)).double()
        sums = batch.by_document(losses).tolist()
        for index, total in zip(group, sums, strict=True):
            result[index] = (total, examples[index].weight)
    return [result[at] for at in range(len(examples))]


def measure(
    model: Any,
    engine: Engine,
    examples: Sequence[Example],
    questions: Sequence[Question],
    device: Device,
    *,
    max_tokens: int,
    max_new_tokens: int,
) -> Measured:
    """Loss on `examples`; of greedy answers to `questions` "overlap", chrF with their references from 0 to 100, and
    "ended", how many of 100 the model ended before the limit on their tokens did."""
    answers, of_answers = answered(engine, questions, max_new_tokens)
    return Measured({"loss": example_losses(model, examples, device, max_tokens), **of_answers}, answers)


def answered(
    engine: Engine, questions: Sequence[Question], max_new_tokens: int
) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """(greedy answers, what is measured of them); nothing where there are no questions."""
    if not questions:
        return [], {}
    prompts = [engine.chat.prompt(q.messages) for q in questions]  # rendered even where nothing was said before
    generations = engine.generate(prompts, GenerationParams(max_new_tokens=max_new_tokens))
    answers = [generation.text.strip() for generation in generations]
    ended = [100.0 * (generation.sequences[0].finish_reason == "stop") for generation in generations]
    overlaps = [chrf(answer, q.reference) for answer, q in zip(answers, questions, strict=True)]
    return answers, {"overlap": [(value, 1.0) for value in overlaps], "ended": [(value, 1.0) for value in ended]}


def differences(before: Measured, after: Measured, groups: Mapping[str, Sequence[str]]) -> dict[str, Interval]:
    """After minus before, with 95 % intervals, resampling whole groups.

    Args:
        groups: measure -> the group of each of its items.
    """
    return {
        name: bootstrap_difference(items, after.values[name], groups[name]) for name, items in before.values.items()
    }
