"""Reasoning, forms and prefill over HTTP, with a model that says what it is told."""

from __future__ import annotations

import json

import pytest
import templates
from serving import CHAT, HELLO, chat, error, events
from tooling import PARIS, asked, calls_of

from danlu.serve.wire.schema import read_chat


@pytest.fixture
def engine(told):
    """What the fixtures `post` and `start` serve."""
    return told.engine


# -- reasoning


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["THINKING", "THINKS_AT_ONCE"])
def test_reasoning_comes_apart(told, post, name, stream):
    begin = "<think>\n" if name == "THINKING" else ""
    told.says(f"{begin}Which one? Paris.\n</think>\n\nIt is Paris.", getattr(templates, name))
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = post(CHAT, chat(max_tokens=150, temperature=0, **more))
    if stream:
        *pieces, last = events(reply)
        deltas = [piece["choices"][0]["delta"] for piece in pieces]
        message = {
            key: "".join(delta.get(key) or "" for delta in deltas)
            for key in ("content", "reasoning_content", "reasoning")
        }
        assert all(not (delta.get("content") and delta.get("reasoning")) for delta in deltas)
        usage = last["usage"]
    else:
        message, usage = reply.json()["choices"][0]["message"], reply.json()["usage"]
    assert message["content"] == "It is Paris."
    assert message["reasoning_content"] == message["reasoning"] == "Which one? Paris."
    thought = f"{begin}Which one? Paris.\n</think>"
    tokens = usage["completion_tokens_details"]["reasoning_tokens"]
    assert tokens == len(told.own.tokenizer(thought)["input_ids"])
    assert usage["completion_tokens"] > tokens


def test_a_model_that_thinks_may_answer_at_once(told, post):
    told.says("It is Paris.", templates.THINKING)
    body = post(CHAT, chat(max_tokens=50, temperature=0)).json()
    assert body["choices"][0]["message"]["content"] == "It is Paris."
    assert "reasoning" not in body["choices"][0]["message"]
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_reasoning_that_never_ends_is_all_there_is(told, post):
    told.says("<think>\nWhich one? Which one?", templates.THINKING)
    choice = post(CHAT, chat(max_tokens=150, temperature=0)).json()["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"] == "Which one? Which one?"


@pytest.mark.parametrize(
    "more",
    [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}],
    ids=["kwargs", "effort"],
)
def test_thinking_is_switched_off(told, post, more):
    told.says("It is Paris.", templates.THINKING)
    body = post(CHAT, chat(max_tokens=50, temperature=0, **more)).json()
    assert told.prompts[0].endswith("<think>\n\n</think>\n\n")
    assert body["choices"][0]["message"]["content"] == "It is Paris."


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_an_effort_is_passed_over_where_there_is_no_switch(told, post, effort):
    told.says("Paris.")
    answer = post(CHAT, chat(temperature=0, reasoning_effort=effort)).json()["choices"][0]["message"]["content"]
    post("/v1/responses", {"model": "tiny", "input": HELLO[0]["content"], "reasoning": {"effort": effort}})
    post(CHAT, chat(temperature=0))
    assert answer == "Paris."
    assert told.prompts == [told.prompts[-1]] * 3


def test_reasoning_and_then_a_call(told, post):
    told.says(f"<think>\nI need <tool_call>s.\n</think>\n\n{PARIS}", templates.THINKING)
    choice = post(CHAT, asked()).json()["choices"][0]
    assert choice["message"]["reasoning"] == "I need <tool_call>s."
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert calls_of(choice["message"]) == [("weather", {"city": "Paris", "days": 2})]


def test_a_form_holds_after_the_reasoning(told, post):
    told.says('<think>\nA number.\n</think>\n\n{"n": 7}', templates.THINKING)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    message = post(CHAT, chat(max_tokens=90, temperature=0, response_format=form)).json()["choices"][0]["message"]
    assert (json.loads(message["content"]), message["reasoning"]) == ({"n": 7}, "A number.")


def test_logprobs_of_every_token_are_told_once(told, post):
    told.says(f"<think>\nHm.\n</think>\n\nYes.\n{PARIS}", templates.THINKING)
    body = asked(logprobs=True)
    whole = post(CHAT, body).json()
    pieces = [piece["choices"][0] for piece in events(post(CHAT, {**body, "stream": True}))]
    streamed = [entry["token"] for piece in pieces for entry in (piece["logprobs"] or {}).get("content", ())]
    assert streamed == [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert len(streamed) == whole["usage"]["completion_tokens"]


def test_a_form_without_reasoning_is_content(told, post):
    told.says('{"n": 7}', templates.THINKING)
    more = {"response_format": {"type": "json_object"}, "chat_template_kwargs": {"enable_thinking": False}}
    message = post(CHAT, chat(max_tokens=90, temperature=0, **more)).json()["choices"][0]["message"]
    assert message["content"] == '{"n": 7}'
    assert "reasoning" not in message


# -- forms and prefill


def test_json_object_with_a_schema(told):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    ask = read_chat(chat(response_format={"type": "json_object", "schema": schema}))
    assert ask.params.json_schema == schema


def test_an_answer_goes_on_with_what_is_given(told, post):
    told.says(" is Paris.")
    begun = {"role": "assistant", "content": "The capital"}
    reply = post(CHAT, chat(messages=[*HELLO, begun], max_tokens=20, temperature=0, continue_final_message=True))
    assert reply.json()["choices"][0]["message"]["content"] == " is Paris."
    assert told.prompts[0].endswith("<|im_start|>assistant\nThe capital")


@pytest.mark.parametrize("words", ["OK!", "OK!\n", "OK! ", " OK", "<|"])
def test_what_is_gone_on_with_stays_as_it_is(told, post, words):
    told.says("yes", templates.HERMES.replace("{{ message.content }}", "{{ message.content | trim }}"))
    begun = {"role": "assistant", "content": words}
    reply = post(CHAT, chat(messages=[*HELLO, begun], max_tokens=9, temperature=0, continue_final_message=True))
    assert reply.status_code == 200, reply.text
    assert told.prompts[0].endswith("<|im_start|>assistant\n" + words.lstrip())


def test_reasoning_that_is_gone_on_with(told, post):
    begun = {"role": "assistant", "content": "<think>\nWhich"}
    body = chat(messages=[*HELLO, begun], max_tokens=60, temperature=0, continue_final_message=True)
    told.says(" one?\n</think>\n\nParis.", templates.THINKING)
    message = post(CHAT, body).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("one?", "Paris.")
    closes = templates.THINKING.replace("{{ message.content }}", "<think>\n\n</think>\n\n{{ message.content }}")
    told.says("Never.", closes)
    assert error(post(CHAT, body), 400)["param"] == "continue_final_message"


def test_the_opening_can_be_left_out(told, post):
    told.says("x")
    post(CHAT, chat(max_tokens=4, temperature=0, add_generation_prompt=False))
    assert told.prompts[0].endswith("France?<|im_end|>\n")
