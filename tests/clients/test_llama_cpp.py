"""Danlu before llama.cpp's own server: requests in its words, its answers as they are."""

from __future__ import annotations

import json

import pytest
from asking import HELLO, LONG, WEATHER
from openai import BadRequestError, OpenAI


@pytest.fixture
def client(llama_cpp):
    with OpenAI(base_url=llama_cpp, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def knowing_tools(llama_cpp_with_tools):
    with OpenAI(base_url=llama_cpp_with_tools, api_key="none", max_retries=0) as made:
        yield made


def ask(client, **more):
    return client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, temperature=0, **more)


def test_an_answer_and_its_stream(client):
    whole = ask(client)
    assert whole.usage.completion_tokens > 0
    pieces = list(ask(client, stream=True))
    assert (
        "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == whole.choices[0].message.content
    )


def test_the_same_draws_for_the_same_seed(client):
    more = {"seed": 3, "extra_body": {"top_k": 20, "repetition_penalty": 1.1}}
    assert ask(client, **more).choices[0].message.content == ask(client, **more).choices[0].message.content


def test_log_probabilities(client):
    for wanted in (0, 2):
        told = ask(client, logprobs=True, top_logprobs=wanted).choices[0].logprobs.content
        assert {len(entry.top_logprobs) for entry in told} == {max(wanted, 1)}  # of none it makes one, and not twenty


def test_a_form(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "ok", "schema": schema, "strict": True}}
    choice = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=200, temperature=0, response_format=form
    ).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content)["ok"], bool)


STORM = {"type": "function", "function": {**WEATHER["function"], "name": "storm"}}
NAMED = {"type": "function", "function": {"name": "storm"}}


@pytest.mark.parametrize(
    "choice",
    [
        NAMED,
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
    ],
    ids=["named", "allowed"],
)
def test_a_choice_of_one_tool(knowing_tools, choice):
    """It reads such a choice as auto; Danlu sends that tool alone. (A model that knows nothing calls nothing.)"""

    def read(**more):
        return ask(knowing_tools, **more).usage.prompt_tokens

    both = read(tools=[WEATHER, STORM], tool_choice="required")
    chosen = read(tools=[WEATHER, STORM], tool_choice=choice)
    assert read() < read(tools=[STORM]) == chosen < both


def test_tools_that_its_template_does_not_know_are_refused(client):
    """It would leave them out, and answer as if there were none."""
    with pytest.raises(BadRequestError, match="chat template of the model there knows no tools") as caught:
        ask(client, tools=[WEATHER], tool_choice="required")
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_by_backend")


def test_a_conversation_with_calls(knowing_tools):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    given = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    answer = knowing_tools.chat.completions.create(messages=messages, tools=[WEATHER], **given)
    assert answer.usage.prompt_tokens > ask(knowing_tools, tools=[WEATHER]).usage.prompt_tokens


def test_only_what_is_new_comes_back(client):
    begun = [*HELLO, {"role": "assistant", "content": "Well, "}]
    given = {"model": "tiny", "messages": begun, "max_tokens": 8, "temperature": 0}
    given["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
    whole = client.chat.completions.create(**given).choices[0].message.content
    pieces = client.chat.completions.create(**given, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == whole
    assert not whole.startswith("Well")


def test_completions(client):
    given = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**given)
    assert whole.usage.completion_tokens > 0
    assert (
        "".join(one.choices[0].text for one in client.completions.create(**given, stream=True)) == whole.choices[0].text
    )


def test_too_long(client):
    for asked in (LONG, [{"role": "user", "content": "hello" * 900}]):
        with pytest.raises(BadRequestError, match="context size") as caught:
            client.chat.completions.create(model="tiny", messages=asked)
        assert caught.value.code == "context_length_exceeded"


def test_a_response_and_its_stream(client):
    given = {"model": "tiny", "input": "hello", "max_output_tokens": 8, "temperature": 0}
    whole = client.responses.create(**given)
    *_, last = client.responses.create(**given, stream=True)
    assert last.type == f"response.{whole.status}"
    assert last.response.output_text == whole.output_text


def test_what_it_cannot_do_is_refused_by_name(client):
    with pytest.raises(BadRequestError, match="num_beams"):
        ask(client, extra_body={"num_beams": 2})
