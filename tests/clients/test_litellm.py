"""litellm, as it comes."""

from __future__ import annotations

import asyncio
import json

import litellm
import pytest
from asking import ADA, BOTH, COUNT, HELLO, LONG, MUST, RAIN, THINK, WEATHER, until
from pydantic import BaseModel

litellm.suppress_debug_info = True


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def given(url):
    return {"model": "openai/tiny", "api_base": url, "api_key": "none", "num_retries": 0, "temperature": 0}


@pytest.fixture
def ask(given):
    def run(messages, **more):
        return litellm.completion(messages=messages, **{**given, "max_tokens": 200, **more})

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


def test_several_calls(ask):
    calls = ask(BOTH, tools=[WEATHER]).choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    whole = litellm.stream_chunk_builder(list(ask(BOTH, tools=[WEATHER], stream=True))).choices[0].message
    assert [json.loads(call.function.arguments)["city"] for call in whole.tool_calls] == ["Paris", "Rome"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_come(ask, choice):
    call = ask(MUST, tools=[WEATHER], tool_choice=choice).choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_a_form(ask):
    assert json.loads(ask(ADA, response_format={"type": "json_object"}).choices[0].message.content)["age"] == 36
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


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "lm_studio", "litellm_proxy"])
def test_names_of_providers(ask, provider):
    """Those under which people reach a server of their own."""
    *pieces, last = ask(THINK, model=f"{provider}/tiny", stream=True, stream_options={"include_usage": True})
    deltas = [piece.choices[0].delta for piece in pieces if piece.choices]
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert (thought, "".join(delta.content or "" for delta in deltas)) == ("Hm.", "Yes.")
    assert last.usage.completion_tokens > 1


def test_an_answer_that_thought_goes_back(ask):
    earlier = ask(THINK).choices[0].message
    assert ask([*THINK, earlier, *HELLO]).choices[0].message.content == "Hello there."
    assert ask([*THINK, earlier.model_dump(), *HELLO]).choices[0].message.content == "Hello there."


def test_at_once(given):
    async def main():
        asked = [litellm.acompletion(messages=one, max_tokens=200, **given) for one in (HELLO, ADA)]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == ["Hello there.", '{"name": "Ada", "age": 36}']


def test_completions(given):
    whole = litellm.text_completion(prompt="hello", max_tokens=12, logprobs=1, **given).choices[0]
    assert (whole.text, len(whole.logprobs.tokens)) == ("Hello there.", 10)
    pieces = litellm.text_completion(prompt="hello", max_tokens=12, stream=True, **given)
    assert "".join(piece.choices[0].text or "" for piece in pieces) == "Hello there."


def test_errors_keep_their_kind(ask, outcomes):
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(LONG)
    with pytest.raises(litellm.NotFoundError):
        ask(HELLO, model="openai/gpt-4o")
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        ask(HELLO, temperature=-1)
    with pytest.raises(litellm.AuthenticationError):
        ask(HELLO, api_key="wrong")
    before = outcomes("cancelled")
    busy = [ask(COUNT, stream=True, max_tokens=7000) for _ in range(4)]
    for one in busy:
        next(one)
    with pytest.raises(litellm.RateLimitError):
        ask(HELLO, max_retries=0)
    for one in busy:
        one.completion_stream.close()
    until(lambda: outcomes("cancelled") == before + 4)
    with pytest.raises(litellm.Timeout):
        ask(COUNT, max_tokens=7000, timeout=0.5, max_retries=0)
    until(lambda: outcomes("cancelled") == before + 5)


def test_embeddings(url):
    found = litellm.embedding(model="openai/tiny-embedder", input=["one", "two"], api_base=url, api_key="none")
    assert len(found.data) == 2


def test_responses(given):
    given["max_output_tokens"] = 200
    answer = litellm.responses(input="hello", **given)
    assert answer.output[-1].content[0].text == "Hello there."
    kinds = [str(event.type) for event in litellm.responses(input="hello", stream=True, **given)]
    assert any("completed" in kind.lower() for kind in kinds)
