"""Beams that draw at temperatures near 0: what they find in the limit, the likeliest, however large scores become."""

from __future__ import annotations

import math

import pytest
import torch
from answering import PROMPTS

from danlu import GenerationParams
from danlu.generate.search.beams import Beam, BeamOptions
from danlu.generate.search.strategies import Limits

BEAMS = {
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "groups": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "eos_token_id": [30, 31, 32],
        "num_return_sequences": 4,
    },
    "forced": {"num_beams": 3, "force_words_ids": [[20]], "num_return_sequences": 2},
    "forced groups": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "force_words_ids": [[20]],
        "num_return_sequences": 2,
    },
    "a form": {"num_beams": 3, "regex": "[a-z ]{1,12}"},
}
KNOBS = {
    "plain": {},
    "bias": {"logit_bias": {20: 100, 21: -100, 30: 7.5}},
    "short": {"length_penalty": -10},
    "long": {"length_penalty": 10, "early_stopping": "never"},
    "repetition": {"repetition_penalty": 100},
    "presence": {"presence_penalty": 2, "frequency_penalty": -2},
}


def found(engine, knobs):
    answers = [one for result in engine.generate(PROMPTS[:2], GenerationParams(**knobs)) for one in result.sequences]
    assert all(math.isfinite(one.score) for one in answers)
    return [(one.token_ids, one.finish_reason) for one in answers]


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("kind", BEAMS)
def test_the_colder_beams_draw_the_more_they_find_what_beam_search_finds(engine, kind, knobs):
    chosen = {"max_new_tokens": 8, **BEAMS[kind], **KNOBS[knobs]}
    likeliest = found(engine, chosen)
    for temperature in (1e-5, 1e-6, 1e-30, 1e-38):
        assert found(engine, {**chosen, "do_sample": True, "seed": 3, "temperature": temperature}) == likeliest


def test_sums_of_any_size_are_hypotheses():
    """After 60 tokens at 1e-6 and worse, sums are far below what any sum of log p comes to."""
    beam = Beam(BeamOptions(2, num_return_sequences=2), Limits(60, frozenset({0})))
    while beam.choose(torch.tensor([[-3e30, -1e30, -2e30]] * 2)).tokens:
        pass
    best, second = beam.results()
    assert best.tokens == (1,) * 60
    assert best.score == pytest.approx(-1e30)
    assert second.score < best.score
