"""Log-probabilities: the model's own, whatever the knobs, recorded once as tokens are chosen."""

from __future__ import annotations

import asyncio
import math

import pytest
from answering import GREEDY, PROMPTS, answers
from rounding import of_model

from danlu import Engine, GenerationParams
from danlu.errors import ConfigError, FaultyScores
from danlu.generate import outcomes

KNOBS = {
    "greedy": {},
    "beam": {"num_beams": 2, "num_return_sequences": 2},
    "penalties": {"repetition_penalty": 3.0, "logit_bias": {7: 4.0}, "no_repeat_ngram_size": 1},
    "sample": {"do_sample": True, "seed": 2, "num_return_sequences": 3, "temperature": 1.7, "top_k": 5},
    "no cache": {"use_cache": False},
}
# All answers end at once, or one after another by their own end.
ENDS = {"length": {"eos_token_id": []}, "ends": {"eos_token_id": list(range(0, 300, 12))}}


def check(engine, prompt_ids, answer, top):
    """Against one forward pass over prompt and answer."""
    expected = engine.logits([*prompt_ids, *answer.token_ids])[len(prompt_ids) - 1 : -1].log_softmax(-1)
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    assert_near(answer.logprobs, expected, top, engine._model.config)


def assert_near(entries, expected, top, config):
    """expected: (tokens, vocabulary)"""
    tolerance = of_model(expected, config)
    for entry, row in zip(entries, expected, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=tolerance)
        assert [value for _, value in entry.top] == pytest.approx(row.topk(top).values.tolist(), abs=tolerance)
        assert all(value == pytest.approx(float(row[token]), abs=tolerance) for token, value in entry.top)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", KNOBS)
def test_they_are_those_of_a_second_pass(engine, name, ends):
    params = GenerationParams(logprobs=3, max_new_tokens=10, **KNOBS[name], **ENDS[ends])
    for made in engine.generate(PROMPTS[:2], params):
        for answer in made.sequences:
            check(engine, made.prompt_token_ids, answer, 3)


def test_no_second_pass_is_made(engine, monkeypatch):
    monkeypatch.setattr(engine.core, "logits", lambda *_: 1 / 0)
    (answer,) = answers(engine, [PROMPTS[0]], logprobs=0, eos_token_id=[])
    assert len(answer.logprobs) == 12
    assert answer.logprobs[0].top == ()


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", KNOBS)
def test_they_are_streamed_with_their_tokens(engine, name, ends):
    params = GenerationParams(logprobs=2, max_new_tokens=12, **KNOBS[name], **ENDS[ends])
    events = [event for event in engine.stream(PROMPTS[0], params) if event.leading is None]
    for event in events:
        assert [entry.token_id for entry in event.logprobs] == list(event.token_ids)
    for at in range(params.num_return_sequences):
        own = [event for event in events if event.index == at]
        assert tuple(entry for event in own for entry in event.logprobs) == own[-1].answer.logprobs
        assert len(own) > 2 or params.num_beams > 1 or ends == "ends"


def test_what_nobody_asked_for_is_not_made(engine):
    assert engine._job(PROMPTS[0], GREEDY).ledger is None
    assert all(event.logprobs is None for event in engine.stream(PROMPTS[0], GREEDY))


def test_a_request_that_gave_way_has_each_entry_once(engine):
    crowded = Engine.around(engine._model, engine.chat, kv_budget_bytes=2**18)
    kinds = list(KNOBS.values())[:4]
    params = [
        GenerationParams(logprobs=2, max_new_tokens=90, eos_token_id=(), **kinds[at % len(kinds)]) for at in range(8)
    ]
    for made in crowded.generate([PROMPTS[2]] * len(params), params):
        for answer in made.sequences:
            assert len(answer.token_ids) == 90
            check(engine, made.prompt_token_ids, answer, 2)
    assert crowded.core.scheduler.preemptions > 0
    crowded.close()


@pytest.mark.parametrize("portion", [512, 5])
def test_a_prompt_is_scored(engine, monkeypatch, portion):
    monkeypatch.setattr(outcomes, "SCORED_AT_ONCE", portion)
    ids = engine.token_ids(PROMPTS[2])
    expected = engine.logits(ids).log_softmax(-1)
    for seen in (
        engine.prompt_logprobs(PROMPTS[2], top=2),
        engine.prompt_logprobs(ids, top=2),
        asyncio.run(engine.aprompt_logprobs(ids, top=2)),
    ):
        assert [entry.token_id for entry in seen] == ids[1:]
        assert_near(seen, expected[:-1], 2, engine._model.config)


def test_what_cannot_be_scored_is_said(engine):
    assert engine.prompt_logprobs([5]) == ()
    with pytest.raises(ConfigError, match="token id 1000000"):
        engine.prompt_logprobs([10**6])
    with pytest.raises(ConfigError, match="empty"):
        engine.prompt_logprobs("")
    engine._model.get_input_embeddings().weight.data[7] = math.nan
    with pytest.raises(FaultyScores, match="not numbers"):
        engine.prompt_logprobs([5, 7, 9])


def test_a_reader_who_goes_ends_the_scoring_after_a_portion(engine, monkeypatch):
    monkeypatch.setattr(outcomes, "SCORED_AT_ONCE", 1)
    own, begun = engine.core.logits, []
    monkeypatch.setattr(engine.core, "logits", lambda *given: begun.append(1) or own(*given))

    async def leave():
        task = asyncio.create_task(engine.aprompt_logprobs([5] * 400))
        while len(begun) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    engine.logits([5])  # what was asked for before this is done
    assert len(begun) < 300
