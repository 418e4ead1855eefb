"""Searches over a vocabulary of three tokens, worked out by hand: 0 ends, 1 is "a", 2 is "b"."""

from __future__ import annotations

import math

import pytest
import torch

from danlu.errors import AllBanned
from danlu.generate.scores.constraints import Appearing
from danlu.generate.search.beams import Beam, BeamOptions
from danlu.generate.search.constrained import ConstrainedBeam
from danlu.generate.search.groups import GroupBeam
from danlu.generate.search.strategies import Hypothesis, Independent, Limits

EOS, A, B = 0, 1, 2

# p of (end, a, b), at the start and after each token.
START, AFTER_A, AFTER_B = (0.1, 0.6, 0.3), (0.2, 0.3, 0.5), (0.7, 0.2, 0.1)
TABLE = {(): START, A: AFTER_A, B: AFTER_B, EOS: (1 / 3, 1 / 3, 1 / 3)}


def scores_of(strategy, table):
    rows = [table[sequence[-1] if sequence else ()] for sequence in strategy.sequences]
    return torch.tensor(rows).log()


def search(strategy, table=TABLE, steps=20):
    """Run to the end; returns what went on after each step: the rows' sequences."""
    seen = []
    while steps:
        before = strategy.sequences
        step = strategy.choose(scores_of(strategy, table))
        if not step.tokens:
            return seen
        follows = [(*before[parent], token) for parent, token in zip(step.parents, step.tokens, strict=True)]
        assert follows == strategy.sequences
        assert strategy.progress()
        seen.append(follows)
        steps -= 1
    raise AssertionError("it does not come to an end")


def beam(beams=2, answers=2, max_new_tokens=3, stops=None, **options):
    limits = Limits(max_new_tokens, frozenset({EOS}), stops or (lambda _row, _token: False))
    return Beam(BeamOptions(beams, num_return_sequences=answers, **options), limits)


def log(*ps):
    return sum(math.log(p) for p in ps)


def is_answer(hypothesis, tokens, score, reason):
    assert (hypothesis.tokens, hypothesis.finish_reason) == (tokens, reason)
    assert hypothesis.score == pytest.approx(score, abs=1e-5)


# -- beam search


def test_beam_search_by_hand():
    """Of 4 candidates a step, those that end among the best 2 are finished, the best 2 that do not go on.

    1: a .6, b .3, end .1, (and a row that stands for none)        go on: a, b
    2: ab .30, b-end .21 finished, aa .18, a-end .12               go on: ab, aa
    3: ab-end .21 finished, aab .09 at its length, aba .06, ...    all at their end
    """
    search_ = beam()
    assert search(search_) == [[(A,), (B,)], [(A, B), (A, A)]]
    first, second = search_.results()
    is_answer(first, (A, B, EOS), log(0.6, 0.5, 0.7) / 3, "stop")  # -0.520
    is_answer(second, (B, EOS), log(0.3, 0.7) / 2, "stop")  # -0.780, before aab's -0.803


def test_a_larger_length_penalty_favours_longer_answers():
    search_ = beam(length_penalty=2.0)
    search(search_)
    first, second = search_.results()
    is_answer(first, (A, B, EOS), log(0.21) / 9, "stop")  # -0.173
    is_answer(second, (A, A, B), log(0.09) / 9, "length")  # -0.268, before b-end's -0.390
    short = beam(length_penalty=-1.0)
    search(short)
    first, second = short.results()
    is_answer(first, (B, EOS), log(0.21) * 2, "stop")
    is_answer(second, (A, B, EOS), log(0.21) * 3, "stop")


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "steps", "second"),
    [
        # After step 3 both are there: b-end -0.780, ab-end -0.520. Open: aab, log .09 = -2.408.
        (True, 1.0, 3, ((B, EOS), log(0.21) / 2)),
        # -2.408 / 3 = -0.803 is below the worst, -0.780.
        (False, 1.0, 3, ((B, EOS), log(0.21) / 2)),
        # At the longest, -2.408 / 4 = -0.602 is above it; step 4 finds aab-end, log .063 / 4 = -0.691.
        ("never", 1.0, 4, ((A, A, B, EOS), log(0.063) / 4)),
        # By length ** 2: -2.408 / 9 = -0.268 is above the worst, -0.390; step 4's log .063 / 16 = -0.1728 leads.
        (False, 2.0, 4, ((A, B, EOS), log(0.21) / 9)),
        (True, 2.0, 3, ((B, EOS), log(0.21) / 4)),
    ],
)
def test_when_beam_search_stops(early_stopping, length_penalty, steps, second):
    search_ = beam(max_new_tokens=4, early_stopping=early_stopping, length_penalty=length_penalty)
    assert len(search(search_)) == steps - 1
    is_answer(search_.results()[1], *second, "stop")


def test_a_finished_candidate_of_low_rank_is_dropped():
    """Of one beam's 2 candidates, a .6 and b .3 come before the end; it never finishes before its length."""
    table = {(): START, A: (0.3, 0.6, 0.1), B: AFTER_B}
    search_ = beam(beams=1, answers=1, max_new_tokens=4)
    search(search_, table)
    is_answer(search_.results()[0], (A,) * 4, log(0.6) * 4 / 4, "length")


# -- rows that stand for no hypothesis


ONLY_A = {(): (0, 1.0, 0), A: (0, 1.0, 0), B: (1 / 3,) * 3, EOS: (1 / 3,) * 3}


def group(beams=4, groups=2, answers=4, max_new_tokens=3, penalty=1.0, pad=EOS, stops=None, **options):
    limits = Limits(max_new_tokens, frozenset({EOS}), stops or (lambda _row, _token: False))
    return GroupBeam(BeamOptions(beams, num_return_sequences=answers, **options), groups, penalty, limits, pad)


def constrained(forced, beams=4, answers=4, max_new_tokens=3, stops=None):
    limits = Limits(max_new_tokens, frozenset({EOS}), stops or (lambda _row, _token: False))
    return ConstrainedBeam(BeamOptions(beams, num_return_sequences=answers), limits, Appearing(forced), ())


def test_what_is_not_there_is_not_returned():
    """One token is possible: there is one hypothesis, however many were asked for."""
    for strategy in (beam(4, 4), constrained([[(A,)]])):
        search(strategy, ONLY_A)
        assert [(one.tokens, one.score) for one in strategy.results()] == [((A,) * 3, 0.0)]
    diverse = group()  # one for each group; the second pays 1 a token
    search(diverse, ONLY_A)
    assert [(one.tokens, one.score) for one in diverse.results()] == [((A,) * 3, 0.0), ((A,) * 3, pytest.approx(-1.0))]


@pytest.mark.parametrize("make", [lambda: beam(4, 4, 6), lambda: group(max_new_tokens=6)])
def test_a_search_ends_when_nothing_possible_is_left(make):
    """After "a" only the end is possible: what finished is returned, and no row that filled a place."""
    table = {(): (0, 1.0, 0), A: (1.0, 0, 0), B: (1 / 3,) * 3, EOS: (1 / 3,) * 3}
    strategy = make()
    search(strategy, table)
    assert {one.tokens for one in strategy.results()} == {(A, EOS)}


@pytest.mark.parametrize("make", [lambda: beam(2, 2, 6), group, lambda: constrained([[(A,)]])])
def test_a_search_without_any_answer_says_so(make):
    dead = {(): (0, 1.0, 0), A: (0, 0, 0), B: (1 / 3,) * 3, EOS: (1 / 3,) * 3}
    with pytest.raises(AllBanned, match="every continuation is banned"):
        search(make(), dead)


def test_stop_sequences_may_end_every_candidate():
    ended = {beam(stops=lambda _row, _token: True): 2, group(stops=lambda _row, _token: True): 4}
    for strategy, count in ended.items():
        assert search(strategy) == []
        results = strategy.results()
        assert len(results) <= count
        assert {one.finish_reason for one in results} == {"stop"}
        is_answer(results[0], (A,), log(0.6), "stop")


def test_stop_sequences_may_end_all_candidates_but_one():
    """Only "b" goes on: of two rows, one fills its place, and nothing grows from it."""
    for make in (lambda stops: beam(stops=stops), lambda stops: group(2, 1, 2, penalty=0.0, stops=stops)):
        strategy = make(lambda _row, token: token == A)
        rows = search(strategy)
        assert [one[0] for one in rows] == [(B,)]
        answers = strategy.results()
        is_answer(answers[0], (A,), log(0.6), "stop")
        is_answer(answers[1], (B, EOS), log(0.21) / 2, "stop")


def test_forced_phrases_with_stop_sequences_that_end_most():
    strategy = constrained([[(B,)]], beams=2, answers=2, stops=lambda _row, token: token == A)
    search(strategy)
    assert all(B in one.tokens for one in strategy.results())
    is_answer(strategy.results()[0], (B, EOS), log(0.21) / 2, "stop")


@pytest.mark.parametrize(("end", "is_over"), [(-0.1, False), (-9.0, True)])
def test_whether_constrained_search_stops_is_asked_of_its_best_candidate_an_end_included(end, is_over):
    """Two beams, "a" forced; rows are (end, a, b), each with log p.

    Finished are a-end at -1.8 / 2 and ba-end at -3.3 / 3. In the fourth step aaa-end comes in at -2.1 / 4 = -.525, the
    best candidate of all: it beats the worst that is kept (-.9), so the search goes on, though what is open stands
    at -5 / 4 only. Without it, that is all there is, and the search is over.
    """
    strategy = constrained([[(A,)]], beams=2, answers=2, max_new_tokens=9)
    for scores in (
        [[-9, -0.1, -3], [-9, -9, -9]],
        [[-1.7, -1, -4], [-9, -0.2, -5]],
        [[-9, -0.9, -9], [-0.1, -3, -9]],
    ):
        assert strategy.choose(torch.tensor(scores, dtype=torch.float32)).tokens
    assert [one.tokens for one in strategy._pool.best()] == [(A, EOS), (B, A, EOS)]
    assert strategy.sequences[0] == (A, A, A)
    step = strategy.choose(torch.tensor([[end, -3, -9], [-9, -3, -9]]))
    assert (step.tokens == []) == is_over


def test_forced_phrases_that_did_not_appear_are_said():
    strategy = constrained([[(B, B, B, B)]], beams=2, answers=2, max_new_tokens=2)
    search(strategy)
    assert {one.finish_reason for one in strategy.results()} == {"unsatisfied"}


# -- groups


def test_groups_avoid_each_other_by_hand():
    """Two groups of one beam; the second pays 1 for what the first chose.

    1: the first takes a (-0.511). For the second, a is -1.511 and b -1.204: it takes b.
    2: the first takes ab (log .30). The second: b-end log .21 finished; it is full, and -1.561 / 2 is no better: done.
    3: the first: ab-end log .21 finished, done.
    """
    strategy = group(2, 2, 2, max_new_tokens=5)
    assert search(strategy) == [[(A,), (B,)], [(A, B), (B, A)]]
    first, second = strategy.results()
    is_answer(first, (A, B, EOS), log(0.21) / 3, "stop")
    is_answer(second, (B, EOS), log(0.21) / 2, "stop")


def test_what_a_group_pays_stays_in_its_score():
    """At 0.1 both go the same way; the second pays twice. Nobody "chose" the end: it does not go on."""
    strategy = group(2, 2, 2, penalty=0.1, max_new_tokens=5)
    assert search(strategy) == [[(A,), (A,)], [(A, B), (A, B)]]
    first, second = strategy.results()
    is_answer(first, (A, B, EOS), log(0.21) / 3, "stop")
    is_answer(second, (A, B, EOS), (log(0.21) - 0.2) / 3, "stop")


@pytest.mark.parametrize(("pad", "third"), [(EOS, A), (A, B)])
def test_a_finished_group_goes_on_with_padding_which_later_groups_avoid(pad, third):
    """The first ends in step 2, a-end .54. From then on its padding counts as chosen.

    The second: b; then b again (log .38 = -0.968), as the first's a costs 1; then a (.6), unless that is the padding.
    """
    table = {(): START, A: (0.9, 0.06, 0.04), B: (0.02, 0.6, 0.38), EOS: (1 / 3,) * 3}
    strategy = group(2, 2, 2, pad=pad, max_new_tokens=4)
    rows = search(strategy, table)
    assert rows == [[(A,), (B,)], [(A, A), (B, B)], [(A, A, pad), (B, B, third)]]
    is_answer(strategy.results()[0], (A, EOS), log(0.54) / 2, "stop")


@pytest.mark.parametrize(("early_stopping", "steps"), [(True, 3), (False, 3), ("never", 5)])
def test_when_groups_stop(early_stopping, steps):
    """ "never" reckons with the whole length: log .21 / 5 may yet beat -0.520."""
    strategy = group(2, 2, 2, max_new_tokens=5, early_stopping=early_stopping)
    assert len(search(strategy)) == steps - 1
    is_answer(strategy.results()[0], (A, B, EOS), log(0.21) / 3, "stop")


def test_groups_show_the_row_that_leads():
    strategy = group(2, 2, 2, max_new_tokens=5)
    strategy.choose(scores_of(strategy, TABLE))
    assert strategy.progress() == {0: (A,)}
    strategy._done[0] = True
    assert strategy.progress() == {0: (B,)}


# -- rows that do not know of each other


def picking(tokens_by_step):
    return lambda _scores, numbers, made: [tokens_by_step[made][number] for number in numbers]


def test_each_row_ends_for_itself():
    rows = [[A, B, A], [EOS, A, B], [B, EOS]]
    strategy = Independent(3, Limits(4, frozenset({EOS})), picking(rows))
    zeros = torch.zeros(3, 3)
    assert strategy.choose(zeros).parents == [0, 1, 2]
    step = strategy.choose(zeros)
    assert (step.parents, step.tokens) == ([1, 2], [A, B])
    assert strategy.progress() == {0: (A, EOS), 1: (B, A), 2: (A, B)}
    rows[2] = {1: B, 2: EOS}
    assert strategy.choose(zeros[:2]).parents == [0]
    rows.append({1: A})
    assert strategy.choose(zeros[:1]).tokens == []
    assert strategy.results() == [
        Hypothesis((A, EOS), None, "stop"),
        Hypothesis((B, A, B, A), None, "length"),
        Hypothesis((A, B, EOS), None, "stop"),
    ]


def test_all_rows_may_end_at_once():
    strategy = Independent(2, Limits(4, frozenset({EOS})), picking([[EOS, EOS]]))
    assert strategy.choose(torch.zeros(2, 3)).tokens == []
    assert strategy.progress() == {0: (EOS,), 1: (EOS,)}
    assert [one.tokens for one in strategy.results()] == [(EOS,), (EOS,)]
