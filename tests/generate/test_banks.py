"""Greedy search and sampling with forced phrases, by hand and on an engine; every strategy keeps its promise."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import partial

import pytest
import torch
from answering import PROMPTS, answers, fixed_scores

from danlu import GenerationParams
from danlu.errors import AllBanned
from danlu.generate.requests import _drawn_one, _likeliest_one
from danlu.generate.scores.constraints import Appearing
from danlu.generate.search.banks import Banked
from danlu.generate.search.strategies import Limits

EOS, A, B, C = range(4)
STRATEGIES = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 3, "num_return_sequences": 3},
    "narrow_sample": {"do_sample": True, "seed": 4, "top_k": 1, "temperature": 0.5},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam_sample": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True, "seed": 3, "top_k": 20},
    "group_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 2.0, "num_return_sequences": 4},
    "group_sample": {"num_beams": 4, "num_beam_groups": 2, "do_sample": True, "seed": 1, "num_return_sequences": 2},
}


def banked(forced, pick=_likeliest_one, answers=1, max_new_tokens=6, stops=lambda _row, _token: False):
    return Banked(answers, Limits(max_new_tokens, frozenset({EOS}), stops), Appearing(forced), pick)


def search(strategy, table):
    """Run to the end; `table` gives the probabilities after a sequence, else after its last token, else for all."""
    for _ in range(strategy.max_new_tokens):
        rows = [
            table.get(one) or table.get(one[-1:]) or table.get(None) or (0.25, 0.25, 0.25, 0.25)
            for one in strategy.sequences
        ]
        step = strategy.choose(torch.tensor(rows).log())
        if not step.tokens:
            return strategy.results()
        assert len(step.tokens) % strategy.banks == 0
    raise AssertionError("it does not end")


# -- greedy, by hand


def test_the_likeliest_place_is_waited_for():
    """Forced at once, "c" has .05; after "ab" it has .9. What ended early is kept, and beaten.

    1: bank 0 a (.6), bank 1 c (.05). 2: bank 0 ab (.6 * .9), bank 1: c-end (.05 * .7 = .035) or ac (.6 * .05 = .030).
    c-end ended with .035, but ab is likelier. 3: abc has .486, 4: abc-end .34, and nothing open is likelier.
    """
    table = {
        (): (0.1, 0.6, 0.25, 0.05),
        (A,): (0.02, 0.03, 0.9, 0.05),
        (A, B): (0.05, 0.03, 0.02, 0.9),
        (C,): (0.7, 0.1, 0.1, 0.1),
    }
    strategy = banked([[(C,)]])
    (answer,) = search(strategy, table)
    assert (answer.tokens, answer.finish_reason, answer.score) == ((A, B, C, EOS), "stop", None)


def test_what_ended_counts_when_nothing_open_is_likelier():
    table = {(): (0.1, 0.5, 0.05, 0.35), (A,): (0.3, 0.3, 0.3, 0.1), (C,): (0.9, 0.05, 0.03, 0.02)}
    (answer,) = search(banked([[(C,)]]), table)
    assert answer.tokens == (C, EOS)  # .315; "aa" and the like have .15 at most


def test_an_end_before_the_phrase_is_passed_over():
    table = {None: (0.9, 0.06, 0.03, 0.01)}
    (answer,) = search(banked([[(B, C)]]), table)
    assert answer.finish_reason == "stop"
    assert (B, C) in itertools.pairwise(answer.tokens)


def test_at_the_limit_the_phrase_is_there_or_missing():
    even = {None: (0.0, 0.5, 0.3, 0.2)}
    for limit, reason in ((4, "length"), (3, "length"), (2, "unsatisfied")):
        (answer,) = search(banked([[(C, B, C)]], max_new_tokens=limit), even)
        assert answer.finish_reason == reason
        assert (answer.tokens[-3:] == (C, B, C)) == (reason == "length")
    assert answer.tokens == (C, B)  # the row that has most of it


def test_a_stop_sequence_may_not_end_what_lacks_the_phrase():
    even = {None: (0.0, 0.5, 0.3, 0.2)}
    strategy = banked([[(C,)]], stops=lambda row, token: token == A)
    (answer,) = search(strategy, even)
    assert (answer.tokens[-2:], answer.finish_reason) == ((C, A), "stop")


def test_a_phrase_that_is_banned_is_said():
    table = {None: (0.5, 0.5, 0.0, 0.0)}
    (answer,) = search(banked([[(C,)]]), table)
    assert answer.finish_reason == "unsatisfied"
    with pytest.raises(AllBanned):
        search(banked([[(C,)]]), {None: (1.0, 0.0, 0.0, 0.0)})


# -- sampling


def test_a_bank_draws_in_proportion_to_probability():
    """Phrase c, two tokens. Bank 1 after them: c then anything (.2), or another and then c (a .5 * .4, b .3 * .1).

    Of these c? has .2, ac .2, bc .03 where bank 0 drew b; bank 0 draws a of 5 in 8.
    """
    table = {
        (): (0.0, 0.5, 0.3, 0.2),
        (A,): (0.0, 0.5, 0.1, 0.4),
        (B,): (0.0, 0.5, 0.4, 0.1),
        (C,): (0.0, 0.5, 0.5, 0.0),
    }
    drawn = Counter()
    for seed in range(800):
        (answer,) = search(banked([[(C,)]], partial(_drawn_one, seed), max_new_tokens=2), table)
        drawn[answer.tokens] += 1
    expected = {
        (A, C): 5 / 8 * 0.2 / 0.4,
        (B, C): 3 / 8 * 0.03 / 0.23,
        (C, A): (5 / 8 * 0.2 / 0.4 + 3 / 8 * 0.2 / 0.23) / 2,
    }
    for tokens, share in expected.items():
        assert drawn[tokens] / 800 == pytest.approx(share, abs=0.05)
    assert set(drawn) == {*expected, (C, B)}


def test_once_the_phrase_is_there_it_is_plain_sampling():
    table = {(): (0.0, 0.0, 0.0, 1.0), None: (0.2, 0.5, 0.2, 0.1)}
    drawn = Counter()
    strategy = banked([[(C,)]], partial(_drawn_one, 5), answers=800, max_new_tokens=2)
    for answer in search(strategy, table):
        drawn[answer.tokens[1]] += 1
    for token, share in enumerate(table[None]):
        assert drawn[token] / 800 == pytest.approx(share, abs=0.05)


# -- with an engine


def holds(tokens, words):
    return any(tuple(tokens[at : at + len(words)]) == tuple(words) for at in range(len(tokens)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_phrases_appear_wherever_there_is_room(engine, name):
    dice = random.Random(5)
    for room in (0, 3, 20):
        phrases = [[dice.randrange(3, 300) for _ in range(dice.randint(1, 3))] for _ in range(dice.randint(1, 3))]
        limit = sum(map(len, phrases)) + room
        params = GenerationParams(force_words_ids=phrases, max_new_tokens=limit, **STRATEGIES[name])
        for generation in engine.generate(PROMPTS, params):
            assert len(generation.sequences) >= 1
            best = generation.sequences if "beam" not in name and "group" not in name else generation.sequences[:1]
            for answer in best:
                assert answer.finish_reason in ("stop", "length")
                for words, (start, end) in zip(phrases, answer.forced, strict=True):
                    assert list(answer.token_ids[start:end]) == words


def test_phrases_that_begin_alike_both_appear(engine):
    ids = [[200, 201], [200, 202]]
    for knobs in STRATEGIES.values():
        params = GenerationParams(force_words_ids=ids, max_new_tokens=14, **knobs)
        for generation in engine.generate(PROMPTS, params):
            assert all(holds(generation.sequences[0].token_ids, words) for words in ids)


@pytest.mark.parametrize("name", ["sample", "beam_sample", "group_sample"])
def test_the_seed_repeats_it_alone_and_in_a_batch(engine, name):
    knobs = {"force_words": ["fox", "one two"], "max_new_tokens": 14, **STRATEGIES[name]}
    together = engine.generate(PROMPTS, GenerationParams(**knobs))
    alone = [engine.generate([prompt], GenerationParams(**knobs))[0] for prompt in PROMPTS]
    other = engine.generate(PROMPTS, GenerationParams(**{**knobs, "seed": 99}))
    said = [[[answer.token_ids for answer in one.sequences] for one in found] for found in (together, alone, other)]
    assert said[0] == said[1] != said[2]


def test_answers_of_a_sample_differ_and_stream(engine):
    params = GenerationParams(
        do_sample=True, seed=2, num_return_sequences=3, force_words=["fox"], max_new_tokens=12, stop_sequences=["e"]
    )
    whole = engine.generate(["the"], params)[0].sequences
    assert len({one.token_ids for one in whole}) == 3
    events = list(engine.stream("the", params))
    assert tuple(event.answer for event in events if event.answer) == whole
    assert {event.index for event in events if event.leading is not None} == {0, 1, 2}
    assert all("fox" in one.text for one in whole)


def test_a_form_and_a_phrase_together(engine):
    for knobs in STRATEGIES.values():
        params = GenerationParams(regex="[a-z ]{1,20}fox[a-z ]{2,9}", force_words=["dog"], max_new_tokens=40, **knobs)
        for generation in engine.generate(PROMPTS, params):
            answer = generation.sequences[0]
            assert answer.finish_reason == "stop"
            assert "fox" in answer.text
            assert "dog" in answer.text


# -- where they stand


def test_the_place_of_each_phrase_is_said(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {50: 3.0, 60: 0.0, 61: 0.0, 70: -1.0, 2: -3.0})
    knobs = {"force_words_ids": [[60, 61]], "constraints": [{"choice": [[70], [71, 72]]}], "num_beams": 8}
    (answer,) = answers(engine, ["one"], **knobs, max_new_tokens=6)
    (choice, phrase) = answer.forced
    assert answer.token_ids[slice(*choice)] == (70,)
    assert answer.token_ids[slice(*phrase)] == (60, 61)
    (short,) = answers(engine, ["one"], **knobs, max_new_tokens=2)
    assert (short.finish_reason, None in short.forced) == ("unsatisfied", True)
    assert answers(engine, ["one"])[0].forced is None
