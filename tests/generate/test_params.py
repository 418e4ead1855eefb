"""Every knob has a range, and none is given in vain."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from danlu.generate.params import GenerationParams

KNOBS_OF_SAMPLING = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 1}


def test_defaults():
    params = GenerationParams()
    assert (params.max_new_tokens, params.do_sample, params.repetition_penalty) == (256, False, 1.0)
    assert (params.temperature, params.top_k, params.top_p, params.seed) == (1.0, None, 1.0, None)


@pytest.mark.parametrize(("knob", "value"), KNOBS_OF_SAMPLING.items())
def test_a_knob_without_effect_is_an_error_that_names_both(knob, value):
    with pytest.raises(ValidationError) as caught:
        GenerationParams(**{knob: value})
    (fault,) = caught.value.errors()
    assert fault["msg"] == f"Value error, {knob} has no effect without do_sample; set do_sample to true as well"
    assert getattr(GenerationParams(do_sample=True, **{knob: value}), knob) == value


def test_several_are_named_together():
    with pytest.raises(ValidationError, match="seed, temperature, top_k, top_p has no effect without do_sample"):
        GenerationParams(**KNOBS_OF_SAMPLING)


def test_a_penalty_and_a_length_need_no_sampling():
    params = GenerationParams(repetition_penalty=1.2, max_new_tokens=3)
    assert (params.repetition_penalty, params.max_new_tokens) == (1.2, 3)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("temperature", 0),  # that is greedy search
        ("temperature", -1),
        ("temperature", 100.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.01),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_out_of_range_are_refused(knob, value):
    with pytest.raises(ValidationError) as caught:
        GenerationParams(do_sample=True, **{knob: value})
    assert caught.value.errors()[0]["loc"] == (knob,)


@pytest.mark.parametrize(
    ("knob", "value"), [("temperature", 100), ("temperature", 1e-3), ("top_p", 1), ("top_k", 1), ("seed", 2**63 - 1)]
)
def test_the_ends_of_a_range_belong_to_it(knob, value):
    assert getattr(GenerationParams(do_sample=True, **{knob: value}), knob) == value


def test_unknown_knobs_are_refused_and_values_stay():
    with pytest.raises(ValidationError, match="no_repeat_ngram_size"):
        GenerationParams(no_repeat_ngram_size=2)
    params = GenerationParams()
    with pytest.raises(ValidationError, match="frozen"):
        params.top_k = 3
