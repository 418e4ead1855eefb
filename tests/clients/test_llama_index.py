"""llama-index, as it comes."""

from __future__ import annotations

import asyncio

import pytest
from asking import LONG
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.llms import ChatMessage, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses
from openai import BadRequestError
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def weather(city: str) -> str:
    """The weather of a city."""
    return "rain"


WEATHER = FunctionTool.from_defaults(weather)
RAIN = "How is the weather in Paris?"


HELLO = [ChatMessage(role="user", content="hello")]
SHARED = {"model": "tiny", "api_key": "none", "temperature": 0, "max_retries": 0, "is_chat_model": True}


def make(url, **more):
    return OpenAILike(api_base=url, **{**SHARED, "max_tokens": 200, "is_function_calling_model": True, **more})


@pytest.fixture(params=["chat", "responses"])
def model(url, request):
    """By either route."""
    if request.param == "chat":
        return make(url)
    return OpenAILikeResponses(api_base=url, max_output_tokens=200, is_function_calling_model=True, **SHARED)


def test_an_answer_and_its_stream(model):
    assert model.chat(HELLO).message.content == "Hello there."
    assert "".join(piece.delta or "" for piece in model.stream_chat(HELLO)) == "Hello there."
    assert model.complete("hello").text == "Hello there."


def test_a_tool_is_called(model):
    calls = model.get_tool_calls_from_response(model.chat_with_tools([WEATHER], user_msg=RAIN))
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("weather", {"city": "Paris"})]
    assert str(model.predict_and_call([WEATHER], user_msg=RAIN)) == "rain"


def test_a_streamed_call(model):
    *_, last = model.stream_chat_with_tools([WEATHER], user_msg=RAIN)
    calls = model.get_tool_calls_from_response(last)
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("weather", {"city": "Paris"})]


def test_several_calls(model):
    question = "How is the weather in Paris and Rome?"
    answer = model.chat_with_tools([WEATHER], user_msg=question, allow_parallel_tool_calls=True)
    calls = model.get_tool_calls_from_response(answer)
    assert [call.tool_kwargs["city"] for call in calls] == ["Paris", "Rome"]


def test_a_call_that_must_come(model):
    question = "You must ask for the weather in Paris."
    for more in ({"tool_required": True}, {"tool_choice": "weather"}):
        answer = model.chat_with_tools([WEATHER], user_msg=question, **more)
        assert [call.tool_name for call in model.get_tool_calls_from_response(answer)] == ["weather"]


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent(model, streaming):
    """It asks, calls, gives the result back and hears the answer."""

    async def main():
        return str(await FunctionAgent(tools=[WEATHER], llm=model, streaming=streaming).run(RAIN))

    assert asyncio.run(main()) == "It rains in Paris."


def test_a_form(model):
    answer = model.as_structured_llm(Person).chat([ChatMessage(role="user", content="Who is Ada?")])
    assert answer.raw == Person(name="Ada", age=36)
    assert model.structured_predict(Person, PromptTemplate("Who is Ada?")) == Person(name="Ada", age=36)


def test_a_streamed_form(url):
    """By way of chats alone: of responses, it forgets the call that it has read by the time the stream ends."""
    *_, last = make(url).stream_structured_predict(Person, PromptTemplate("Who is Ada?"))
    assert last == Person(name="Ada", age=36)


def test_a_form_by_schema(url):
    able = make(url, should_use_structured_outputs=True)
    assert able.structured_predict(Person, PromptTemplate("Who is Ada?")) == Person(name="Ada", age=36)


def test_the_older_route(url):
    older = make(url, is_chat_model=False, is_function_calling_model=False, max_tokens=12)
    assert older.complete("hello").text == "Hello there."
    assert "".join(piece.delta or "" for piece in older.stream_complete("hello")) == "Hello there."


def test_reasoning(url):
    asked, blocks = [ChatMessage("think about it")], [ThinkingBlock(content="Hm."), TextBlock(text="Yes.")]
    assert make(url).chat(asked).message.blocks == blocks
    *_, last = make(url).stream_chat(asked)
    assert last.message.blocks == blocks


def test_at_once(url):
    async def main():
        asked = make(url)
        pieces = [piece.delta or "" async for piece in await asked.astream_chat(HELLO)]
        return "".join(pieces), (await asked.achat(HELLO)).message.content

    assert asyncio.run(main()) == ("Hello there.", "Hello there.")


def test_too_long(url):
    with pytest.raises(BadRequestError) as caught:
        make(url).chat([ChatMessage(LONG[0]["content"])])
    assert caught.value.code == "context_length_exceeded"


def test_embeddings(url):
    made = OpenAILikeEmbedding(model_name="tiny-embedder", api_base=url, api_key="none")
    assert len(made.get_text_embedding("one")) == len(made.get_query_embedding("two"))
