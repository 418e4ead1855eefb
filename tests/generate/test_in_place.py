"""An engine without a thread of its own: whoever waits for an answer computes it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager

import pytest
from answering import GREEDY, PROMPTS, ids_of

from danlu import Engine
from danlu.errors import ConfigError, Interrupted


@pytest.fixture
def in_place(engine):
    return Engine.around(engine._model, engine.chat, in_place=True)


@contextmanager
def breaking(engine, error, monkeypatch):
    """Every forward pass in here raises."""

    def broken(work):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine.core, "_forward", broken)
        yield


def test_it_answers_as_one_with_a_thread_and_starts_none(engine, in_place):
    before = set(threading.enumerate())
    assert ids_of(in_place) == ids_of(Engine.around(engine._model, engine.chat))
    mine = [thread for thread in threading.enumerate() if thread not in before and thread.name == "danlu-engine"]
    assert ids_of(in_place, do_sample=True, seed=7) == ids_of(engine, do_sample=True, seed=7)
    assert len(mine) <= 1, "the other's"
    assert in_place.logits([5, 6]).shape[0] == 2
    assert "".join(event.text for event in in_place.stream(PROMPTS[0], GREEDY)) == engine.chat.decode(ids_of(engine)[0])


def test_of_two_that_ask_at_once_each_gets_its_own(engine, in_place):
    expected = ids_of(engine)
    found = {}

    def ask(at):
        found[at] = ids_of(in_place, [PROMPTS[at]])[0]

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[at] for at in range(len(PROMPTS))] == expected


def test_a_step_that_fails_ends_what_runs_and_no_more(engine, in_place, monkeypatch):
    with breaking(in_place, RuntimeError("a bad step"), monkeypatch), pytest.raises(RuntimeError, match="a bad step"):
        ids_of(in_place)
    assert ids_of(in_place) == ids_of(engine)


def test_who_stops_in_the_middle_of_a_step_may_ask_again(engine, in_place, monkeypatch):
    with breaking(in_place, KeyboardInterrupt(), monkeypatch), pytest.raises(KeyboardInterrupt):
        ids_of(in_place)
    assert in_place.core.is_idle
    assert ids_of(in_place) == ids_of(engine)


def test_what_nobody_waits_for_is_refused(in_place):
    with pytest.raises(ConfigError, match="in the thread that waits"):
        asyncio.run(in_place.agenerate(PROMPTS[0], GREEDY))


def test_a_closed_one_says_so(in_place):
    in_place.close()
    with pytest.raises(Interrupted, match="closed"):
        ids_of(in_place)
    in_place.close()
