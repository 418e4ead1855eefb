"""What a format of numbers costs: how far one form of a model moves the distribution of the next token.

Kullback-Leibler divergence from a reference (the model in float32) to the other form, in nats a position, over text
that the model itself said: that is where it will be used. Which forms exist, and how fast they are, is left to others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.errors import ConfigError, ParityError
from danlu.generate.answers import Generation
from danlu.generate.engine import Engine, Prompt
from danlu.generate.params import GenerationParams


@dataclass(frozen=True)
class Divergence:
    """How two forms of a model differ.

    Attributes:
        positions: answer tokens compared; those of prompts do not count.
        mean_kl, largest_kl: sum of p · (log p − log q) at a position, in nats; p is the reference's.
        same_choice: share of positions at which both find the same token likeliest.
    """

    positions: int
    mean_kl: float
    largest_kl: float
    same_choice: float


def own_text(reference: Engine, prompts: Sequence[Prompt], *, new_tokens: int, seed: int) -> list[Generation]:
    """Answers drawn from the model's own distribution, `new_tokens` each: text to compare forms of it on."""
    params = [
        GenerationParams(max_new_tokens=new_tokens, eos_token_id=(), do_sample=True, seed=seed + at)
        for at in range(len(prompts))
    ]
    return reference.generate(prompts, params)


def divergence(reference: Engine, other: Engine, text: Sequence[Generation]) -> Divergence:
    """Compare both engines at every answer token of `text`.

    Raises ParityError if a divergence is not a number, or the vocabularies differ; ConfigError if there is no text.
    """
    found = [
        _one_text(reference, other, generation.prompt_token_ids, answer.token_ids)
        for generation in text
        for answer in generation.sequences
    ]
    if not sum(len(kl) for kl, _ in found):
        raise ConfigError("no answer tokens to compare two models on", fix="give text with at least one answer")
    kl, same = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not math.isfinite(float(kl.sum())):
        raise ParityError(
            f"the divergence is {float(kl.sum())} over {len(kl)} positions",
            fix="look for inf or nan in the logits of both models",
        )
    return Divergence(len(kl), float(kl.mean()), float(kl.max()), float(same.float().mean()))


def _one_text(
    reference: Engine, other: Engine, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[Tensor, Tensor]:  # (answer tokens,) float64 and bool
    p, q = (engine.logits([*prompt, *answer])[len(prompt) - 1 : -1] for engine in (reference, other))
    if p.shape != q.shape:
        raise ParityError(f"vocabularies of {p.shape[-1]} and {q.shape[-1]} tokens", fix="compare forms of one model")
    return of_logits(p, q), p.argmax(-1) == q.argmax(-1)


def of_logits(p: Tensor, q: Tensor) -> Tensor:
    """(positions,) float64: sum of p · (log p − log q), in nats, of (positions, vocabulary) logits."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
