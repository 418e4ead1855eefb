"""Other servers as backends: a small fake one, and another Danlu."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from serving import CHAT, TEXT, is_idle
from waiting import PATIENCE_SECONDS, wait_until

from danlu.errors import ModelError
from danlu.generate.params import GenerationParams
from danlu.serve.api import make_app_over
from danlu.serve.options import ServeOptions
from danlu.serve.others.remote import Remote, only_model
from danlu.serve.server import Server, listen

HELLO = [{"role": "user", "content": "what is the capital of France?"}]
ASKED = {"model": "here", "messages": HELLO, "max_tokens": 12}
PIECE = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "there"}


class Fake:
    """An upstream that answers with what it is given, and keeps what it heard."""

    def __init__(self):
        self.app, self.heard, self.keys = FastAPI(), [], []
        self.status, self.body, self.headers = 200, self.whole("hello"), {}
        self.events: list[str] | None = None
        self.hold, self.left = threading.Event(), threading.Event()
        self.props = {}
        self.app.get("/props")(lambda: self.props)
        self.app.get("/v1/models")(lambda: {"object": "list", "data": [{"id": "there"}]})
        self.app.post("/v1/chat/completions")(self.answer)
        self.app.post("/v1/completions")(self.answer)

    @staticmethod
    def whole(*texts):
        choices = [
            {"index": at, "message": {"content": text}, "finish_reason": "stop"} for at, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        return {"id": "x", "object": "chat.completion", "model": "there", "choices": choices, "usage": usage}

    async def answer(self, request: Request):
        self.heard.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        if self.events is not None:
            return StreamingResponse(self.stream(), media_type="text/event-stream")
        if self.body is None:
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            self.left.set()
            return JSONResponse({})
        return JSONResponse(self.body, self.status, headers=self.headers)

    async def stream(self):
        try:
            for event in self.events:
                if event == "HOLD":
                    while not self.hold.is_set():
                        await asyncio.sleep(0.01)
                else:
                    yield event
        finally:
            self.left.set()


@pytest.fixture
def fake():
    return Fake()


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


@pytest.fixture
def run_app():
    """`run_app(app)` -> the URL of a real server on a loopback port; stopped at the end."""
    running = []

    def run(app):
        taken = listen(ServeOptions(port=0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        running.append((server, thread, taken))
        wait_until(lambda: server.started)
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

    yield run
    for server, thread, taken in running:
        server.force_exit = server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        taken.close()


@pytest.fixture
def before():
    """`before(url, **options)` -> the URL of a Danlu whose backend is the server at `url`."""
    running = []

    def run(url, flavour="openai", **options):
        chosen = ServeOptions(**{"port": 0, **options})
        upstream = "tiny" if flavour == "danlu" else "there"
        backend = Remote(url, chosen, flavour=flavour, upstream_name=upstream, model_name="here")
        taken, lines = listen(chosen), []
        server = Server(make_app_over(backend), chosen, lines.append)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        running.append((server, thread, taken))
        wait_until(lambda: lines)
        run.backend, run.server = backend, server
        return lines[0].removeprefix("ready: ")

    yield run
    for server, thread, taken in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        taken.close()


def error(reply, status):
    assert reply.status_code == status, reply.text
    return reply.json()["error"]


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


def test_a_stream_passes_piece_by_piece(fake, run_app, before):
    said = "one \u2028 two 丹炉"
    first = {**PIECE, "choices": [{"index": 0, "delta": {"content": said}, "finish_reason": None}]}
    last = {**PIECE, "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}}
    fake.events = [
        ": ping\r\n\r\n", f"data: {json.dumps(first, ensure_ascii=False)}\r\n\r\n", "HOLD",
        f"data:{json.dumps(last)}\n\n", "data: [DONE]\n\n",
    ]  # fmt: skip
    url = before(run_app(fake.app))
    body = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        pieces = iter(client.chat.completions.create(**body))
        piece = next(pieces)
        assert not fake.hold.is_set()
        assert (piece.model, piece.choices[0].delta.content) == ("here", said)
        fake.hold.set()
        (end,) = pieces
    assert end.usage.completion_tokens == 5
    assert fake.heard[0]["stream_options"] == {"include_usage": True}
    metrics = httpx.get(url.replace("/v1", "/metrics")).text
    assert "danlu_generated_tokens_total 5.0" in metrics
    assert 'danlu_requests_total{outcome="ok"} 1.0' in metrics
    assert "danlu_requests_running 0.0" in metrics
    assert "kv_bytes" not in metrics


KNOBS = {
    "greedy": {"temperature": 0},
    "sample": {"seed": 5, "temperature": 0.9, "n": 2},
    "constrained": {"num_beams": 3, "n": 2, "force_words": ["fox"], "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("name", KNOBS)
def test_before_another_danlu(engine, start, before, name):
    knobs = KNOBS[name]
    url = before(start().url, "danlu")
    given = {"num_return_sequences" if key == "n" else key: value for key, value in knobs.items()}
    if name == "greedy":
        del given["temperature"]
    params = GenerationParams(**given, do_sample=name == "sample", max_new_tokens=12)
    expected = [one.text for one in engine.generate([HELLO], params)[0].sequences]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        body = {**ASKED, "extra_body": knobs}
        whole = client.chat.completions.create(**body)
        assert [one.message.content for one in whole.choices] == expected
        assert whole.model == "here"
        texts = [""] * len(expected)
        for piece in client.chat.completions.create(**body, stream=True):
            for choice in piece.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == expected
    wait_until(lambda: is_idle(engine))


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


@contextlib.contextmanager
def asked(url, body):
    """A client that has asked, and leaves without having read."""
    place, data = urlsplit(url), json.dumps(body).encode()
    head = f"POST {place.path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((place.hostname, place.port)) as one:
        one.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_request_there(fake, run_app, before, stream):
    fake.events = [f"data: {json.dumps(PIECE)}\n\n", "HOLD"] if stream else None
    fake.body = None
    url = before(run_app(fake.app))
    if stream:
        with httpx.stream("POST", f"{url}/chat/completions", json={**ASKED, "stream": True}, timeout=20) as reply:
            next(reply.iter_lines())
    else:
        with asked(url, ASKED):
            wait_until(lambda: fake.heard)
    assert fake.left.wait(PATIENCE_SECONDS)
    wait_until(lambda: before.backend.places_taken == 0)


def test_time_is_up(fake, run_app, before):
    fake.body = None
    url = before(run_app(fake.app), request_timeout_seconds=1)  # in which the upstream hears of it
    assert error(httpx.post(f"{url}/chat/completions", json=ASKED, timeout=20), 504)["code"] == "timeout"
    assert fake.left.wait(PATIENCE_SECONDS)


def test_stopping_ends_running_requests(fake, run_app, before):
    fake.events = [f"data: {json.dumps(PIECE)}\n\n", "HOLD"]
    url = before(run_app(fake.app), shutdown_timeout_seconds=0.1)
    with httpx.stream("POST", f"{url}/chat/completions", json={**ASKED, "stream": True}, timeout=20) as reply:
        lines = reply.iter_lines()
        next(lines)
        before.server.should_exit = True
        assert "shutting_down" in "".join(lines)


def test_the_only_model(fake, run_app):
    url = run_app(fake.app)
    assert only_model(url + "/", None) == "there"
    with pytest.raises(ModelError, match="did not say which"):
        only_model(url.replace("/v1", "/v2"), None)


def test_several_models(monkeypatch):
    cards = {"data": [{"id": "a"}, {"id": "b"}]}
    monkeypatch.setattr(
        httpx, "get", lambda *_, **__: httpx.Response(200, json=cards, request=httpx.Request("GET", "x"))
    )
    with pytest.raises(ModelError, match="2 models: a, b"):
        only_model("http://up/v1", None)
