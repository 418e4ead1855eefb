"""Danlu before llama.cpp's own server: requests in its words, its answers as they are."""

from __future__ import annotations

import json

import pytest
from asking import HELLO, WEATHER
from openai import BadRequestError, OpenAI


@pytest.fixture
def client(llama_cpp):
    with OpenAI(base_url=llama_cpp, api_key="none", max_retries=0) as made:
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
    assert ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content


def test_a_form(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "ok", "schema": schema, "strict": True}}
    choice = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=200, temperature=0, response_format=form
    ).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content)["ok"], bool)


def test_a_call_that_must_come(client):
    choice = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=400, temperature=0, tools=[WEATHER], tool_choice="required"
    ).choices[0]
    if choice.finish_reason != "length":
        assert choice.message.tool_calls[0].function.name == "weather"


def test_a_response_and_its_stream(client):
    given = {"model": "tiny", "input": "hello", "max_output_tokens": 8, "temperature": 0}
    whole = client.responses.create(**given)
    *_, last = client.responses.create(**given, stream=True)
    assert last.type == f"response.{whole.status}"
    assert last.response.output_text == whole.output_text


def test_what_it_cannot_do_is_refused_by_name(client):
    with pytest.raises(BadRequestError, match="num_beams"):
        ask(client, extra_body={"num_beams": 2})
