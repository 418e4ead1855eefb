"""Threads of a step beside other processes."""

from __future__ import annotations

import threading

import pytest

from danlu.generate.batch import neighbours as module
from danlu.generate.batch.neighbours import LOOK_SECONDS, Neighbours, threads_beside
from danlu.model.compute.threads import keep_to, threads


@pytest.mark.parametrize(
    ("others", "now", "cores", "most", "wanted"),
    [
        (0.0, 2, 2, 2, 2),
        (0.3, 2, 2, 2, 2),  # a little does not count
        (0.5, 2, 2, 2, 1),
        (1.0, 1, 2, 2, 1),
        (0.3, 1, 2, 2, 1),  # nor is it enough to go back
        (0.1, 1, 2, 2, 2),
        (2.0, 2, 2, 2, 1),  # one there always is
        (1.0, 16, 16, 16, 15),
        (9.5, 16, 16, 16, 6),
        (0.0, 6, 16, 16, 16),
        (9.0, 4, 16, 4, 4),  # room enough for so few
    ],
)
def test_threads_beside_others(others, now, cores, most, wanted):
    assert threads_beside(others, now, cores, most) == wanted


class Clock:
    """Seconds that passed, those that all have worked, and those that this process has."""

    def __init__(self, monkeypatch):
        self.now = self.used = self.own = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.time, "process_time", lambda: self.own)
        monkeypatch.setattr(module, "_used", lambda: self.used)
        monkeypatch.setattr(module, "own_cores", lambda: [0, 1])

    def go_on(self, seconds, others, own):
        self.now += seconds
        self.used += seconds * (others + own)
        self.own += seconds * own


def test_a_neighbour_comes_and_goes(monkeypatch):
    clock = Clock(monkeypatch)
    found = Neighbours(2)
    clock.go_on(LOOK_SECONDS / 2, others=1.0, own=1.0)
    assert (found.look(), found.threads) == (False, 2)  # too soon
    clock.go_on(LOOK_SECONDS / 2, others=0.7, own=1.3)
    assert (found.look(), found.threads) == (True, 1)
    clock.go_on(LOOK_SECONDS, others=1.0, own=1.0)
    assert (found.look(), found.threads) == (False, 1)
    clock.go_on(LOOK_SECONDS, others=0.0, own=1.0)
    assert (found.look(), found.threads) == (True, 2)


def test_one_thread_has_nothing_to_give_up(monkeypatch):
    clock = Clock(monkeypatch)
    found = Neighbours(1)
    clock.go_on(1.0, others=2.0, own=0.0)
    assert (found.look(), found.threads) == (False, 1)


def test_the_machine_tells():
    assert module._used() > 0
    assert module.own_cores()


def test_what_a_thread_is_told_is_its_own():
    before, found = threads(), []

    def work():
        keep_to(1)
        found.append(threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]
    assert threads() == before


def test_after_a_rest_a_long_step_waits_to_see_who_is_there(monkeypatch):
    clock = Clock(monkeypatch)
    found, there = Neighbours(2), 1.0
    monkeypatch.setattr(module.time, "sleep", lambda seconds: clock.go_on(seconds, others=there, own=0.0))
    new_prompt = {"after_rest": True, "is_long": True}
    assert (found.look(**new_prompt), clock.now) == (False, 0.0)  # no thread was given up: nothing to wait for
    clock.go_on(LOOK_SECONDS, others=1.0, own=1.0)
    assert (found.look(), found.threads) == (True, 1)
    assert (found.look(**new_prompt), found.threads) == (False, 1)  # it is there still
    there = 0.0
    assert (found.look(after_rest=True), found.threads) == (False, 1)  # too soon
    assert (found.look(**new_prompt), found.threads) == (True, 2)


def test_what_was_there_in_a_long_rest_is_not_held_against_now(monkeypatch):
    clock = Clock(monkeypatch)
    found = Neighbours(2)
    clock.go_on(60.0, others=1.0, own=0.0)
    assert (found.look(after_rest=True), found.threads) == (False, 2)
    clock.go_on(LOOK_SECONDS, others=0.1, own=1.9)
    assert (found.look(), found.threads) == (False, 2)


def test_short_work_with_short_rests_between_is_seen_as_one(monkeypatch):
    clock = Clock(monkeypatch)
    found = Neighbours(2)
    for _ in range(3):
        clock.go_on(LOOK_SECONDS / 2, others=1.0, own=0.5)
        found.look(after_rest=True)
    assert found.threads == 1
