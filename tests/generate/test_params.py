"""Every knob has a range, none is given in vain, and transformers' configs carry over."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError
from transformers import GenerationConfig

from danlu.errors import ConfigError
from danlu.generate.params import GenerationParams
from danlu.generate.words import Choice, Phrase

BEAMS = {"num_beams": 4}


def fault_of(**knobs: object) -> str:
    with pytest.raises(ValidationError) as caught:
        GenerationParams(**knobs)
    return caught.value.errors()[0]["msg"].removeprefix("Value error, ")


def test_knob_defaults_are_hugging_faces():
    params = GenerationParams()
    assert params.strategy == "greedy"
    assert (params.new_tokens_limit(7), params.min_new(7), params.live_rows, params.forced) == (20, 0, 1, ())
    assert (params.temperature, params.top_k, params.length_penalty, params.early_stopping) == (1.0, None, 1.0, False)


def test_every_knob_says_what_it_does():
    assert [name for name, field in GenerationParams.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("knobs", "strategy", "rows"),
    [
        ({}, "greedy", 1),
        ({"do_sample": True, "num_return_sequences": 5}, "sample", 5),
        ({**BEAMS, "num_return_sequences": 2}, "beam", 4),
        ({**BEAMS, "do_sample": True}, "beam_sample", 4),
        ({**BEAMS, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group_beam", 4),
        ({**BEAMS, "num_beam_groups": 2, "do_sample": True}, "group_beam", 4),
        ({"force_words": ["red"]}, "constrained_greedy", 1),
        ({"force_words": ["red"], "do_sample": True, "num_return_sequences": 2}, "constrained_sample", 2),
        ({**BEAMS, "force_words": ["red"]}, "constrained_beam", 4),
        ({**BEAMS, "force_words": ["red"], "do_sample": True}, "constrained_beam_sample", 4),
        ({**BEAMS, "force_words": ["red"], "num_beam_groups": 2, "diversity_penalty": 1}, "constrained_group_beam", 4),
    ],
)
def test_the_strategy_follows_from_the_knobs(knobs, strategy, rows):
    params = GenerationParams(**knobs)
    assert (params.strategy, params.live_rows) == (strategy, rows)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"temperature": 0.7}, "temperature has no effect without do_sample; set do_sample to true as well"),
        ({"seed": 0, "top_k": 5}, "seed, top_k has no effect without do_sample; set do_sample to true as well"),
        ({"min_p": 0.1}, "min_p has no effect without do_sample"),
        ({"typical_p": 0.1}, "typical_p has no effect without do_sample"),
        ({"diversity_penalty": 1}, "diversity_penalty has no effect without num_beam_groups > 1"),
        ({"length_penalty": 2}, "length_penalty has no effect without num_beams > 1"),
        ({"early_stopping": "never"}, "early_stopping has no effect without num_beams > 1"),
        ({"include_stop": True}, "include_stop has no effect without stop_sequences"),
        ({"exact_reference": True}, "exact_reference has no effect without constraints"),
        ({"num_beam_groups": 2}, r"num_beams (1) cannot be divided by num_beam_groups (2)"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beams (4) cannot be divided by num_beam_groups (3)"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups (2) without diversity_penalty"),
        ({"num_return_sequences": 2}, "num_return_sequences (2) without do_sample or num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences (3) is more than num_beams (2)"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens (9) is more than max_new_tokens (8)"),
        ({"min_length": 9, "max_length": 8}, "min_length (9) is more than max_length (8)"),
        ({"force_words": ["red"], "exact_reference": True}, "exact_reference copies a search with beams"),
        (
            {"force_words": ["red"], "num_beams": 2, "do_sample": True, "exact_reference": True},
            "exact_reference copies a search with beams, without groups and draws",
        ),
        ({"force_words": ["a red car"], "bad_words": ["red"], "num_beams": 2}, "force_words asks for 'a red car'"),
        (
            {"force_words_ids": [[1, 2, 3]], "bad_words_ids": [[2, 3]], "num_beams": 2},
            "force_words_ids asks for (1, 2, 3), which bad_words forbids",
        ),
        (
            {"constraints": [{"phrase": "red"}], "force_words": ["red"], "num_beams": 2},
            "constraints, force_words holds a phrase twice",
        ),
        ({"force_words_ids": [[[1, 2], [1]]], "num_beams": 2}, "(1, 2) begins with (1,)"),
        ({"constraints": [{"choice": ["ab", "a"]}], "num_beams": 2}, "'ab' begins with 'a'"),
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex both say what the answer looks like"),
        ({"temperature": 0, "do_sample": True}, "temperature 0 would be greedy search"),
        ({"num_beams": True}, "a number is asked for"),
        ({"top_p": True, "do_sample": True}, "a number is asked for"),
    ],
)
def test_a_wrong_combination_names_the_knobs(knobs, words):
    assert words in fault_of(**knobs)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**9),
        ("max_new_tokens", 1e300),
        ("max_length", 0),
        ("min_new_tokens", -1),
        ("do_sample", 1),
        ("use_cache", "yes"),
        ("temperature", -1),
        ("temperature", 100.1),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("no_repeat_ngram_size", -1),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [[-1]]),
        ("bad_words", [""]),
        ("logit_bias", {"5": math.nan}),
        ("logit_bias", {"-5": 1}),
        ("num_beams", 0),
        ("num_beams", 1025),
        ("length_penalty", math.inf),
        ("early_stopping", "sometimes"),
        ("early_stopping", 1),
        ("num_return_sequences", 0),
        ("stop_sequences", [""]),
        ("stop_sequences", [[]]),
        ("stop_sequences", [[True]]),
        ("force_words_ids", [[]]),
        ("force_words_ids", [[[]]]),
        ("force_words", [""]),
        ("force_words", [[]]),
        ("constraints", [{"phrase": ""}]),
        ("constraints", [{"choice": []}]),
        ("constraints", [{"phrases": "a"}]),
        ("json_schema", "object"),
        ("regex", ""),
        ("seed", -1),
        ("seed", 2**63),
        ("logprobs", 21),
        ("eos_token_id", -1),
    ],
)
def test_knob_values_out_of_range_are_refused(knob, value):
    with pytest.raises(ValidationError) as caught:
        GenerationParams(do_sample=True, **{knob: value}) if knob != "do_sample" else GenerationParams(do_sample=value)
    assert caught.value.errors()[0]["loc"][0] == knob


def test_a_default_is_never_in_the_way():
    GenerationParams(temperature=1, top_k=None, length_penalty=1.0, num_beam_groups=1, include_stop=False)
    params = GenerationParams(
        num_beams=2, constraints=[{"phrase": "hi"}, {"choice": ["a", [1]]}], stop_sequences=["x", [1, 2]], logprobs=0
    )
    assert GenerationParams(**params.model_dump()) == params
    assert GenerationParams(**params.model_dump(mode="json")) == params


def test_all_ways_to_force_words_become_one_list():
    params = GenerationParams(
        num_beams=2,
        constraints=[Phrase(phrase=[7]), Choice(choice=["a", [8]])],
        force_words_ids=[[1, 2], [[3], [4, 5]]],
        force_words=["red", ["b", "c"]],
    )
    assert params.forced == (((7,),), ("a", (8,)), ((1, 2),), ((3,), (4, 5)), ("red",), ("b", "c"))


def test_new_tokens_override_lengths():
    assert GenerationParams(max_length=30).new_tokens_limit(12) == 18
    assert GenerationParams(max_length=30, max_new_tokens=5).new_tokens_limit(12) == 5
    assert GenerationParams(max_length=30, min_length=20).min_new(12) == 8
    assert GenerationParams(max_length=30, min_length=10).min_new(12) == 0
    assert GenerationParams(max_length=30, min_length=20, min_new_tokens=3).min_new(12) == 3


def test_eos_can_be_replaced_and_taken_away():
    assert GenerationParams().eos_ids([2, 3]) == {2, 3}
    assert GenerationParams(eos_token_id=5).eos_ids([2]) == {5}
    assert GenerationParams(eos_token_id=[5, 6]).eos_ids([2]) == {5, 6}
    assert GenerationParams(eos_token_id=[]).eos_ids([2]) == frozenset()


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"max_length": 10}, "the prompt has 10 tokens, and max_length is 10"),
        ({"min_new_tokens": 21}, "min_new_tokens asks for 21 new tokens, and at most 20 are generated"),
        ({"min_length": 40}, "min_length asks for 30 new tokens, and at most 20"),
        ({"bad_words_ids": [[1, 50]]}, "bad_words_ids: token id 50"),
        ({"stop_sequences": ["a", [51]]}, "stop_sequences: token id 51"),
        ({"logit_bias": {"52": 1}}, "logit_bias: token id 52"),
        ({"eos_token_id": 53}, "eos_token_id: token id 53"),
        ({"force_words_ids": [[54]], **BEAMS}, "forced phrases: token id 54"),
        ({"force_words_ids": [[1, 2]], **BEAMS}, "a forced phrase holds token 2, which ends the answer"),
        ({"force_words_ids": [[1] * 21], **BEAMS}, "a forced phrase has 21 tokens, and at most 20 are generated"),
        ({"bad_words_ids": [[token] for token in range(50)]}, "bad_words_ids bans every token"),
    ],
)
def test_knobs_that_do_not_fit_the_model_or_the_prompt(knobs, words):
    with pytest.raises(ConfigError, match="^" + words.replace("(", r"\(").replace("+", r"\+")):
        GenerationParams(**knobs).check_against(vocab_size=50, prompt_length=10, eos_token_ids=[2])


def test_knobs_that_fit():
    params = GenerationParams(
        max_length=11, bad_words_ids=[[49]], eos_token_id=1, force_words_ids=[[2], [[1, 3], [4]]], **BEAMS
    )
    params.check_against(vocab_size=50, prompt_length=10)


# -- from transformers


def test_a_bare_hf_config_is_the_default():
    assert GenerationParams.from_hf(GenerationConfig()) == GenerationParams()
    defaults_of_4_56 = {"max_length": 20, "min_length": 0, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    off = {"epsilon_cutoff": 0.0, "encoder_repetition_penalty": 1.0, "token_healing": False, "typical_p": 1.0}
    assert GenerationParams.from_hf(defaults_of_4_56 | off | {"pad_token_id": 3}) == GenerationParams()


def test_hf_knobs_carry_over():
    config = GenerationConfig(
        max_new_tokens=9, do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[1, 2], stop_strings="END"
    )
    assert GenerationParams.from_hf(config) == GenerationParams(
        max_new_tokens=9,
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=50,  # transformers fills it in
        eos_token_id=[1, 2],
        stop_sequences=["END"],
        include_stop=True,  # transformers leaves it in the answer
    )
    assert GenerationParams.from_hf({"do_sample": True, "top_k": 0}).top_k is None
    words = {"force_words_ids": [[1, 2], [[3], [4]]], "num_beams": 3}
    assert GenerationParams.from_hf(words) == GenerationParams(**words)


def test_hf_constraints_carry_over():
    class Constraint:
        def __init__(self, token_ids: list) -> None:
            self.token_ids = token_ids

    given = {"constraints": [Constraint([1, 2]), Constraint([[3], [4]]), {"phrase": [5]}], "num_beams": 2}
    assert GenerationParams.from_hf(given).forced == (((1, 2),), ((3,), (4,)), ((5,),))


def test_hf_knobs_that_are_missing_here_are_named():
    with pytest.raises(ConfigError, match="guidance_scale, max_time is not a knob here"):
        GenerationParams.from_hf({"max_time": 3.0, "guidance_scale": 1.5, "eta_cutoff": 0.0})
    with pytest.raises(ConfigError, match="chat_format is not a knob here"):
        GenerationParams.from_hf({"chat_format": "chatml"})
    with pytest.raises(ConfigError, match="temperature has no effect without do_sample"):
        GenerationParams.from_hf({"temperature": 0.5})
