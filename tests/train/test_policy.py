"""The model under training as a rollout asks it: what it reads."""

import gc

import pytest
import torch
from answering import strengthen
from rounding import of_model

from danlu.data.batches.packing import collate
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.device import Device
from danlu.generate.batch.core import LENT_TOKENS
from danlu.generate.engine import Engine
from danlu.model.adapters import LoraOptions, attach
from danlu.model.likelihood import compute_twice, prepare
from danlu.model.load import load_model, load_tokenizer
from danlu.train.policy import ModelPolicy
from danlu.train.rollout import Prompt, example_of

CPU = Device("cpu", 1, 2**34, False)
PROMPTS = [Prompt((), tuple(range(5, 45)), "p:1"), Prompt((), tuple(range(50, 75)), "p:2")]


@pytest.fixture
def policy(tiny_model):
    model = attach(strengthen(load_model(tiny_model, device=CPU, dtype=torch.float32)), LoraOptions(lora_dropout=0), 0)
    prepare(model)
    chat = Chat.of(load_tokenizer(tiny_model), model.get_base_model().generation_config)
    return ModelPolicy(
        model, Engine.around(model, chat), CPU, temperature=1.0, max_new_tokens=LENT_TOKENS, has_value=False
    )


def test_a_prompt_is_read_once_for_all_answers_to_it(policy, monkeypatch):
    """By those who draw, and by those who look at what was drawn."""
    core, read = policy._engine.core, []
    run = core._run
    monkeypatch.setattr(core, "_run", lambda token_ids, *more: read.append(len(token_ids)) or run(token_ids, *more))
    drawn = policy.draw(PROMPTS, [1, 2], answers=4)
    answers = [one.answer for one in drawn]
    assert len({answer.answer_ids for answer in answers}) == len(answers) == 8
    needed = sum(len(prompt.token_ids) for prompt in PROMPTS) + sum(len(answer.answer_ids) for answer in answers)
    assert needed - len(answers) <= sum(read) <= needed  # the last token of an answer need not be read
    assert collate([example_of(answer) for answer in answers]).tokens == needed


def test_what_the_engine_notes_is_what_the_model_says(policy):
    """After weights have changed as well: the engine holds nothing of them between two rollouts."""
    for _ in range(2):
        drawn = policy.draw(PROMPTS, [1, 2], answers=2)
        own, _ = policy.look(collate([example_of(one.answer) for one in drawn]))
        noted = torch.tensor([value for one in drawn for value in one.log_probs])
        tolerance = of_model(own, policy._model.get_base_model().config)
        torch.testing.assert_close(noted, own, atol=tolerance, rtol=0)
        with torch.no_grad():
            for name, weight in policy._model.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.05)


def test_a_policy_whose_blocks_compute_twice_draws_the_same(policy):
    """They do so in training alone; the engine keeps its keys and values."""
    wanted = [one.answer.answer_ids for one in policy.draw(PROMPTS, [1, 2], answers=2)]
    compute_twice(policy._model)
    policy.look(collate([Example(tuple(range(5, 25)), (False, *[True] * 19))]))  # which puts it in training
    assert [one.answer.answer_ids for one in policy.draw(PROMPTS, [1, 2], answers=2)] == wanted


def test_nothing_of_a_rollout_is_held_when_it_is_over(policy):
    def held():
        gc.collect()
        core = policy._engine.core
        return core.decoder, core.weight_bytes, core.store.used_bytes

    before = held()
    for _ in range(2):
        policy.draw(PROMPTS, [1, 2], answers=2)
        assert held() == before
