"""Held-out figures: losses by hand, answers beside their references, differences with intervals."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import of_model

from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.formats import Conversation
from danlu.device import Device
from danlu.evaluate.bootstrap import bootstrap_difference
from danlu.evaluate.held_out import Measured, Question, differences, example_losses, measure
from danlu.evaluate.overlap import chrf
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.model.adapters import attach
from danlu.model.likelihood import prepare
from danlu.model.load import load_model, load_tokenizer
from danlu.model.lora_options import LoraOptions
from tiny import make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A prepared model of large random weights, its plain twin, its chat, and what `by_hand` makes of each example.

    By hand now: an engine wires the twin, whose own pass is then no longer there.
    """
    directory = make_tiny_model(tmp_path_factory.mktemp("model"))
    models = []
    for _ in range(2):
        model = load_model(directory, device=CPU, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" not in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        models.append(model)
    prepared = attach(models[1], LoraOptions(lora_dropout=0.5), seed=0)
    prepare(prepared)
    wanted = [by_hand(models[0], one) for one in EXAMPLES]
    return prepared, models[0], Chat.of(load_tokenizer(directory), models[0].generation_config), wanted


EXAMPLES = [
    Example((5, 60, 7), (False, True, True), "a:1", "a"),
    Example((9, 8, 7, 6, 5, 4, 200, 201), (False, False, True, False, True, True, True, True), "a:2", "a"),
    Example((11, 12), (False, True), "b:1", "b"),
    Example((30, 31, 32, 33, 34), (False, False, False, False, True), "c:1", "c"),
]


def by_hand(model, example):
    """-log softmax of each learnt token, summed in plain Python; and how far rounding may carry the sum."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([example.token_ids])).logits[0]
    rows, total = scores.double().tolist(), 0.0
    for at in range(1, len(example.token_ids)):
        if example.learnt[at]:
            row = rows[at - 1]
            total += math.log(sum(math.exp(score) for score in row)) - row[example.token_ids[at]]
    return pytest.approx(total, abs=sum(example.learnt) * of_model(scores.log_softmax(-1), model.config))


@pytest.mark.parametrize("max_tokens", [1, 8, 10, 4096])
def test_losses_by_hand_in_order_however_the_batches_are_cut(parts, max_tokens):
    prepared, _, _, wanted = parts
    prepared.train()  # dropout must not act
    seen = example_losses(prepared, EXAMPLES, CPU, max_tokens)
    assert [weight for _, weight in seen] == [2.0, 5.0, 1.0, 1.0]
    assert [total for total, _ in seen] == wanted


def conversation(question, answer, place, group=None, system=None):
    messages = [{"role": "user", "content": question}] if question is not None else []
    messages += [{"role": "assistant", "content": answer}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(tuple(messages), place, group=group)


QUESTIONS = [
    Question(conversation("one two", "three four", "q:1", "a")),
    Question(conversation("丹炉", "把数据炼成模型", "q:2", "b", system="Be brief.")),
]


def test_a_question_is_what_comes_before_its_reference():
    question = QUESTIONS[1]
    assert [message["role"] for message in question.messages] == ["system", "user"]
    assert (question.prompt, question.reference) == ("丹炉", "把数据炼成模型")


def test_measuring_is_losses_greedy_answers_and_their_overlap(parts):
    prepared, plain, chat, _ = parts
    engine = Engine.around(prepared, chat)
    seen = measure(prepared, engine, EXAMPLES, QUESTIONS, CPU, max_tokens=16, max_new_tokens=9)
    assert seen.values["loss"] == example_losses(prepared, EXAMPLES, CPU, 16)
    greedy = Engine.around(plain, chat)
    params = GenerationParams(max_new_tokens=9)
    assert seen.answers == [greedy.generate([q.messages], params)[0].text.strip() for q in QUESTIONS]
    assert [value for value, _ in seen.values["overlap"]] == [
        chrf(a, q.reference) for a, q in zip(seen.answers, QUESTIONS, strict=True)
    ]


def test_without_questions_nothing_is_answered(parts):
    prepared, _, chat, _ = parts
    seen = measure(prepared, Engine.around(prepared, chat), EXAMPLES, [], CPU, max_tokens=16, max_new_tokens=9)
    assert (seen.answers, list(seen.values)) == ([], ["loss"])


def test_a_conversation_that_an_answer_opens_can_be_measured(parts):
    prepared, _, chat, _ = parts
    opened = [Question(conversation(None, "hello", "q:3"))]
    seen = measure(prepared, Engine.around(prepared, chat), EXAMPLES, opened, CPU, max_tokens=16, max_new_tokens=3)
    assert len(seen.answers) == 1


def looked(losses, overlaps=(), ended=()):
    values = {"loss": losses, "overlap": [(v, 1.0) for v in overlaps], "ended": [(100.0 * e, 1.0) for e in ended]}
    return Measured({name: items for name, items in values.items() if items})


def test_a_summary_by_hand():
    measured = looked([(6.0, 2.0), (3.0, 4.0)], [10.0, 40.0], [True, False])
    # 9 nats over 6 tokens; exp(1.5) = 4.4817; (10 + 40) / 2
    assert measured.summary() == pytest.approx({"loss": 1.5, "perplexity": 4.481689, "overlap": 25.0, "ended": 50.0})


def test_differences_are_after_minus_before_over_whole_groups():
    before = looked([(8.0, 2.0), (4.0, 1.0), (6.0, 3.0)], [10.0, 20.0, 30.0], [False] * 3)
    after = looked([(4.0, 2.0), (2.0, 1.0), (3.0, 3.0)], [40.0, 20.0, 60.0], [True] * 3)
    groups, asked = ["a", "a", "b"], ["a", "b", "b"]
    seen = differences(before, after, {"loss": groups, "overlap": asked, "ended": asked})
    assert seen["loss"].value == pytest.approx(9 / 6 - 18 / 6)
    assert seen["overlap"].value == pytest.approx(40 - 20)
    assert seen["loss"] == bootstrap_difference(before.values["loss"], after.values["loss"], groups)
    assert seen["overlap"] == bootstrap_difference(before.values["overlap"], after.values["overlap"], asked)
    assert seen["ended"].value == pytest.approx(100)
    assert seen["loss"].excludes_zero


def test_without_answers_only_the_loss_is_compared():
    before, after = looked([(2.0, 1.0)] * 3), looked([(1.0, 1.0)] * 3)
    assert set(differences(before, after, {"loss": ["a", "b", "c"], "overlap": []})) == {"loss"}
