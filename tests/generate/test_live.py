"""The engine for asyncio: the answers of the blocking form, and nothing left behind when a reader goes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from answering import alive
from serving import is_idle
from waiting import passes_of, until, wait_until

from danlu import Engine, GenerationParams
from danlu.errors import ConfigError
from danlu.generate.requests import Job
from danlu.generate.scores.text import TextStream
from danlu.generate.search.rows import RowStates
from danlu.generate.watching.live import LiveAnswers
from tiny import make_golden_model

KNOBS = [
    {},
    {"do_sample": True, "seed": 4, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"stop_sequences": ["e"], "logprobs": 1},
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = Engine(str(make_golden_model(tmp_path_factory.mktemp("live"), "llama")), dtype="float32")
    yield made
    made.close()


@pytest.mark.parametrize("knobs", KNOBS)
def test_the_same_answers_as_the_blocking_form(engine, knobs):
    params = GenerationParams(max_new_tokens=12, **knobs)
    (expected,) = engine.generate(["the quick"], params)
    assert asyncio.run(engine.agenerate("the quick", params)) == expected

    async def pieces():
        return [event async for event in engine.astream("the quick", params)]

    events = asyncio.run(pieces())
    for index, answer in enumerate(expected.sequences):
        mine = [event for event in events if event.index == index]
        assert "".join(event.text for event in mine) == answer.text
        assert sum((event.token_ids for event in mine), ()) == answer.token_ids
        assert [event.answer for event in mine if event.answer] == [answer]


def test_many_at_once_are_answered_as_alone(engine):
    params = [GenerationParams(max_new_tokens=10, **KNOBS[at % 4]) for at in range(24)]

    async def all_of_them():
        return await asyncio.gather(*(engine.agenerate(f"say {at}", one) for at, one in enumerate(params)))

    for at, made in enumerate(asyncio.run(all_of_them())):
        alone = engine.generate([f"say {at}"], params[at])[0]
        assert [one.token_ids for one in made.sequences] == [one.token_ids for one in alone.sequences]
        assert [one.text for one in made.sequences] == [one.text for one in alone.sequences]


def test_faults_come_before_any_work(engine):
    with pytest.raises(ConfigError, match="empty"):
        asyncio.run(engine.agenerate(""))


def test_a_reader_who_goes_ends_the_work(engine):
    params = GenerationParams(max_new_tokens=400, eos_token_id=())

    async def leave():
        async with aclosing(engine.astream("the", params)) as events:
            async for _ in events:
                break
        await until(lambda: is_idle(engine))
        task = asyncio.create_task(engine.agenerate("the", params))
        await until(lambda: engine.load.running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with passes_of(engine) as passes:
        asyncio.run(leave())
        wait_until(lambda: is_idle(engine))
    assert passes.made < 2 * 400  # neither came to its end


def test_200_that_are_cancelled_leave_nothing_behind(engine):
    kinds = (Job, LiveAnswers, RowStates, TextStream)
    before = alive(*kinds)
    params = [GenerationParams(max_new_tokens=400, eos_token_id=(), **KNOBS[at % 3]) for at in range(200)]

    async def cancel_all():
        tasks = [asyncio.create_task(engine.agenerate(f"say {at}", one)) for at, one in enumerate(params)]
        while not engine.load.running:
            await asyncio.sleep(0)
        for at, task in enumerate(tasks):
            task.cancel()
            if at % 20 == 0:
                await asyncio.sleep(0)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in ends} == {asyncio.CancelledError}

    asyncio.run(cancel_all())
    engine.logits([5])  # what was asked for before this is done
    assert engine.core.is_idle
    assert engine.load.kv_bytes == 0
    wait_until(lambda: alive(*kinds) <= before)  # a prompt that is just being read is let go after that


def test_a_loop_that_has_ended_does_not_hurt_the_engine(engine):
    async def abandon():
        return await engine.aopen("the", GenerationParams(max_new_tokens=60, eos_token_id=()))

    live = asyncio.run(abandon())
    (answer,) = engine.generate(["one"], GenerationParams(max_new_tokens=5, eos_token_id=()))[0].sequences
    assert len(answer.token_ids) == 5
    live.close()
