"""litellm, as it comes."""

from __future__ import annotations

import json

import litellm
import pytest
from asking import ADA, HELLO, RAIN, THINK, WEATHER
from pydantic import BaseModel

litellm.suppress_debug_info = True


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def ask(url):
    def run(messages, **more):
        given = {"model": "openai/tiny", "api_base": url, "api_key": "none", "max_tokens": 200, "temperature": 0}
        return litellm.completion(messages=messages, num_retries=0, **given, **more)

    return run


def test_an_answer_and_its_stream(ask):
    assert ask(HELLO).choices[0].message.content == "Hello there."
    pieces = ask(HELLO, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Hello there."


def test_a_tool_is_called_and_its_result_used(ask):
    choice = ask(RAIN, tools=[WEATHER], tool_choice="auto").choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "rain"}
    answer = ask([*RAIN, choice.message.model_dump(), result], tools=[WEATHER])
    assert answer.choices[0].message.content == "It rains in Paris."


def test_a_streamed_call(ask):
    pieces = list(ask(RAIN, tools=[WEATHER], stream=True))
    whole = litellm.stream_chunk_builder(pieces).choices[0].message
    assert json.loads(whole.tool_calls[0].function.arguments) == {"city": "Paris"}
    assert whole.content == "Let me see."


def test_a_form(ask):
    assert json.loads(ask(ADA, response_format=Person).choices[0].message.content) == {"name": "Ada", "age": 36}


def test_log_probabilities(ask):
    assert ask(HELLO, logprobs=True, top_logprobs=1).choices[0].logprobs.content[0].top_logprobs


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_reasoning(ask, stream):
    if stream:
        pieces = list(ask(THINK, stream=True))
        thought = [getattr(piece.choices[0].delta, "reasoning_content", None) or "" for piece in pieces]
        assert "".join(thought) == "Hm."
    else:
        assert ask(THINK).choices[0].message.reasoning_content == "Hm."


def test_embeddings(url):
    found = litellm.embedding(model="openai/tiny-embedder", input=["one", "two"], api_base=url, api_key="none")
    assert len(found.data) == 2


def test_responses(url):
    given = {"model": "openai/tiny", "api_base": url, "api_key": "none", "temperature": 0, "max_output_tokens": 200}
    answer = litellm.responses(input="hello", **given)
    assert answer.output[-1].content[0].text == "Hello there."
    kinds = [str(event.type) for event in litellm.responses(input="hello", stream=True, **given)]
    assert any("completed" in kind.lower() for kind in kinds)
