"""langchain-openai, as it comes."""

from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return "rain"


def model(url, **more):
    return ChatOpenAI(base_url=url, api_key="none", model="tiny", max_tokens=200, temperature=0, max_retries=0, **more)


def test_an_answer_and_its_stream(url):
    assert model(url).invoke("hello").content == "Hello there."
    pieces = list(model(url, stream_usage=True).stream("hello"))
    assert "".join(piece.content for piece in pieces) == "Hello there."
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) > 1


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_a_tool_is_called_and_its_result_used(url, responses):
    able = model(url, use_responses_api=responses).bind_tools([weather])
    question = HumanMessage("How is the weather in Paris?")
    called = able.invoke([question])
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Paris"})]
    result = ToolMessage("rain", tool_call_id=called.tool_calls[0]["id"])
    assert able.invoke([question, called, result]).text == "It rains in Paris."


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_a_streamed_call(url, responses):
    able = model(url, use_responses_api=responses).bind_tools([weather])
    whole = None
    for piece in able.stream("How is the weather in Paris?"):
        whole = piece if whole is None else whole + piece
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Paris"})]
    assert whole.text == "Let me see."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_forms(url, method):
    assert model(url).with_structured_output(Person, method=method).invoke("Who is Ada?") == Person(name="Ada", age=36)


def test_log_probabilities(url):
    answer = model(url, logprobs=True, top_logprobs=2).invoke("hello")
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_embeddings(url):
    made = OpenAIEmbeddings(base_url=url, api_key="none", model="tiny-embedder", check_embedding_ctx_length=False)
    assert len(made.embed_documents(["one", "two"])) == 2
