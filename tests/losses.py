"""Documents, models that tell them apart, and the loss of each document by itself, for tests of losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from rounding import of_model

from danlu.data.example import Example
from danlu.device import Device
from danlu.model.adapters import attach
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)

# Lengths on both sides of the tiny models' window of 16, and one document that teaches nothing.
LENGTHS = (40, 1, 2, 17, 25)


def documents(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in LENGTHS]


def alike():
    """Documents that share beginnings: two that part early, one that is the beginning itself, one that parts later
    and further on again, one of its own; not in the order of what they share."""
    first, _, _, own, other = documents()
    return [[*first[:20], *other], first, own, first[:20], [*first[:30], *own], [*first[:30], *own[:5], *other]]


def examples(learnt=lambda at: True, texts=documents):
    return [Example(tuple(ids), tuple(at > 0 and learnt(at) for at in range(len(ids)))) for ids in texts()]


def strong(model, seed=5):
    """Large random weights: in a fresh model every token is about equally likely, whatever stands before it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if name.endswith("norm.weight") or "norm." in name else 0.0
            weight.copy_(around + torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


def load(directory):
    return strong(load_model(directory, device=CPU, dtype=torch.float32))


def with_adapter(directory, **options):
    """The same model with an adapter that changes its answers, without dropout."""
    model = attach(load(directory), LoraOptions(r=4, lora_dropout=0, **options), seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


class Losses(NamedTuple):
    """Of the learnt tokens, and how far rounding may carry another computation of them."""

    values: torch.Tensor
    tolerance: float


def alone(model, learnt=lambda at: True, texts=documents):
    """The definition: each document by itself through transformers' code and a log-softmax."""
    losses, tolerance = [], 0.0
    for ids in texts():
        scores = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        losses += [-scores[at - 1, ids[at]] for at in range(1, len(ids)) if learnt(at)]
        tolerance = max(tolerance, of_model(scores, model.config))
    return Losses(torch.stack(losses), tolerance)


def assert_near(seen, expected):
    torch.testing.assert_close(seen, expected.values, atol=expected.tolerance, rtol=0)
