"""How far two forms of a model are apart: against sums worked out by hand, and against themselves."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from answering import PROMPTS, fixed_scores, strong_engine

from danlu import Engine
from danlu.errors import ConfigError, ParityError
from danlu.quantize.divergence import Divergence, divergence, own_text


@pytest.fixture
def reference(tiny_model):
    return strong_engine(tiny_model)


@pytest.fixture
def other(reference):
    return Engine.around(copy.deepcopy(reference._model), reference.chat)


def text_of(engine, prompts=PROMPTS, new_tokens=5):
    return own_text(engine, prompts, new_tokens=new_tokens, seed=1)


def test_own_text_has_the_length_asked_for_and_repeats(reference):
    text = text_of(reference)
    assert [len(one.sequences[0].token_ids) for one in text] == [5] * len(PROMPTS)
    assert text == text_of(reference)


def test_a_model_and_its_copy_do_not_differ(reference, other):
    assert divergence(reference, other, text_of(reference)) == Divergence(20, 0.0, 0.0, 1.0)


def test_sum_by_hand(reference, other, monkeypatch):
    text = text_of(reference, PROMPTS[:1], new_tokens=3)
    vocab = reference._model.config.vocab_size
    everything = dict.fromkeys(range(vocab), -50.0)
    fixed_scores(reference, monkeypatch, everything | {7: math.log(3), 9: 0.0})  # p = 3/4, 1/4
    fixed_scores(other, monkeypatch, everything | {7: 0.0, 9: 0.0})  # q = 1/2, 1/2; both put 7 first
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = divergence(reference, other, text)
    assert (found.positions, found.same_choice) == (3, 1.0)
    assert found.mean_kl == pytest.approx(by_hand, rel=1e-5)
    assert found.largest_kl == pytest.approx(by_hand, rel=1e-5)


def test_only_answer_tokens_count(reference, other):
    text = text_of(reference, PROMPTS[:1], new_tokens=2)
    with torch.no_grad():
        other._model.lm_head.weight.mul_(1.1)
    ids = [*text[0].prompt_token_ids, *text[0].sequences[0].token_ids]
    p, q = (engine.logits(ids)[-3:-1].double().log_softmax(-1) for engine in (reference, other))
    expected = (p.exp() * (p - q)).sum(-1)
    found = divergence(reference, other, text)
    assert found.positions == 2
    assert found.mean_kl == pytest.approx(float(expected.mean()))
    assert found.largest_kl == pytest.approx(float(expected.max()))
    assert found.mean_kl > 0


def test_bfloat16_moves_the_distribution_a_little(reference, other):
    other._model.bfloat16()
    found = divergence(reference, other, text_of(reference))
    assert 0 < found.mean_kl < 0.1


def test_a_divergence_that_is_no_number_is_an_error(reference, other):
    text = text_of(reference)
    with torch.no_grad():
        other._model.lm_head.weight[3] = math.nan
    with pytest.raises(ParityError, match="divergence is nan"):
        divergence(reference, other, text)


def test_no_text_is_an_error(reference, other):
    with pytest.raises(ConfigError, match="no answer tokens"):
        divergence(reference, other, [])
