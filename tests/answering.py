"""Engines around tiny models with something to say, for tests that ask them."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import torch
from rounding import of_model

from danlu import Engine, GenerationParams
from danlu.data.chat import Chat
from danlu.device import Device
from danlu.model.load import load_model, load_tokenizer

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


def strong_engine(directory):
    """An engine around a strengthened model of its own, which a test may change."""
    model = load_model(Path(directory), device=Device("cpu", 1, 10**9, has_bfloat16=False), dtype=torch.float32)
    return Engine.around(strengthen(model), Chat.of(load_tokenizer(Path(directory)), model.generation_config))


def answers(engine, prompts=PROMPTS, **knobs):
    generations = engine.generate(prompts, GenerationParams(**{"max_new_tokens": 12, **knobs}))
    return [generation.sequences[0] for generation in generations]


def ids_of(engine, prompts=PROMPTS, **knobs):
    return [answer.token_ids for answer in answers(engine, prompts, **knobs)]


def tolerance_of(engine, generation, adapter=None):
    """How far rounding may carry the log-probabilities of a prompt and its answers, or the mean of some."""
    prompt, config = generation.prompt_token_ids, engine._model.config
    texts = [list(prompt), *([*prompt, *answer.token_ids] for answer in generation.sequences)]
    return max(of_model(engine.logits(ids, adapter).log_softmax(-1), config) for ids in texts)


def fixed_scores(engine, monkeypatch, scores):
    """Let the model give these scores for every next token."""
    row = torch.full((len(engine.logits([0])[0]),), -math.inf)
    for token, score in scores.items():
        row[token] = score

    def decoder(token_ids, _positions, _attend, kept, _step):
        return row.repeat(len(token_ids[kept]), 1)

    monkeypatch.setattr(engine.core, "decoder", decoder)


def alive(*kinds):
    """How many objects of these classes somebody still holds."""
    gc.collect()
    return sum(type(one) in kinds for one in gc.get_objects())
