"""The stages that a row's scores pass: which there are, in which order, and that nobody else's scores change."""

from __future__ import annotations

import pytest
import torch

from danlu.generate.params import GenerationParams
from danlu.generate.search.rows import RowStates
from danlu.generate.search.strategies import Step

VOCABULARY, EOS, PROMPT = 12, 2, [5, 6, 5]

EVERYTHING = {
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "logit_bias": {7: 1.0},
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[9]],
    "min_new_tokens": 2,
    "temperature": 0.5,
    "top_k": 4,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
}


def states(**knobs):
    params = GenerationParams(max_new_tokens=4, **knobs)
    return RowStates(params, PROMPT, frozenset({EOS}), VOCABULARY, params.bad_words_ids)


def heard_by(rows, scores):
    """Knob -> the scores after it, in order."""
    heard = []
    rows.watch = lambda knob, after, numbers: heard.append((knob, after, list(numbers)))
    result = rows.penalised(scores)
    if rows.params.do_sample:
        result = rows.warped(result)
    return heard, result


def some_scores(rows=1):
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(3))


def test_stages_are_named_by_their_knobs_in_the_order_in_which_they_act():
    heard, result = heard_by(states(do_sample=True, **EVERYTHING), some_scores())
    assert [knob for knob, _, _ in heard] == [
        "repetition_penalty", "presence_penalty and frequency_penalty", "logit_bias", "no_repeat_ngram_size",
        "bad_words_ids", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p",
    ]  # fmt: skip
    assert heard[-1][1] is result


def test_knobs_that_are_off_are_no_stages():
    scores = some_scores()
    heard, result = heard_by(states(), scores)
    assert heard == []
    assert result is scores
    assert [knob for knob, _, _ in heard_by(states(min_length=9, presence_penalty=1.0), scores)[0]] == [
        "presence_penalty", "min_length"
    ]  # fmt: skip


def test_being_watched_changes_no_number_and_leaves_what_was_heard_alone():
    knobs = {**EVERYTHING, "do_sample": True, "num_return_sequences": 3, "seed": 1}
    alone, watched = states(**knobs), states(**knobs)
    step = Step([0, 1, 2], [5, 9, 3])
    alone.go_on(step)
    watched.go_on(step)
    scores = some_scores(3)
    heard, result = heard_by(watched, scores)
    assert torch.equal(result, alone.warped(alone.penalised(scores)))
    before_bans, after_bans = heard[2][1], heard[5][1]
    assert torch.isfinite(before_bans).all()
    assert after_bans[:, 9].tolist() == [-torch.inf] * 3
    assert [int(row.isinf().sum()) for row in after_bans] == [4, 2, 2]  # 5 was followed by 6 and by 5


@pytest.mark.parametrize("is_watched", [True, False])
def test_scores_that_are_handed_in_stay_as_they_are(is_watched):
    scores = some_scores().expand(2, -1)  # on the first step, all rows are one
    before = scores.clone()
    rows = states(num_beams=2, **{knob: EVERYTHING[knob] for knob in ("logit_bias", "bad_words_ids")})
    rows.watch = (lambda *_heard: None) if is_watched else None
    after = rows.penalised(scores)
    assert torch.equal(scores, before)
    assert after[:, 9].tolist() == [-torch.inf] * 2
    assert after[:, 7].tolist() == (before[:, 7] + 1).tolist()


def test_a_ban_that_is_over_is_a_stage_that_changes_nothing():
    rows = states(min_new_tokens=1)
    assert heard_by(rows, some_scores())[0][0][1][0, EOS] == -torch.inf
    rows.go_on(Step([0], [3]))
    scores = some_scores()
    (heard,), result = heard_by(rows, scores)
    assert heard[0] == "min_new_tokens"
    assert heard[1] is result is scores
