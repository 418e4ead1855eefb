"""What clients send out of habit: passed over where it says nothing, refused where it would change an answer."""

from __future__ import annotations

import pytest
from http_bodies import HELLO, chat, fault, text


@pytest.mark.parametrize(
    "habit",
    [
        {"seed": -1}, {"top_k": 0}, {"top_k": -1}, {"max_tokens": -1}, {"best_of": 1}, {"n": 2, "best_of": 2},
        {"suffix": ""}, {"stop": []}, {"logprobs": False}, {"ignore_eos": False}, {"min_tokens": 0},
        {"include_stop_str_in_output": True},
    ],
)  # fmt: skip
def test_values_that_switch_something_off_elsewhere_are_not_given(habit):
    assert text(**habit).params == text(**{name: value for name, value in habit.items() if name == "n"}).params


@pytest.mark.parametrize(
    "habit",
    [
        {"modalities": ["text"]}, {"verbosity": "low"}, {"tool_choice": "none"}, {"tool_choice": "auto", "tools": []},
        {"parallel_tool_calls": True}, {"parallel_tool_calls": False}, {"functions": [], "function_call": "none"},
        {"function_call": "auto"}, {"logprobs": False, "top_logprobs": 0}, {"top_logprobs": 0}, {"stream_options": {}},
        {"stream_options": {"include_usage": False}}, {"response_format": {"type": "text"}}, {"n": 1},
        {"audio": None, "prediction": None, "web_search_options": None, "stream_options": None, "logit_bias": {}},
        {"add_generation_prompt": True}, {"continue_final_message": False}, {"chat_template_kwargs": {}},
    ],
)  # fmt: skip
def test_values_of_chats_without_effect(habit):
    read, plain = chat(**habit), chat()
    assert (read.params, read.talk) == (plain.params, plain.talk)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"reasoning_effort": "much"}, "'minimal'"),
        ({"verbosity": "much"}, "not supported yet"),
        ({"functions": [{"name": "f"}], "function_call": "auto"}, "functions: an older name; use tools"),
        ({"function_call": {"name": "f"}}, "function_call: an older name; use tool_choice"),
        ({"top_logprobs": 1}, "set logprobs to true"),
        ({"top_logprobs": False}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "set stream to true"),
        ({"stream_options": {"include_usage": 0}}, "stream_options"),
        ({"stream_options": {"usage": False}}, "unknown key"),
        ({"audio": {"voice": "a"}}, "audio: not supported yet"),
        ({"web_search_options": {}}, "web_search_options: not supported yet"),
    ],
)
def test_values_of_chats_that_would_have_one_are_refused(wrong, words):
    error = fault(chat, **wrong)
    assert error.param in wrong
    assert words in error.message


def test_no_nucleus_is_the_likeliest_token():
    assert 0 < text(top_p=0).params.top_p < 1e-6
    assert fault(text, top_p=False).param == "top_p"


def test_what_would_change_an_answer_is_still_refused():
    for wrong in ({"suffix": "x"}, {"modalities": ["audio"]}, {"prediction": {}}):
        assert fault(text, **wrong).code == "unsupported"


def test_keys_of_messages_that_say_nothing():
    turn = {"role": "user", "id": "m1", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "x"}}]}
    silent = {"role": "assistant", "content": None, "audio": None}
    read = chat(messages=[turn, silent, {**HELLO[0], "timestamp": 3}]).prompts[0]
    assert read == ({"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}, HELLO[0])


def test_vllms_names():
    params = text(min_tokens=2, ignore_eos=True, stop="x", include_stop_str_in_output=True, stop_token_ids=[7]).params
    assert (params.min_new_tokens, params.eos_token_id, params.include_stop) == (2, (), True)
    assert params.eos_ids([3]) == {7}
    assert text(guided_choice=["a", "b"]).params.choices == ("a", "b")
    assert text(guided_grammar="start: x").params.grammar == "start: x"


@pytest.mark.parametrize(
    ("wanted", "knob", "value"),
    [
        ({"json": {"type": "object"}}, "json_schema", {"type": "object"}),
        ({"json": '{"type": "array"}'}, "json_schema", {"type": "array"}),
        ({"json_object": True}, "json_schema", {"type": "object"}),
        ({"regex": "a+"}, "regex", "a+"),
        ({"choice": ["a"]}, "choices", ("a",)),
        ({"grammar": "start: x"}, "grammar", "start: x"),
    ],
)
def test_structured_outputs(wanted, knob, value):
    assert getattr(text(structured_outputs=wanted).params, knob) == value


def test_structured_outputs_take_one_form_and_no_other_beside():
    for wrong in ({}, {"regex": "a", "choice": ["a"]}):
        assert "one of json" in fault(text, structured_outputs=wrong).message
    assert fault(text, structured_outputs={"regex": "a"}, guided_regex="b").code == "contradiction"
