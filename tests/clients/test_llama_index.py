"""llama-index, as it comes."""

from __future__ import annotations

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
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


@pytest.fixture
def model(url):
    return OpenAILike(
        model="tiny",
        api_base=url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=200,
        temperature=0,
        max_retries=0,
    )


def test_an_answer_and_its_stream(model):
    hello = [ChatMessage(role="user", content="hello")]
    assert model.chat(hello).message.content == "Hello there."
    assert "".join(piece.delta or "" for piece in model.stream_chat(hello)) == "Hello there."


def test_a_tool_is_called(model):
    calls = model.get_tool_calls_from_response(model.chat_with_tools([WEATHER], user_msg=RAIN))
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("weather", {"city": "Paris"})]
    assert str(model.predict_and_call([WEATHER], user_msg=RAIN)) == "rain"


def test_a_streamed_call(model):
    *_, last = model.stream_chat_with_tools([WEATHER], user_msg=RAIN)
    calls = model.get_tool_calls_from_response(last)
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("weather", {"city": "Paris"})]


def test_a_form(model):
    answer = model.as_structured_llm(Person).chat([ChatMessage(role="user", content="Who is Ada?")])
    assert answer.raw == Person(name="Ada", age=36)


def test_embeddings(url):
    made = OpenAILikeEmbedding(model_name="tiny-embedder", api_base=url, api_key="none")
    assert len(made.get_text_embedding("one")) == len(made.get_query_embedding("two"))
