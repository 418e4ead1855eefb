"""A trace says what the engine did: its answers, its numbers, its rows; and a trace changes nothing."""

from __future__ import annotations

import json
import math

import pytest
from answering import PROMPTS, fixed_scores, tolerance_of

from danlu import GenerationParams
from danlu.errors import AllBanned, ConfigError, DataError
from danlu.generate.answers import Generation
from danlu.generate.requests import uniforms_of
from danlu.generate.watching.trace import Trace

ENDS = list(range(60, 110))
STRATEGIES = {
    "greedy": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[40], [41, 42]]},
    "sample": {"do_sample": True, "seed": 3, "top_k": 20, "num_return_sequences": 3, "eos_token_id": ENDS},
    "beam": {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": ENDS[:20], "no_repeat_ngram_size": 2},
    "beam_sample": {"num_beams": 3, "do_sample": True, "seed": 4, "top_p": 0.8, "num_return_sequences": 2},
    "group_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 4,
                   "eos_token_id": ENDS, "min_new_tokens": 2},
    "constrained_greedy": {"force_words_ids": [[50, 51], [70]], "eos_token_id": ENDS[20:40]},
    "constrained_sample": {"force_words_ids": [[50, 51]], "do_sample": True, "seed": 6, "num_return_sequences": 3,
                           "top_k": 40, "eos_token_id": ENDS[:5]},
    "constrained_group_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0,
                               "force_words_ids": [[50, 51]], "num_return_sequences": 3},
    "constrained_beam": {"num_beams": 4, "force_words_ids": [[50, 51], [70]], "num_return_sequences": 3},
}  # fmt: skip


def log_p(*ps):
    return [math.log(p) for p in ps]


def traced(engine, prompt=PROMPTS[0], top=8, **knobs):
    return engine.trace(prompt, GenerationParams(**{"max_new_tokens": 12, **knobs}), top)


def only_choice(trace, step=0):
    (choice,) = trace.steps[step].choices
    return choice


def by_id(choice):
    return {candidate.token.id: candidate for candidate in choice.candidates}


# --- the same answers, and every row accounted for


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_trace_has_the_answers_of_a_request_that_nobody_watches(engine, strategy):
    knobs = STRATEGIES[strategy]
    (plain,) = engine.generate([PROMPTS[0]], GenerationParams(max_new_tokens=12, **knobs))
    trace = traced(engine, **knobs)
    assert trace.strategy == strategy
    assert [token.id for token in trace.prompt] == list(plain.prompt_token_ids)
    assert [
        (tuple(token.id for token in one.tokens), one.text, one.score, one.finish_reason) for one in trace.answers
    ] == [(one.token_ids, one.text, one.score, one.finish_reason) for one in plain.sequences]
    assert max(len(one.tokens) for one in trace.answers) <= len(trace.steps) <= 12
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_answer_s_path_leads_through_rows_that_chose_its_tokens(engine, strategy):
    trace = traced(engine, **STRATEGIES[strategy])
    for number, answer in enumerate(trace.answers):
        choices = list(trace.choices_of(number))
        assert len(choices) == len(answer.path) == len(answer.tokens)
        for at, (token, row) in enumerate(zip(answer.tokens, answer.path, strict=True)):
            assert by_id(choices[at])[token.id].is_chosen
            if at + 1 < len(answer.path):
                branch = trace.steps[at].branches[answer.path[at + 1]]
                assert (branch.parent, branch.token) == (row, token)
        (end,) = [one for one in trace.steps[len(answer.tokens) - 1].finished if one.answer == number]
        assert (end.parent, end.token, end.score) == (answer.path[-1], answer.tokens[-1], answer.score)
        assert end.is_kept


def test_answers_that_end_early_leave_the_others_their_numbers(engine):
    trace = traced(engine, **STRATEGIES["sample"])
    assert sorted(len(answer.tokens) for answer in trace.answers)[0] < 12
    for number in range(3):
        assert {choice.group for choice in trace.choices_of(number)} == {number}


def test_what_runs_beside_it_is_not_disturbed(engine):
    params = GenerationParams(max_new_tokens=12)
    alone = engine.generate([PROMPTS[1]], params)
    events = engine.stream(PROMPTS[1], params)
    pieces = [next(events)]
    traced(engine, **STRATEGIES["group_beam"])
    pieces += events
    assert "".join(event.text for event in pieces) == alone[0].text


def test_an_error_is_the_request_s_own(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {5: 1.0})
    with pytest.raises(AllBanned):
        traced(engine, bad_words_ids=[[5]])
    with pytest.raises(ConfigError, match="top: 0"):
        traced(engine, top=0)


# --- numbers, worked out by hand


def test_each_filter_s_probabilities(engine, monkeypatch):
    """p .4 .3 .2 .1; temperature 1/2 squares them: 16 9 4 1 of 30; top_k 3: of 29; top_p .8: 16 and 9 of 25."""
    fixed_scores(engine, monkeypatch, dict(zip((10, 11, 12, 13), log_p(0.4, 0.3, 0.2, 0.1), strict=True)))
    trace = traced(engine, max_new_tokens=1, do_sample=True, seed=0, temperature=0.5, top_k=3, top_p=0.8, top=4)
    choice = only_choice(trace)
    assert [stage.knob for stage in choice.stages] == ["temperature", "top_k", "top_p"]
    assert [(stage.left, stage.dropped) for stage in choice.stages] == [(4, 0), (3, 1), (2, 1)]
    assert [one.token.id for one in choice.stages[1].likeliest_dropped] == [13]
    assert choice.stages[2].likeliest_dropped[0].p == pytest.approx(4 / 29)
    expected = {
        10: (0.4, 16 / 30, 16 / 29, 16 / 25),
        11: (0.3, 9 / 30, 9 / 29, 9 / 25),
        12: (0.2, 4 / 30, 4 / 29, 0),
        13: (0.1, 1 / 30, 0, 0),
    }
    seen = by_id(choice)
    assert list(seen) == list(expected)
    for token, ps in expected.items():
        assert [seen[token].p, *(after.p for after in seen[token].after)] == pytest.approx(ps, abs=1e-6)
    assert [seen[token].dropped_by for token in expected] == [None, None, "top_p", "top_k"]
    assert [seen[token].rank for token in expected] == [1, 2, 3, 4]
    assert seen[13].after[1].score is None
    (chosen,) = [one for one in choice.candidates if one.is_chosen]
    assert chosen.token.id == (10 if choice.u < 16 / 25 else 11)


def test_penalties_and_the_bias_change_scores_as_their_formulae_say(engine, monkeypatch):
    prompt = engine.token_ids(PROMPTS[0])
    fixed_scores(engine, monkeypatch, {prompt[0]: 3.0, 10: 2.0, 11: 1.0})
    knobs = {"repetition_penalty": 2.0, "frequency_penalty": 0.5, "logit_bias": {11: 4.0}}
    trace = traced(engine, max_new_tokens=2, **knobs)
    scores = {token: [after.score for after in one.after] for token, one in by_id(only_choice(trace)).items()}
    assert scores[prompt[0]] == [1.5, 1.5, 1.5]
    assert scores[10] == [2.0, 2.0, 2.0]
    assert scores[11] == [1.0, 1.0, 5.0]
    assert trace.answers[0].tokens[0].id == 11
    assert [stage.has_changed for stage in only_choice(trace).stages] == [True, False, True]
    second = by_id(only_choice(trace, 1))[11]
    assert [after.score for after in second.after] == [0.5, 0.0, 4.0]


def test_a_draw_takes_the_first_token_whose_sum_exceeds_u(engine):
    trace = traced(engine, do_sample=True, seed=11, num_return_sequences=2, top_k=5)
    for made, step in enumerate(trace.steps):
        for choice in step.choices:
            assert choice.u == float(uniforms_of(11, [choice.group], made))
            left = sorted((one.token.id, one.after[-1].p) for one in choice.candidates if one.dropped_by is None)
            assert len(left) == 5
            sums = [sum(p for _, p in left[: at + 1]) for at in range(5)]
            drawn = next(token for (token, _), total in zip(left, sums, strict=True) if total > choice.u)
            assert by_id(choice)[drawn].is_chosen
    assert trace.seed == 11


def test_what_was_chosen_is_shown_however_unlikely(engine):
    trace = traced(engine, do_sample=True, seed=5, top=1)
    ranks = [one.rank for number in range(1) for choice in trace.choices_of(number) for one in choice.candidates]
    assert max(ranks) > 1
    for choice in trace.choices_of(0):
        assert sum(one.is_chosen for one in choice.candidates) == 1
        assert len(choice.candidates) <= 2


# --- bans say by which knob


BANS = {
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1, "max_new_tokens": 1},
    "bad_words_ids": {"bad_words_ids": [[10]]},
    "min_new_tokens": {"min_new_tokens": 3, "eos_token_id": 10},
    "min_length": {"min_length": 20, "max_length": 30, "max_new_tokens": None, "eos_token_id": 10},
}


@pytest.mark.parametrize("knob", BANS)
def test_a_ban_names_its_knob(engine, monkeypatch, knob):
    fixed_scores(engine, monkeypatch, dict(zip((10, 11, 12), log_p(0.6, 0.3, 0.1), strict=True)))
    prompt = [*engine.token_ids(PROMPTS[0]), 10]
    choice = only_choice(traced(engine, prompt, **BANS[knob]))
    assert [(stage.knob, stage.has_changed) for stage in choice.stages] == [(knob, True)]
    assert by_id(choice)[10].dropped_by == knob
    assert by_id(choice)[10].p == pytest.approx(0.6)
    assert [one.token.id for one in choice.stages[0].likeliest_dropped[:1]] == [10]
    assert by_id(choice)[11].is_chosen
    assert by_id(choice)[11].after[-1].p == pytest.approx(0.75)


def test_words_to_avoid_that_are_given_as_text_are_named_so(engine):
    word = engine.trace(PROMPTS[0], GenerationParams(max_new_tokens=1)).answers[0].tokens[0]
    choice = only_choice(traced(engine, max_new_tokens=1, bad_words=[engine.chat.tokenizer.decode([word.id]) or "x"]))
    assert [stage.knob for stage in choice.stages] == ["bad_words"]


def test_of_two_bans_the_first_is_named(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {10: 2.0, 11: 1.0})
    prompt = [*engine.token_ids(PROMPTS[0]), 10]
    choice = only_choice(traced(engine, prompt, max_new_tokens=1, no_repeat_ngram_size=1, bad_words_ids=[[10]]))
    assert by_id(choice)[10].dropped_by == "no_repeat_ngram_size"
    assert [stage.has_changed for stage in choice.stages] == [True, False]


# --- beams


def test_totals_add_up_and_answers_are_scored_by_their_length(engine):
    trace = traced(engine, **STRATEGIES["beam"], length_penalty=0.5, top=300)
    totals, tolerance = {0: 0.0}, tolerance_of(engine, Generation(engine.token_ids(PROMPTS[0]), ()))
    for at, step in enumerate(trace.steps, 1):
        choices = {choice.row: by_id(choice) for choice in step.choices}
        assert list(choices) == sorted(totals)
        for end in step.finished:
            total = totals[end.parent] + choices[end.parent][end.token.id].after[-1].score
            assert end.score == pytest.approx(total / at**0.5, abs=tolerance)
        after = {}
        for branch in step.branches:
            candidate = choices[branch.parent][branch.token.id]
            assert candidate.score == pytest.approx(math.log(candidate.p), abs=tolerance)
            after[branch.row] = totals[branch.parent] + candidate.after[-1].score
            assert branch.total == pytest.approx(after[branch.row], abs=tolerance)
            assert branch.bank is None
        totals = after
    finished = [end for step in trace.steps for end in step.finished]
    assert sorted(end.answer for end in finished if end.answer is not None) == [0, 1]
    assert sum(end.is_kept for end in finished) == 3


def test_a_hypothesis_that_better_ones_displace_stays_in_the_trace(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, dict(zip((10, 11, 12), log_p(0.5, 0.3, 0.2), strict=True)))
    trace = traced(engine, max_new_tokens=4, num_beams=2, eos_token_id=11, early_stopping="never", length_penalty=3.0)
    finished = [(at, end) for at, step in enumerate(trace.steps, 1) for end in step.finished]
    assert finished[0][0] == 1
    assert not finished[0][1].is_kept
    assert finished[0][1].answer is None
    assert [end.answer for _, end in finished if end.is_kept].count(0) == 1
    assert len(trace.answers[0].tokens) == 4


def test_later_groups_are_shown_what_diversity_took_from_them(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, dict(zip((10, 11), log_p(0.6, 0.4), strict=True)))
    knobs = {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0}
    step = traced(engine, max_new_tokens=1, eos_token_id=12, **knobs).steps[0]
    assert [choice.group for choice in step.choices] == [0, 1]
    assert [choice.stages[0].has_changed for choice in step.choices] == [False, True]
    first, second = (by_id(choice) for choice in step.choices)
    assert first[10].is_chosen
    assert second[11].is_chosen
    assert second[10].after[0].score == pytest.approx(math.log(0.6) - 1)
    assert second[10].after[0].p == pytest.approx(0.6 / math.e / (0.6 / math.e + 0.4))


def test_rows_of_a_constrained_search_show_their_progress(engine):
    trace = traced(engine, **STRATEGIES["constrained_beam"])
    assert {branch.bank for branch in trace.steps[0].branches} == {0, 1}
    assert {branch.bank for step in trace.steps[:-1] for branch in step.branches} >= {0, 1, 2, 3}
    for number, answer in enumerate(trace.answers):
        banks = [trace.steps[at].branches[row].bank for at, row in enumerate(answer.path[1:])]
        assert banks == sorted(banks)
        end = [one for one in trace.steps[len(answer.tokens) - 1].finished if one.answer == number]
        assert len(end) == 1


def test_a_group_that_is_done_shows_no_more_choices(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, dict(zip((10, 11, 12), log_p(0.5, 0.3, 0.2), strict=True)))
    knobs = {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 9.0, "early_stopping": True}
    trace = traced(engine, max_new_tokens=3, eos_token_id=11, **knobs)
    assert [[choice.group for choice in step.choices] for step in trace.steps] == [[0, 1], [0], [0]]
    assert [branch.is_live for branch in trace.steps[0].branches] == [True, False]
    assert trace.steps[0].branches[1].total is None


# --- JSON


def test_a_trace_is_plain_json(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {10: 1.0, 11: 0.5})
    trace = traced(engine, max_new_tokens=1, logit_bias={11: -1.0}, top=3)
    data = json.loads(trace.to_json(), parse_constant=pytest.fail)
    assert data["version"] == 1
    assert data["knobs"] == {"max_new_tokens": 1, "logit_bias": {"11": -1.0}}
    assert data["seed"] is None
    unlikely = data["steps"][0]["choices"][0]["candidates"][2]
    assert (unlikely["score"], unlikely["p"], unlikely["dropped_by"]) == (None, 0.0, None)
    assert set(data) == set(Trace.json_schema()["properties"])
    assert Trace.json_schema()["properties"]["version"]["const"] == 1


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}'])
def test_what_is_no_trace_is_refused(text):
    with pytest.raises(DataError, match="no trace"):
        Trace.from_json(text)


def test_bytes_that_are_no_character_alone_are_written_as_bytes(engine):
    first, second, third = (engine.chat.tokenizer.convert_tokens_to_ids(name) for name in ("ä", "¸", "Ń"))
    prompt = traced(engine, [first, second, third], max_new_tokens=1).prompt
    assert "".join(token.text for token in prompt) == "\\xe4\\xb8\\xad"
