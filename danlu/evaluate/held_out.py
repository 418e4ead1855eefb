"""Held-out examples, before and after: loss, perplexity, overlap of greedy answers, with intervals.

Reads a model and answers through an engine; knows nothing of how the model came to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from danlu.data.batches.packing import collate, micro_batches
from danlu.data.example import Example
from danlu.data.formats import Conversation
from danlu.device import Device
from danlu.evaluate.bootstrap import Interval, bootstrap_difference
from danlu.evaluate.overlap import chrf
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.model.likelihood import token_losses


@dataclass(frozen=True)
class Measured:
    """One look at a model.

    Attributes:
        losses: for each example, (summed loss in nats, learnt tokens).
        answers: greedy answers to the questions, in order.
        overlaps: chrF of each answer with its reference, 0 to 100.
        ended: of each answer, whether the model ended it before the limit on its tokens did.
    """

    losses: list[tuple[float, float]]
    answers: list[str]
    overlaps: list[float]
    ended: list[bool]

    @property
    def loss(self) -> float:
        return sum(total for total, _ in self.losses) / sum(weight for _, weight in self.losses)

    def summary(self) -> dict[str, float]:
        """Loss in nats a token, its perplexity; of answers, their mean overlap and how many of 100 ended."""
        result = {"loss": self.loss, "perplexity": math.exp(self.loss)}
        if self.overlaps:
            result["overlap"] = sum(self.overlaps) / len(self.overlaps)
            result["ended"] = 100 * sum(self.ended) / len(self.ended)
        return result


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
        with torch.no_grad():
            losses = batch.weighted(token_losses(model, batch)).double()
        sums = losses.new_zeros(len(group)).index_add_(0, batch.document_of, losses).tolist()
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
    """Loss on `examples`, greedy answers to `questions` and their overlap with the references."""
    losses = example_losses(model, examples, device, max_tokens)
    params = GenerationParams(max_new_tokens=max_new_tokens)
    prompts = [engine.chat.prompt(q.messages) for q in questions]  # rendered even where nothing was said before
    generations = engine.generate(prompts, params)
    answers = [generation.text.strip() for generation in generations]
    ended = [generation.sequences[0].finish_reason == "stop" for generation in generations]
    overlaps = [chrf(answer, q.reference) for answer, q in zip(answers, questions, strict=True)]
    return Measured(losses, answers, overlaps, ended)


def differences(
    before: Measured, after: Measured, groups: Sequence[str], question_groups: Sequence[str]
) -> dict[str, Interval]:
    """After minus before, with 95 % intervals, resampling whole groups."""
    result = {"loss": bootstrap_difference(before.losses, after.losses, groups)}
    if before.overlaps:
        for name, values in (
            ("overlap", [measured.overlaps for measured in (before, after)]),
            ("ended", [[100.0 * ended for ended in measured.ended] for measured in (before, after)]),
        ):
            pairs = [[(value, 1.0) for value in one] for one in values]
            result[name] = bootstrap_difference(pairs[0], pairs[1], question_groups)
    return result
