"""Other servers as backends, asked without a network: a small fake one answers, refuses and fails."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from serving import CHAT, TEXT
from upstreams import ASKED, HELLO, PIECE, error

from danlu.serve.api import make_app_over
from danlu.serve.options import ServeOptions
from danlu.serve.others.remote import Remote


@pytest.fixture
def talk(fake):
    """`talk(coroutine function, **options)`: ask a server whose backend is the fake one, without a network."""

    def run(conversation, flavour="vllm", transport=None, key=None, **options):
        backend = Remote(
            "http://up/v1", ServeOptions(**options), flavour=flavour, upstream_name="there", model_name="here",
            key=key, transport=transport or httpx.ASGITransport(fake.app),
        )  # fmt: skip

        async def main():
            asgi = httpx.ASGITransport(make_app_over(backend), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=asgi, base_url="http://test", timeout=20) as client:
                client.backend = backend
                reply = await conversation(client)
            await backend.close()
            return reply

        return asyncio.run(main())

    return run


@pytest.fixture
def post(talk):
    def run(body, path=CHAT, **options):
        async def conversation(client):
            return await client.post(path, json=body)

        return talk(conversation, **options)

    return run


# -- answers


def test_an_answer_comes_back_under_our_name(fake, post):
    reply = post({**ASKED, "top_k": 5}, key="secret").json()
    assert reply["model"] == "here"
    assert reply["choices"][0]["message"]["content"] == "hello"
    assert (fake.heard[0]["model"], fake.heard[0]["top_k"]) == ("there", 5)
    assert fake.keys == ["Bearer secret"]


def test_of_beams_the_best_are_kept(fake, post):
    fake.body = fake.whole("a", "b", "c", "d")
    reply = post({"model": "here", "prompt": ["p", "q"], "num_beams": 2}, TEXT).json()
    assert [(one["index"], one["message"]["content"]) for one in reply["choices"]] == [(0, "a"), (1, "c")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_comes_under_both_names(fake, post, name, stream):
    fake.body["choices"][0]["message"][name] = "hm"
    piece = {**PIECE, "choices": [{"index": 0, "delta": {name: "hm"}, "finish_reason": None}]}
    if stream:
        fake.events = [f"data: {json.dumps(piece)}\n\n", "data: [DONE]\n\n"]
    text = post({**ASKED, "stream": stream}).text
    answer = json.loads(text.split("\n")[0].removeprefix("data: ")) if stream else json.loads(text)
    message = answer["choices"][0]["delta" if stream else "message"]
    assert (message["reasoning"], message["reasoning_content"]) == ("hm", "hm")


@pytest.mark.parametrize(("flavour", "content"), [("llama.cpp", " is Paris."), ("vllm", "It is Paris.")])
def test_only_what_is_new_comes_back(fake, post, flavour, content):
    """llama.cpp repeats the message that it goes on with, though not in a stream."""
    fake.body = fake.whole("It is Paris.")
    goes_on = {"messages": [*HELLO, {"role": "assistant", "content": "It"}], "continue_final_message": True}
    assert post({**ASKED, **goes_on}, flavour=flavour).json()["choices"][0]["message"]["content"] == content


# -- refusals and failures


@pytest.mark.parametrize(
    ("props", "flavour", "is_refused"),
    [
        ({"chat_template_caps": {"supports_tools": False}}, "llama.cpp", True),
        ({"chat_template_caps": {"supports_tools": True}}, "llama.cpp", False),
        ({}, "llama.cpp", False),
        (None, "llama.cpp", False),
        ({"chat_template_caps": {"supports_tools": False}}, "openai", False),
    ],
)
def test_tools_that_llama_cpp_would_leave_out(fake, post, props, flavour, is_refused):
    fake.props = props
    tools = [{"type": "function", "function": {"name": "f"}}]
    reply = post({**ASKED, "tools": tools, "tool_choice": "required"}, flavour=flavour)
    assert post(ASKED, flavour=flavour).status_code == 200
    assert len(fake.heard) == (1 if is_refused else 2)
    if is_refused:
        refused = error(reply, 400)
        assert (refused["param"], refused["code"]) == ("tools", "unsupported_by_backend")
        assert "--chat-template-file" in refused["message"]
    else:
        assert reply.status_code == 200


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 1024 tokens. However, you requested 2000 tokens",
        "max_tokens=9999 cannot be greater than max_model_len=1024. Please request fewer output tokens.",
        "The input (5031 tokens) is longer than the model's context length (2048 tokens).",
        "request (5031 tokens) exceeds the available context size (2048 tokens), try increasing it",
    ],
    ids=["vllm", "vllm's limit", "sglang", "llama.cpp"],
)
def test_a_prompt_that_is_too_long_there_has_the_code_that_clients_look_for(fake, post, message):
    fake.status, fake.body = 400, {"error": {"message": message, "code": 400}}
    assert error(post(ASKED), 400)["code"] == "context_length_exceeded"
    fake.body = {"error": {"message": "no such knob", "code": 400}}
    assert error(post(ASKED), 400)["code"] is None


def test_what_this_server_refuses_never_gets_there(fake, post):
    refused = error(post({**ASKED, "num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 1.0}), 400)
    assert refused["code"] == "unsupported_by_backend"
    assert "backend danlu" in refused["message"]
    assert error(post({**ASKED, "model": "there"}), 404)["code"] == "model_not_found"
    assert error(post({**ASKED, "n": 9}, max_rows=8), 400)["code"] == "too_many_rows"
    assert error(post({**ASKED, "top_pp": 1}), 400)["param"] == "top_pp"
    assert fake.heard == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "body", "message", "param"),
    [
        (400, {"error": {"message": "bad", "param": "max_completion_tokens", "code": "c"}}, "bad", "max_tokens"),
        (400, {"object": "error", "message": "older", "param": None, "code": 400}, "older", None),
        (422, {"detail": "fastapi"}, "fastapi", None),
        (429, {"error": "full"}, "full", None),
        (500, ["odd"], '["odd"]', None),
        (404, {"error": {"message": "no model"}}, "no model", None),
    ],
)
def test_errors_are_passed_on_with_their_status(fake, post, stream, status, body, message, param):
    fake.status, fake.body, fake.headers = status, body, {"Retry-After": "7"}
    reply = post({**ASKED, "stream": stream}, flavour="openai")
    assert (error(reply, status)["message"], error(reply, status)["param"]) == (message, param)
    assert reply.headers["retry-after"] == "7"


def test_a_wrong_key_is_this_servers_fault(fake, post):
    fake.status, fake.body = 401, {"error": {"message": "no"}}
    assert "DANLU_BACKEND_KEY" in error(post(ASKED), 502)["message"]


def test_an_answer_that_is_none(fake, post):
    fake.body = ["no object"]
    assert error(post(ASKED), 502)["code"] == "backend_broken"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (httpx.ConnectError("refused"), 503, "backend_down"),
        (httpx.ConnectTimeout("slow"), 503, "backend_down"),
        (httpx.ReadError("reset"), 502, "backend_broke_off"),
        (httpx.RemoteProtocolError("cut"), 502, "backend_broke_off"),
        (httpx.ReadTimeout("slow"), 504, "timeout"),
    ],
)
def test_a_backend_that_does_not_answer(talk, failure, status, code):
    def fail(request):
        raise failure

    async def conversation(client):
        replies = await client.post(CHAT, json=ASKED), await client.get("/health")
        return (*replies, client.backend.places_taken)

    asked, health, left = talk(conversation, transport=httpx.MockTransport(fail))
    assert error(asked, status)["code"] == error(health, status)["code"] == code
    assert left == 0


def test_health_and_models(talk):
    async def conversation(client):
        return await client.get("/health"), await client.get("/v1/models"), await client.post("/v1/embeddings", json={})

    health, models, embeddings = talk(conversation)
    assert health.json() == {"status": "ok"}
    assert [card["id"] for card in models.json()["data"]] == ["here"]
    error(embeddings, 501)


@pytest.mark.parametrize(
    ("events", "code", "message"),
    [
        ([f"data: {json.dumps(PIECE)}\n\n"], "backend_broke_off", "early"),
        (['data: {"error": {"message": "out of memory", "code": "oom"}}\n\n'], "oom", "out of memory"),
        (['data: {"object": "error", "message": "older"}\n\n'], None, "older"),
        (["data: oops\n\n"], "backend_broken", "oops"),
    ],
)
def test_a_stream_that_fails_says_so_at_its_end(fake, post, events, code, message):
    fake.events = events
    reply = post({**ASKED, "stream": True})
    last = reply.text.rstrip().rpartition("data: ")[2]
    assert json.loads(last)["error"]["code"] == code
    assert message in json.loads(last)["error"]["message"]
