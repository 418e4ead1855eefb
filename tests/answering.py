"""Engines around tiny models with something to say, for tests that ask them."""

from __future__ import annotations

import math

import torch

from danlu import GenerationParams

PROMPTS = ["the quick brown fox", "one", "a model is trained on data and then used 丹炉", "what is the capital of"]
GREEDY = GenerationParams(max_new_tokens=12)


def strengthen(model, seed=0):
    """Large random weights, so that answers depend on the prompt and differ from row to row."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def answers(engine, prompts=PROMPTS, **knobs):
    generations = engine.generate(prompts, GenerationParams(**{"max_new_tokens": 12, **knobs}))
    return [generation.sequences[0] for generation in generations]


def ids_of(engine, prompts=PROMPTS, **knobs):
    return [answer.token_ids for answer in answers(engine, prompts, **knobs)]


def fixed_scores(engine, monkeypatch, scores):
    """Let the model give these scores for every next token."""
    own = type(engine._model).forward.__get__(engine._model)
    row = torch.full((engine._model.config.vocab_size,), -math.inf)
    for token, score in scores.items():
        row[token] = score

    def forward(*args, **options):
        output = own(*args, **options)
        output.logits = row.expand_as(output.logits).clone()
        return output

    monkeypatch.setattr(engine._model, "forward", forward)
