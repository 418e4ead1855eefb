"""When the engine's thread gives freed memory back."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from danlu import Engine, GenerationParams
from danlu.errors import ConfigError
from danlu.generate.batch import worker
from danlu.generate.batch.worker import Spare
from tiny import make_tiny_model


@pytest.fixture
def system(monkeypatch):
    """What the system says is in nobody's use, and how often it was given some."""
    told = {"other": 500, "given": 0}

    def give_back():
        told["given"] += 1
        told["other"] = min(told["other"], 300)

    monkeypatch.setattr(worker, "memory_parts", lambda: {"other": told["other"]})
    monkeypatch.setattr(worker, "give_back_memory", give_back)
    return told


def test_only_what_came_since_it_was_given_back_counts(system):
    spare = Spare()
    assert (spare.grown_bytes, system["given"]) == (0, 1)  # what loading left behind goes first
    system["other"] = 750
    assert spare.grown_bytes == 450
    spare.give_back()
    assert (spare.grown_bytes, system["given"]) == (0, 2)


def test_what_was_taken_into_use_again_does_not_count(system):
    spare = Spare()
    for other, grown in ((350, 50), (200, 0), (350, 150)):
        system["other"] = other
        assert spare.grown_bytes == grown


def test_where_the_system_does_not_tell_nothing_has_grown(monkeypatch):
    monkeypatch.setattr(worker, "memory_parts", lambda: {"resident": 10**9})
    assert Spare().grown_bytes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
@pytest.mark.parametrize("is_warm", [True, False])
def test_a_fork_of_a_process_whose_engine_works_is_told_so(tmp_path, is_warm):
    """It has no thread that would answer. Before the first request there is none to be lost."""
    engine, params = Engine(str(make_tiny_model(tmp_path))), GenerationParams(max_new_tokens=3)
    if is_warm:
        engine.generate(["one two"], params)
    ours, theirs = multiprocessing.Pipe()

    def ask() -> None:
        try:
            theirs.send(engine.generate(["one two"], params)[0].sequences[0].token_ids)
        except ConfigError as error:
            theirs.send(str(error))
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=ask)
    child.start()
    assert ours.poll(60), "it hangs"
    found = ours.recv()
    child.join()
    if is_warm:
        assert f"in process {child.pid}, a fork of it" in found
    assert is_warm or found == engine.generate(["one two"], params)[0].sequences[0].token_ids
    engine.close()
