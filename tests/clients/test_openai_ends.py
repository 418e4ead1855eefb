"""How requests of OpenAI's client end where it is not with an answer: errors, a full server, a client that leaves."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from asking import COUNT, HELLO, LONG, until
from openai import (
    APITimeoutError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)


@pytest.fixture
def client(url):
    with OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def ask(client, messages, **more):
    return client.chat.completions.create(**{"model": "tiny", "messages": messages, "temperature": 0, **more})


def test_too_long(client):
    for asked in (lambda: ask(client, LONG), lambda: ask(client, LONG, stream=True)):
        with pytest.raises(BadRequestError) as caught:
            asked()
        assert (caught.value.code, caught.value.type) == ("context_length_exceeded", "invalid_request_error")
    with pytest.raises(BadRequestError) as caught:
        ask(client, HELLO, max_tokens=10**6)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="tiny", input=LONG)
    assert caught.value.code == "context_length_exceeded"


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("messages", "more", "param"),
    [
        (HELLO, {"temperature": -1}, "temperature"),
        (HELLO, {"top_logprobs": 2}, "top_logprobs"),
        (HELLO, {"extra_body": {"top_kk": 3}}, "top_kk"),
        (HELLO, {"tools": [], "tool_choice": "required"}, "tool_choice"),
        ([{"role": "user", "content": [IMAGE]}], {}, "messages.0.content.0"),
    ],
)
def test_a_bad_request_names_what_is_to_blame(client, messages, more, param):
    with pytest.raises(BadRequestError) as caught:
        ask(client, messages, **more)
    assert caught.value.param == param


def test_what_is_not_there(client):
    for asked in (
        lambda: ask(client, HELLO, model="gpt-4o"),
        lambda: client.models.retrieve("gpt-4o"),
        lambda: client.embeddings.create(model="tiny", input="x"),
        lambda: client.completions.create(model="tiny-embedder", prompt="x"),
    ):
        with pytest.raises(NotFoundError) as caught:
            asked()
        assert caught.value.code == "model_not_found"
    with pytest.raises(NotFoundError, match="POST /v1/moderations; there is POST /v1/chat/completions"):
        client.moderations.create(input="x")
    with pytest.raises(BadRequestError) as caught:
        client.embeddings.create(model="tiny-embedder", input="x", dimensions=3)
    assert caught.value.param == "dimensions"
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="tiny", input="hello", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_a_wrong_key(url):
    with OpenAI(base_url=url, api_key="wrong", max_retries=0) as client, pytest.raises(AuthenticationError):
        ask(client, HELLO)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_full_server_is_asked_again(client, url, stream):
    """429 with Retry-After: the client comes back by itself, and finds the place that was given back meanwhile."""
    busy = [ask(client, COUNT, stream=True) for _ in range(4)]
    with pytest.raises(RateLimitError) as caught:
        ask(client, HELLO)
    assert caught.value.code == "queue_full"
    refusals = []

    def hear(response):
        if response.status_code == 429:
            refusals.append(response)
            for one in busy:
                one.close()

    with (
        httpx.Client(event_hooks={"response": [hear]}) as hearing,
        OpenAI(base_url=url, api_key="none", max_retries=9, http_client=hearing) as patient,
    ):
        answer = ask(patient, HELLO, stream=stream)
        words = (
            answer.choices[0].message.content
            if not stream
            else "".join(one.choices[0].delta.content or "" for one in answer)
        )
    assert words == "Hello there."
    assert refusals


def test_a_client_that_leaves_a_stream(client, outcomes):
    before = outcomes("cancelled")
    with ask(client, COUNT, stream=True) as stream:
        next(iter(stream))
    until(lambda: outcomes("cancelled") == before + 1)


def test_a_client_that_waits_no_longer(url, outcomes):
    before = outcomes("cancelled")
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=0.5) as client, pytest.raises(APITimeoutError):
        ask(client, COUNT, max_tokens=7000)
    until(lambda: outcomes("cancelled") == before + 1)


def test_a_task_that_is_cancelled(url, outcomes):
    before = outcomes("cancelled")

    async def main():
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = await ask(client, COUNT, stream=True, max_tokens=7000)
            begun = asyncio.Event()

            async def read():
                async for _ in stream:
                    begun.set()

            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await stream.close()

    asyncio.run(main())
    until(lambda: outcomes("cancelled") == before + 1)
