"""What repeats is counted exactly, in memory and from files."""

import random
from collections import Counter, defaultdict

import pytest

from danlu.data.look import digests
from danlu.data.look.digests import Digests, digest


def pairs(seed, count):
    draw = random.Random(seed)
    return [(draw.randrange(60), draw.randrange(3)) for _ in range(count)]


def digests_of(rows):
    made = Digests()
    for question, answer in rows:
        asked = digest(b"%d" % question)
        made.add(asked, digest(asked + b"%d" % answer))
    return made


@pytest.mark.parametrize("at_once", [7, 1000])
def test_what_repeats(monkeypatch, at_once):
    monkeypatch.setattr(digests, "AT_ONCE", at_once)
    one, other = pairs(1, 100), pairs(2, 30)
    answers = defaultdict(set)
    for question, answer in one:
        answers[question].add(answer)
    mine, theirs = digests_of(one), digests_of(other)
    assert bool(mine._files) is (at_once == 7)
    assert len(mine) == 100
    for _ in range(2):  # asking changes nothing
        assert mine.repeats() == (100 - len(Counter(one)), sum(len(each) > 1 for each in answers.values()))
        assert mine.distinct() == len(answers)
        assert theirs.found_in(mine) == (sum(row in one for row in other), sum(row[0] in answers for row in other))
    mine.add(digest(b"new"), digest(b"new"))
    assert mine.distinct() == len(answers) + 1


def test_nothing_repeats_in_nothing():
    assert (Digests().repeats(), Digests().distinct()) == ((0, 0), 0)


def test_what_is_held_in_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(digests, "AT_ONCE", 10)
    made = Digests()
    for at in range(95):
        made.add(digest(b"%d" % at), digest(b"%d" % at))
        assert len(made._held) < 10 * 32
    assert made.distinct() == 95
