"""langchain-openai, as it comes."""

from __future__ import annotations

import asyncio

import pytest
from asking import LONG
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import RateLimitError
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
    given = {"api_key": "none", "model": "tiny", "max_tokens": 200, "temperature": 0, "max_retries": 0, **more}
    return ChatOpenAI(base_url=url, **given)


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


def test_several_calls(url):
    able, question = model(url).bind_tools([weather]), "How is the weather in Paris and Rome?"
    assert [call["args"]["city"] for call in able.invoke(question).tool_calls] == ["Paris", "Rome"]
    single = model(url).bind_tools([weather], parallel_tool_calls=False)
    assert [call["args"]["city"] for call in single.invoke(question).tool_calls] == ["Paris"]


@pytest.mark.parametrize("choice", ["any", "weather"])
@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_a_call_that_must_come(url, choice, responses):
    able = model(url, use_responses_api=responses).bind_tools([weather, Person], tool_choice=choice, strict=True)
    answer = able.invoke("You must ask for the weather in Paris.")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("weather", {"city": "Paris"})]


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("form", [Person, Person.model_json_schema()], ids=["class", "schema"])
def test_forms(url, method, form, responses):
    able = model(url, use_responses_api=responses).with_structured_output(form, method=method, include_raw=True)
    found = able.invoke("Who is Ada?")
    expected = Person(name="Ada", age=36)
    assert (found["parsed"], found["parsing_error"]) == (expected if form is Person else expected.model_dump(), None)


def test_a_streamed_form(url):
    *_, last = model(url).with_structured_output(Person).stream("Who is Ada?")
    assert last == Person(name="Ada", age=36)


def test_at_once_and_in_batches(url):
    async def main():
        asked = model(url)
        pieces = [piece async for piece in asked.astream("hello")]
        return "".join(piece.content for piece in pieces), (await asked.ainvoke("hello")).content

    assert asyncio.run(main()) == ("Hello there.", "Hello there.")
    answers = model(url).batch(["hello", "Who is Ada?"])
    assert [answer.content for answer in answers] == ["Hello there.", '{"name": "Ada", "age": 36}']


def test_the_older_model(url):
    older = OpenAI(base_url=url, api_key="none", model="tiny", max_tokens=12, temperature=0)
    assert older.invoke("hello") == "".join(older.stream("hello")) == "Hello there."


def test_all_roles(url):
    turns = [SystemMessage("Be brief."), HumanMessage("hello", name="bob"), AIMessage("Hm."), HumanMessage("hello")]
    assert model(url).invoke(turns).content == "Hello there."


def test_reasoning(url):
    """It reads reasoning of responses alone; of chats it keeps the words of the answer."""
    assert model(url).invoke("think about it").content == "Yes."
    answer = model(url, use_responses_api=True).invoke("think about it")
    thought = [part for part in answer.content if part["type"] == "reasoning"]
    assert thought[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (answer.text, answer.usage_metadata["output_token_details"]["reasoning"] > 0) == ("Yes.", True)


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_too_long(url, responses):
    with pytest.raises(ContextOverflowError):
        model(url, use_responses_api=responses).invoke(LONG)


def test_a_full_server(url):
    busy = [model(url, max_tokens=7000).stream("count") for _ in range(4)]
    for one in busy:
        next(one)
    with pytest.raises(RateLimitError):
        model(url).invoke("hello")
    for one in busy:
        one.close()
    assert model(url).with_retry(stop_after_attempt=9).invoke("hello").content == "Hello there."


def test_log_probabilities(url):
    answer = model(url, logprobs=True, top_logprobs=2).invoke("hello")
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_embeddings(url):
    made = OpenAIEmbeddings(base_url=url, api_key="none", model="tiny-embedder", check_embedding_ctx_length=False)
    assert len(made.embed_documents(["one", "two"])) == 2
