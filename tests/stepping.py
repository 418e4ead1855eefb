"""Cores around tiny models, stepped by hand, for tests that look at what a step leaves behind."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from danlu.data.chat import Chat
from danlu.device import Device
from danlu.generate.batch import prefix
from danlu.generate.batch.core import Core
from danlu.generate.batch.kv import SMALLEST_CAPACITY
from danlu.generate.params import GenerationParams
from danlu.generate.requests import Maker
from danlu.model.load import load_model, load_tokenizer

CPU = Device("cpu", 1, 2**34, False)
PLENTY = 2**30

# One of every kind. Beams share some of what they have made, samples do not.
KNOBS = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 5, "num_return_sequences": 3},
    "beam": {"num_beams": 4, "num_return_sequences": 2, "early_stopping": "never"},
    "beam_sample": {"num_beams": 3, "do_sample": True, "seed": 8},
    "group": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 4},
    "constrained": {"num_beams": 4, "force_words_ids": [[40, 41], [[60, 61], [70]]]},
    "constrained_greedy": {"force_words_ids": [[40, 41], [[60, 61], [70]]]},
    "constrained_sample": {"force_words_ids": [[40, 41]], "do_sample": True, "seed": 5},
    "form": {"regex": "[a-z]{20,60}", "do_sample": True, "seed": 5, "num_return_sequences": 3},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 9},
}


class Bench:
    """Cores around one model."""

    def __init__(self, directory):
        self.model = load_model(directory, device=CPU, dtype=torch.float64).eval()
        self.chat = Chat.of(load_tokenizer(directory), self.model.generation_config)
        self.maker = Maker(self.chat, self.model.config.vocab_size)

    def core(self, budget=PLENTY, prompt_tokens_a_step=512, **options):
        return Core(self.model, budget, prompt_tokens_a_step, **options)

    def job(self, core, prompt, adapter=None, **knobs):
        """A job with an adapter that adds nothing, if one is named."""
        job = self.maker.job(prompt, GenerationParams(**{"max_new_tokens": 40, **knobs}))
        job.request.adapter = adapter
        if adapter is not None and adapter not in core.bank.adapters:
            core.bank.put(adapter, Path("nowhere"), {})
        core.submit(job.request)
        return job

    def alone(self, prompt, **knobs):
        core = self.core()
        job = self.job(core, prompt, **knobs)
        finish(core)
        return answers(job)


def finish(core, steps=5000):
    while not core.is_idle and steps:
        core.step()
        assert core.store.used_bytes <= core.store.budget_bytes
        steps -= 1
    assert steps, "it does not come to an end"
    assert core.store.used_bytes == core.store.cached_bytes


def answers(job):
    error = job.ended.get_nowait()
    if error is not None:
        raise error
    assert job.ended.empty()
    return [one.tokens for one in job.request.strategy.results()]


def prompt_of(length, seed=0):
    dice = random.Random(seed)
    return [dice.randrange(3, 300) for _ in range(length)]


def slots(core, count, rows=1, capacity=SMALLEST_CAPACITY):
    """A budget for so many slots: while a shelf grows, half a slot more stands about."""
    return int((count + 0.5) * core.store.shape.slot_bytes(rows, capacity))


def check_accounts(cache):
    """What is counted is what the tensors take, and every block hangs on one that was used after it."""
    store = cache.store
    shelves = [tensor for shelf in store.shelves.values() for tensor in shelf._tensors()]
    blocks = [tensor for block in cache.blocks.values() for tensor in block.tensors]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in blocks)  # no view of something larger
    assert store.cached_bytes == sum(tensor.nbytes for tensor in blocks) <= prefix.CACHE_SHARE * store.budget_bytes
    assert store.used_bytes == sum(tensor.nbytes for tensor in [*shelves, *blocks]) <= store.budget_bytes
    seen = set()
    for (parent, _ids), block in reversed(cache.blocks.items()):
        assert parent in seen or not isinstance(parent, prefix.Block)
        seen.add(block)
