"""openai, as it comes."""

from __future__ import annotations

import asyncio
import json

import pytest
from asking import ADA, BOTH, HELLO, MUST, RAIN, THINK, WEATHER
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter


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


def test_several_calls(client):
    choice = ask(client, BOTH, tools=[WEATHER]).choices[0]
    assert [json.loads(call.function.arguments)["city"] for call in choice.message.tool_calls] == ["Paris", "Rome"]
    with client.chat.completions.stream(
        model="tiny", messages=BOTH, tools=[WEATHER], max_tokens=300, temperature=0
    ) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.parsed_arguments["city"] for call in calls] == ["Paris", "Rome"]
    assert len({call.id for call in calls}) == 2
    only = ask(client, BOTH, tools=[WEATHER], parallel_tool_calls=False).choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in only] == ["Paris"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_come(client, choice):
    answer = ask(client, MUST, tools=[WEATHER, pydantic_function_tool(Person)], tool_choice=choice).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    call = answer.message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})


def test_no_call(client):
    choice = ask(client, RAIN, tools=[WEATHER], tool_choice="none").choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)


def test_parsed_answers_and_parsed_calls(client):
    parse = client.chat.completions.parse
    form = parse(model="tiny", messages=ADA, response_format=Person, max_tokens=200, temperature=0)
    assert form.choices[0].message.parsed == Person(name="Ada", age=36)
    tools = [pydantic_function_tool(Person)]
    called = parse(model="tiny", messages=ADA, tools=tools, tool_choice="required", max_tokens=200, temperature=0)
    assert called.choices[0].message.tool_calls[0].function.parsed_arguments == Person(name="Ada", age=36)


def test_a_streamed_form(client):
    with client.chat.completions.stream(
        model="tiny", messages=ADA, response_format=Person, max_tokens=200, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.parsed == Person(name="Ada", age=36)
    assert {"content.delta", "content.done"} <= kinds


def test_log_probabilities(client):
    choice = ask(client, HELLO, logprobs=True, top_logprobs=2).choices[0]
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=200, temperature=0
    ) as stream:
        assert stream.get_final_completion().choices[0].logprobs == choice.logprobs


def test_completions(client):
    """The older route: several prompts, an echo, log-probabilities, and the same in pieces."""
    given = {"model": "tiny", "max_tokens": 8, "temperature": 0, "logprobs": 2}
    first, second = client.completions.create(prompt=["hello", "Who is Ada?"], echo=True, **given).choices
    assert (first.text[:10], second.text[:12]) == ("helloHello", "Who is Ada?{")
    assert "".join(first.logprobs.tokens) == first.text
    assert first.logprobs.token_logprobs[0] is None
    assert first.logprobs.text_offset[:2] == [0, len(first.logprobs.tokens[0])]
    whole = client.completions.create(prompt="hello", **given)
    pieces = list(
        client.completions.create(prompt="hello", stream=True, stream_options={"include_usage": True}, **given)
    )
    assert "".join(one.choices[0].text for one in pieces if one.choices) == whole.choices[0].text
    assert pieces[-1].usage == whole.usage
    told = [
        number
        for one in pieces
        if one.choices and one.choices[0].logprobs
        for number in one.choices[0].logprobs.token_logprobs
    ]
    assert told == whole.choices[0].logprobs.token_logprobs


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-embedder"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_going_on_with_an_answer(client):
    begun = [*HELLO, {"role": "assistant", "content": "Well. "}]
    more = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
    whole = ask(client, begun, **more)
    assert whole.choices[0].message.content == "Hello there."
    assert whole.usage.prompt_tokens != ask(client, begun).usage.prompt_tokens


def test_several_at_once(url):
    async def main():
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def words(messages):
                pieces = await client.chat.completions.create(
                    model="tiny", messages=messages, max_tokens=200, temperature=0, stream=True
                )
                return "".join([one.choices[0].delta.content or "" async for one in pieces if one.choices])

            return await asyncio.gather(words(HELLO), words(ADA), words(HELLO))

    assert asyncio.run(main()) == ["Hello there.", '{"name": "Ada", "age": 36}', "Hello there."]


def test_the_shapes_are_openais_own(client):
    """The client builds its objects without looking; other programs do look."""
    for messages, more in ((HELLO, {"logprobs": True}), (RAIN, {"tools": [WEATHER]}), (THINK, {})):
        ChatCompletion.model_validate(ask(client, messages, **more).to_dict(), strict=True)
        for piece in ask(client, messages, stream=True, stream_options={"include_usage": True}, **more):
            ChatCompletionChunk.model_validate(piece.to_dict(), strict=True)
    event_type = TypeAdapter(ResponseStreamEvent)
    flat = {"type": "function", **WEATHER["function"]}
    for asked, more in ((HELLO, {"include": ["message.output_text.logprobs"]}), (RAIN, {"tools": [flat]}), (THINK, {})):
        given = {"model": "tiny", "input": asked, "temperature": 0, "max_output_tokens": 200, **more}
        Response.model_validate(client.responses.create(**given).to_dict())
        events = list(client.responses.create(**given, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        for event in events:
            event_type.validate_python(event.to_dict())


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
    parsed = client.responses.parse(model="tiny", input=ADA, text_format=Person, temperature=0)
    assert parsed.output_parsed == Person(name="Ada", age=36)


def test_the_events_of_a_call(client):
    flat = {"type": "function", **WEATHER["function"]}
    given = {"model": "tiny", "input": RAIN, "tools": [flat], "temperature": 0, "max_output_tokens": 200}
    kinds = [event.type for event in client.responses.create(**given, stream=True)]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
    ]
