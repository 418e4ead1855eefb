"""Other servers as backends, over real connections: streams, another Danlu, clients that leave, and time that is up."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import uvicorn
from serving import is_idle
from upstreams import ASKED, HELLO, PIECE, error
from waiting import PATIENCE_SECONDS, wait_until

from danlu.errors import ModelError
from danlu.generate.params import GenerationParams
from danlu.serve.api import make_app_over
from danlu.serve.options import ServeOptions
from danlu.serve.others.remote import Remote, only_model
from danlu.serve.server import Server, listen


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
