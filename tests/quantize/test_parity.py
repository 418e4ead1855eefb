"""The gate: equal ids, equal logits, equal answers, or an error that says where they part."""

from __future__ import annotations

import copy

import pytest
import torch
from answering import strong_engine

from danlu import Engine
from danlu.data.chat import Chat
from danlu.data.tokens.templates import CHATML
from danlu.errors import ParityError
from danlu.quantize.parity import Parity, check_parity

CONVERSATIONS = [
    [{"role": "user", "content": text}] for text in ("one two three", "丹炉", "what is the capital of France?")
]


@pytest.fixture
def first(tiny_model):
    return strong_engine(tiny_model)


@pytest.fixture
def second(first):
    return Engine.around(copy.deepcopy(first._model), first.chat)


def check(first, second, conversations=CONVERSATIONS, tolerance=1e-3):
    return check_parity(first, second, conversations, tolerance=tolerance, max_new_tokens=6)


@torch.no_grad()
def change(engine, by):
    engine._model.model.layers[1].mlp.down_proj.weight.add_(by)


def test_a_model_agrees_with_its_copy(first, second):
    parity = check(first, second)
    assert parity == Parity(prompts=3, answer_tokens=18, largest_logit_difference=0.0, tolerance=1e-3)
    assert parity.to_dict()["answer_tokens"] == 18


def test_a_small_difference_is_measured(first, second):
    change(second, 1e-6)
    parity = check(first, second)
    ids = [*first.chat.prompt(CONVERSATIONS[0]), *first.generate([CONVERSATIONS[0]])[0].sequences[0].token_ids[:6]]
    assert 0 < parity.largest_logit_difference < 1e-3
    assert parity.largest_logit_difference >= float((first.logits(ids) - second.logits(ids)).abs().max())


def test_logits_past_the_tolerance_are_refused(first, second):
    change(second, 1e-6)
    with pytest.raises(ParityError, match=r"prompt 0: logits differ by .*\n  allowed: .* at most 1e-09"):
        check(first, second, tolerance=1e-9)


def test_other_answers_are_shown_side_by_side(first, second):
    change(second, torch.randn(32, 64, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ParityError) as caught:
        check(first, second)
    one, other = (engine.generate([CONVERSATIONS[0]])[0].sequences[0].token_ids[:6] for engine in (first, second))
    place = next(at for at in range(6) if one[at] != other[at])
    shown = [repr(first.chat.decode(ids[place:])) for ids in (one, other)]
    assert f"prompt 0: greedy answers differ from token {place} on: {shown[0]} and {shown[1]}" in caught.value.seen
    assert "logits differ by" in caught.value.seen
    assert "merge.dtype=float32" in caught.value.fix


def test_the_first_prompt_that_differs_is_named(first, second, monkeypatch):
    own, calls = second.logits, []

    def logits(ids):
        calls.append(ids)
        return own(ids) + (0.5 if len(calls) == 3 else 0)

    monkeypatch.setattr(second, "logits", logits)
    with pytest.raises(ParityError, match=r"prompt 2: logits differ by 0\.5"):
        check(first, second)


def test_an_answer_that_ends_earlier_is_another_answer(first, second):
    ids = first.generate([CONVERSATIONS[0]])[0].sequences[0].token_ids
    second = Engine.around(second._model, Chat(first.chat.tokenizer, frozenset({ids[3]})))
    with pytest.raises(ParityError, match=r"prompt \d: greedy answers differ from token \d on: .* and '\(the end\)'"):
        check(first, second)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_never_pass(first, second, value, monkeypatch):
    own = second.logits
    monkeypatch.setattr(second, "logits", lambda ids: own(ids) * 0 + value)
    with pytest.raises(ParityError, match=r"logits differ by (nan|inf)"):
        check(first, second, tolerance=1e6)


def test_another_chat_template_is_found_by_its_ids(first, second):
    second.chat = Chat(first.chat.tokenizer, first.chat.stop_ids, CHATML.replace("user", "x") + "!")
    with pytest.raises(ParityError, match=r"prompt 0: the rendered ids differ from token \d+ on: \[.*\] and \[.*\]"):
        check(first, second)


def test_of_two_templates_the_place_where_they_part_is_named(first, second):
    own = first.chat.prompt(CONVERSATIONS[0])
    second.chat = Chat(first.chat.tokenizer, first.chat.stop_ids, first.chat.tokenizer.chat_template + "!")
    with pytest.raises(ParityError) as caught:
        check(first, second)
    other = second.chat.prompt(CONVERSATIONS[0])
    assert other == [*own, *first.chat.tokenizer("!")["input_ids"]]
    assert f"from token {len(own)} on: [] and {other[len(own) :]}" in caught.value.seen
