"""When the engine's thread gives freed memory back."""

from __future__ import annotations

import pytest

from danlu.generate.batch import worker
from danlu.generate.batch.worker import Spare


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
