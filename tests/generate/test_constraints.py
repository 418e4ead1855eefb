"""Phrases that must appear: states against rescans, and choices of beams against transformers 4.56.2's.

What the reference chose is written down here as numbers; all scores are exact in float32.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from danlu.errors import ConfigError
from danlu.generate.scores.constraints import Appearing, AsReference, Constraints, constraints_for
from danlu.generate.search.allocation import Pick, Picks
from danlu.generate.search.allocation import pick_constrained as pick_rows


def after(constraints: Constraints[Any], *tokens: int) -> Any:
    state = constraints.start(())
    for token in tokens:
        state = constraints.advance(state, token)
    return state


# -- ours


def test_a_phrase_by_hand():
    phrase = Appearing([[[1, 2, 3]]])
    for tokens, wanted, progress in [
        ((), (1,), 0),
        ((9,), (1,), 0),
        ((1,), (2,), 1),
        ((1, 2), (3,), 2),
        ((1, 2, 9), (1,), 0),
        ((1, 2, 3), (), 3),
        ((1, 2, 3, 9), (), 3),  # it stays satisfied
    ]:
        state = after(phrase, *tokens)
        assert (phrase.wanted(state), phrase.progress(state)) == (wanted, progress)
        assert phrase.complete(state) == (progress == 3)


def test_a_breaking_token_begins_anew():
    phrase = Appearing([[[1, 1, 2]]])
    assert phrase.progress(after(phrase, 1, 1, 1)) == 2
    assert phrase.complete(after(phrase, 1, 1, 1, 2))
    assert not AsReference([[[1, 1, 2]]]).complete(after(AsReference([[[1, 1, 2]]]), 1, 1, 1, 2))


def test_a_choice_by_hand():
    choice = Appearing([[[1, 2, 3, 4], [1, 5], [6]]])
    assert choice.wanted(after(choice)) == (1, 6)
    assert choice.wanted(after(choice, 1)) == (2, 5, 6)  # 6 alone is enough
    assert choice.progress(after(choice, 6)) == 4
    assert choice.complete(after(choice, 1, 2, 1, 5))


def test_a_choice_may_end_inside_another_alternative():
    choice = Appearing([[[1, 2, 3, 4], [2, 3]]])
    assert choice.complete(after(choice, 1, 2, 3))
    assert choice.wanted(after(choice, 1, 2)) == (3,)


def test_constraints_advance_side_by_side():
    both = Appearing([[[1, 2]], [[2, 3]]])
    state = after(both, 1, 2)
    assert both.missing(state) == (1,)
    assert (both.progress(state), both.wanted(state)) == (3, (3,))
    assert both.complete(after(both, 1, 2, 3))


def test_nothing_half_done_is_given_up_for_a_start():
    both = Appearing([[[1, 2, 3]], [[7]]])
    assert both.wanted(after(both)) == (1, 7)
    assert both.wanted(after(both, 1)) == (2,)  # 7 would win one and lose one


def test_phrases_that_begin_alike_do_not_block_each_other():
    both = Appearing([[[1, 2]], [[1, 3]]])
    assert both.progress(after(both, 1)) == 1
    assert both.wanted(after(both, 1)) == (2, 3)
    assert both.progress(after(both, 1, 2)) == 2


def test_the_prompt_does_not_count():
    assert Appearing([[[1]]]).start([1, 1]) == (0,)
    assert AsReference([[[1]]]).complete(AsReference([[[1]]]).start([1, 1]))


def test_until_all_is_there_some_token_brings_it_forward():
    dice = random.Random(4)
    for _ in range(200):
        forced = [[[dice.randrange(3) for _ in range(dice.randint(1, 4))]] for _ in range(dice.randint(1, 4))]
        constraints = Appearing(forced)
        state = constraints.start()
        for _ in range(dice.randint(0, 5)):
            state = constraints.advance(state, dice.randrange(4))
        steps = sum(constraints.sizes) - constraints.progress(state)
        for _ in range(steps):
            if not constraints.complete(state):
                state = constraints.advance(state, dice.choice(constraints.wanted(state)))
        assert constraints.complete(state)
        assert constraints.progress(state) == sum(constraints.sizes)


def test_completion_as_a_rescan():
    dice = random.Random(3)
    for _ in range(60):
        forced = [[[dice.randrange(3) for _ in range(dice.randint(1, 4))]] for _ in range(dice.randint(1, 3))]
        constraints, stream = Appearing(forced), []
        state = constraints.start()
        for _ in range(20):
            token = dice.randrange(3)
            stream.append(token)
            now = constraints.progress(state)
            assert (token in constraints.wanted(state)) == (
                constraints.progress(constraints.advance(state, token)) > now
            )
            state = constraints.advance(state, token)
            places = constraints.positions(stream)
            assert constraints.missing(state) == tuple(at for at, place in enumerate(places) if place is None)
            assert all(stream[a:b] == forced[at][0] for at, (a, b) in ((n, p) for n, p in enumerate(places) if p))


def test_what_is_wanted_leads_to_the_end():
    constraints = Appearing([[[1, 2, 1, 3]], [[4, 4], [5]], [[2, 6]]])
    state = constraints.start()
    for _ in range(8):
        if not constraints.complete(state):
            state = constraints.advance(state, constraints.wanted(state)[-1])
    assert constraints.complete(state)


def test_an_alternative_that_begins_another_is_refused():
    for exact_reference in (True, False):
        with pytest.raises(ConfigError, match=r"\[1, 2\] begins with \[1\]"):
            constraints_for([[[1, 2], [1]]], exact_reference)
    assert constraints_for([[[1]]], True).exact_reference


# -- as the reference


def test_the_reference_follows_one_constraint_at_a_time():
    both = AsReference([[[1, 2, 3]], [[4, 5]]])
    assert both.wanted(after(both)) == (1, 4)
    assert both.wanted(after(both, 1)) == (2,)
    assert both.progress(after(both, 1)) == 1
    assert both.progress(after(both, 4)) == 2  # a short one starts ahead
    assert both.progress(after(both, 4, 5)) == 3
    assert both.wanted(after(both, 1, 4)) == (4, 1)  # 4 broke the first, and began nothing
    assert both.missing(after(both, 1, 2, 3)) == (1,)
    assert both.complete(after(both, 1, 2, 3, 4, 5, 9))


def test_the_reference_queues_a_broken_constraint_at_the_end():
    """Both begin with 1; the first is broken by 9, so the next 1 begins the second, and then the first again."""
    both = AsReference([[[1, 2]], [[1, 3]], [[4]]])
    assert both.wanted(after(both, 1)) == (2,)
    assert after(both, 1, 9).pending == (1, 2, 0)
    assert both.wanted(after(both, 1, 9, 1)) == (3,)
    assert after(both, 1, 9, 1, 9).pending == (2, 0, 1)
    assert both.wanted(after(both, 1, 9, 1, 9, 1)) == (2,)


def test_the_reference_shares_the_list_of_a_choice():
    choice = AsReference([[[1, 2], [1, 3, 4]], [[5]]])
    state = after(choice, 1)
    assert choice.proposals(state) == [(2, 3), (3, 0)]  # 3 would be worth 2 on its own
    assert choice.progress(choice.advance(state, 3)) == 2
    longer = AsReference([[[1, 2, 9], [1, 3, 9]]])
    assert longer.proposals(after(longer, 1)) == [(2, 2), (3, 0)]


# -- which beams go on

PHRASE = [[[1, 2]]]
CASES = {
    "a phrase in the middle": (
        PHRASE,
        [(1,), (3,)],
        [[-9, -3, -8, -1, -2, -4], [-9, -7, -6, -2.5, -3.5, -5]],
        Picks([Pick(0, 2, -8), Pick(1, 1, -7)], []),
    ),
    "the second way on from inside a choice": (
        [[[1, 2], [1, 3, 4]], [[5]]],
        [(1,), (4,), (2,)],
        [
            [-9, -6, -5, -4, -1, -7, -8],
            [-9, -6.5, -5.5, -4.5, -1.5, -7.5, -8.5],
            [-9, -6.25, -5.25, -4.25, -1.25, -7.25, -8.25],
        ],
        Picks([Pick(0, 2, -5), Pick(2, 1, -6.25), Pick(0, 4, -1)], []),
    ),
    "a score far below": (
        PHRASE,
        [(1,), (3,)],
        [[-9, -300, -250, -1, -2, -4], [-9, -220, -600, -2.5, -3.5, -5]],
        Picks([Pick(0, 3, -1), Pick(0, 2, -250)], []),
    ),
    "an end too early": (
        PHRASE,
        [(1, 2), (3, 3)],
        [[-4.5, -3, -8, -5, -5.5, -6], [-1, -7, -6, -2, -3.5, -5]],
        Picks([Pick(0, 1, -3), Pick(1, 1, -7)], []),
    ),
    "an end in time": (
        PHRASE,
        [(1, 2), (3, 3)],
        [[-1, -3, -8, -5, -5.5, -6], [-1.25, -7, -6, -2, -3.5, -5]],
        Picks([Pick(0, 1, -3), Pick(1, 1, -7)], [Pick(0, 0, -1)]),
    ),
    "a breaking token": (
        [[[1, 1, 2]]],
        [(1, 1), (3, 3)],
        [[-9, -3, -8, -5, -5.5, -6], [-9, -7, -6, -2, -3.5, -5]],
        Picks([Pick(0, 2, -8), Pick(1, 1, -7)], []),
    ),
}


def picks(constraints: Constraints[Any], sequences: list[tuple[int, ...]], totals: list[list[float]]) -> Picks:
    states = [after(constraints, *sequence) for sequence in sequences]
    return pick_rows(constraints, torch.tensor(totals), states, sequences, lambda _row, token: token == 0, 1)


@pytest.mark.parametrize("case", CASES)
def test_beams_are_chosen_as_by_the_reference(case):
    forced, sequences, totals, chosen = CASES[case]
    assert picks(AsReference(forced), sequences, totals) == chosen


@pytest.mark.parametrize(
    ("case", "live"),
    [
        ("a phrase in the middle", [Pick(0, 2, -8), Pick(1, 1, -7)]),
        ("the second way on from inside a choice", [Pick(0, 2, -5), Pick(0, 3, -4), Pick(2, 1, -6.25)]),
        ("a score far below", [Pick(0, 2, -250), Pick(1, 1, -220)]),
        ("a breaking token", [Pick(0, 2, -8), Pick(0, 1, -3)]),
    ],
)
def test_beams_are_chosen_by_progress_in_ours(case, live):
    forced, sequences, totals, _ = CASES[case]
    assert picks(Appearing(forced), sequences, totals) == Picks(live, [])


def test_a_complete_row_is_not_lost_to_likelier_ones():
    sequences, totals = [(1, 2), (3, 3)], [[-50.0, -54, -53, -52], [-9, -8, -7, -6]]
    ours = picks(Appearing(PHRASE), sequences, totals)
    assert ours == Picks([Pick(0, 3, -52), Pick(1, 1, -8)], [Pick(0, 0, -50)])
    theirs = picks(AsReference(PHRASE), sequences, totals)
    assert theirs == Picks([Pick(1, 1, -8), Pick(1, 3, -6)], [])


def test_the_first_step_goes_on_from_one_row():
    totals = [[-9.0, -3, -4, -1], [-1e9, -1e9, -1e9, -1e9]]
    for constraints in (Appearing(PHRASE), AsReference(PHRASE)):
        assert sorted(picks(constraints, [(), ()], totals).live) == [Pick(0, 1, -3), Pick(0, 3, -1)]


def test_what_is_banned_is_not_forced_in_ours():
    totals = [[-9.0, -torch.inf, -4, -1], [-9, -torch.inf, -3, -2]]
    assert picks(Appearing(PHRASE), [(3,), (2,)], totals).live == [Pick(0, 3, -1), Pick(1, 3, -2)]
