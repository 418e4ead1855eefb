"""openai, as it comes."""

from __future__ import annotations

import json

import pytest
from asking import ADA, HELLO, RAIN, THINK, WEATHER
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(url):
    with OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def ask(client, messages, **more):
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=200, temperature=0, **more)


def test_an_answer_and_its_stream(client):
    assert ask(client, HELLO).choices[0].message.content == "Hello there."
    pieces = list(ask(client, HELLO, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == "Hello there."
    assert pieces[-1].usage.completion_tokens > 1


def test_a_tool_is_called_and_its_result_used(client):
    choice = ask(client, RAIN, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    answer = ask(client, [*RAIN, choice.message, result], tools=[WEATHER])
    assert answer.choices[0].message.content == "It rains in Paris."


def test_a_streamed_call(client):
    with client.chat.completions.stream(
        model="tiny", messages=RAIN, tools=[WEATHER], max_tokens=200, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert message.content == "Let me see."
    assert message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}


def test_parsed_answers_and_parsed_calls(client):
    parse = client.chat.completions.parse
    form = parse(model="tiny", messages=ADA, response_format=Person, max_tokens=200, temperature=0)
    assert form.choices[0].message.parsed == Person(name="Ada", age=36)
    tools = [pydantic_function_tool(Person)]
    called = parse(model="tiny", messages=ADA, tools=tools, tool_choice="required", max_tokens=200, temperature=0)
    assert called.choices[0].message.tool_calls[0].function.parsed_arguments == Person(name="Ada", age=36)


def test_log_probabilities(client):
    choice = ask(client, HELLO, logprobs=True, top_logprobs=2).choices[0]
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_reasoning(client):
    message = ask(client, THINK).choices[0].message
    assert (message.content, message.reasoning_content) == ("Yes.", "Hm.")


def test_embeddings(client):
    found = client.embeddings.create(model="tiny-embedder", input=["one", "two"])
    assert len(found.data) == 2
    assert sum(x * x for x in found.data[0].embedding) == pytest.approx(1, abs=1e-3)


def test_responses(client):
    whole = client.responses.create(model="tiny", input="hello", temperature=0, max_output_tokens=200)
    assert (whole.output_text, whole.store) == ("Hello there.", False)
    flat = {"type": "function", **WEATHER["function"]}
    called = client.responses.create(model="tiny", input=RAIN, tools=[flat], temperature=0, max_output_tokens=200)
    call = called.output[-1]
    assert (call.type, json.loads(call.arguments)) == ("function_call", {"city": "Paris"})
    again = [*RAIN, *called.output, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    answer = client.responses.create(model="tiny", input=again, tools=[flat], temperature=0, max_output_tokens=200)
    assert answer.output_text == "It rains in Paris."


def test_streamed_and_parsed_responses(client):
    with client.responses.stream(
        model="tiny", input=ADA, text_format=Person, temperature=0, max_output_tokens=200
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert final.output_parsed == Person(name="Ada", age=36)
    thought = client.responses.create(model="tiny", input=THINK, temperature=0, max_output_tokens=200)
    assert [item.type for item in thought.output] == ["reasoning", "message"]
