"""A real server on a loopback port, asked by OpenAI's own client and by clients that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import openai
import pytest
from serving import CHAT, is_idle, wait_until

from danlu.generate.params import GenerationParams

HELLO = [{"role": "user", "content": "what is the capital of France?"}]
LONG = {"model": "tiny", "messages": HELLO, "max_tokens": 450, "eos_token_id": [], "temperature": 0}


@pytest.fixture
def client(start):
    with openai.OpenAI(base_url=start().url, api_key="none", max_retries=0, timeout=20) as made:
        yield made


def test_openais_client(client, engine):
    (expected,) = engine.generate([HELLO], GenerationParams(max_new_tokens=12))[0].sequences
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.completion_tokens == len(expected.token_ids)
    pieces = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    said = "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)
    assert said == expected.text
    assert pieces[-1].usage.completion_tokens == len(expected.token_ids)
    assert [one.id for one in client.models.list()] == ["tiny"]


def test_openais_client_with_danlus_knobs(client, engine):
    knobs = {"num_beams": 3, "force_words": ["fox"]}
    (expected,) = engine.generate(["the"], GenerationParams(**knobs, max_new_tokens=12))[0].sequences
    body = client.completions.create(model="tiny", prompt="the", max_tokens=12, extra_body=knobs)
    assert body.choices[0].text == expected.text
    pieces = client.completions.create(model="tiny", prompt="the", max_tokens=12, extra_body=knobs, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == expected.text


def test_openais_client_asks_for_forms(client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "c": {"enum": ["red", "blue"]}},
        "required": ["n", "c"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    named = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}
    ask = {"model": "tiny", "messages": HELLO, "max_tokens": 60, "seed": 1}
    for knobs in ({"response_format": named}, {"extra_body": {"guided_json": schema, "num_beams": 2}}):
        choice = client.chat.completions.create(**ask, **knobs).choices[0]
        found = json.loads(choice.message.content)
        assert choice.finish_reason == "stop"
        assert (set(found), found["c"] in ("red", "blue")) == ({"n", "c"}, True)
    pieces = client.chat.completions.create(**ask, stream=True, response_format=named)
    assert json.loads("".join(piece.choices[0].delta.content or "" for piece in pieces)).keys() == {"n", "c"}
    choice = client.chat.completions.create(**ask, response_format={"type": "json_object"}).choices[0]
    assert choice.message.content.startswith("{")
    choice = client.chat.completions.create(**ask, extra_body={"guided_regex": "(yes|no)"}).choices[0]
    assert choice.message.content in ("yes", "no")


def test_openais_client_reads_errors(client):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HELLO, top_p=7)
    assert bad.value.param == "top_p"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.APIStatusError, match="no embeddings"):
        client.embeddings.create(model="tiny", input="x")


def test_pieces_come_while_the_answer_grows(start):
    with httpx.Client(base_url=start().url, timeout=20) as client:
        arrived = []
        with client.stream("POST", "/chat/completions", json={**LONG, "stream": True}) as response:
            arrived = [time.monotonic() for line in response.iter_lines() if line]
    assert len(arrived) > 20
    assert arrived[-1] - arrived[0] > 10 * (arrived[1] - arrived[0])


def test_beams_show_signs_of_life(start, monkeypatch):
    monkeypatch.setattr("danlu.serve.stream.BEAT_SECONDS", 0.02)
    with httpx.Client(base_url=start().url, timeout=20) as client:
        body = {**LONG, "max_tokens": 200, "num_beams": 8, "stream": True}
        text = client.post("/chat/completions", json=body).text
    assert text.count(": still working") > 1
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(start, engine, stream):
    running = start()
    address = running.server.servers[0].sockets[0].getsockname()
    body = json.dumps({**LONG, "num_beams": 16, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(address) as one:
            one.sendall(head.encode() + body)
            wait_until(lambda: engine.load.running)
        wait_until(lambda: is_idle(engine))
    wait_until(lambda: running.service.places_taken == 0)


def test_a_client_that_does_not_read_holds_up_nobody(start, engine):
    running = start(request_timeout_seconds=3)
    address = running.server.servers[0].sockets[0].getsockname()
    body = json.dumps({**LONG, "n": 8, "temperature": 1, "seed": 1, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        lazy.connect(address)
        lazy.sendall(head.encode() + body)
        wait_until(lambda: running.service.places_taken)
        reply = httpx.post(f"{running.url}/chat/completions", json={**LONG, "max_tokens": 5}, timeout=20)
        assert reply.status_code == 200
        wait_until(lambda: running.service.places_taken == 0, 15)
    wait_until(lambda: is_idle(engine))  # the engine hears of it between two steps


def test_a_long_upload_is_refused(start):
    with httpx.Client(base_url=start().url, timeout=20) as client:
        kind = {"content-type": "application/json"}
        assert client.post("/chat/completions", content=b" " * 10_000_000, headers=kind).status_code == 413
        chunks = (b" " * 65536 for _ in range(200))
        assert client.post("/chat/completions", content=chunks, headers=kind).status_code == 413


@pytest.mark.parametrize("stream", [False, True])
def test_stopping_ends_running_requests_cleanly(start, engine, stream):
    running = start(shutdown_timeout_seconds=0.3)
    replies = []

    def ask():
        body = {**LONG, "num_beams": 32, "stream": stream}
        replies.append(httpx.post(f"{running.url}/chat/completions", json=body, timeout=20))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: engine.load.running)
    running.server.should_exit = True
    asking.join(20)
    assert "shutting_down" in replies[0].text
    assert replies[0].status_code == (200 if stream else 503)
    wait_until(lambda: is_idle(engine))


def test_stopping_lets_a_short_request_finish(start, engine):
    running = start(shutdown_timeout_seconds=20)
    replies = []
    body = {**LONG, "max_tokens": 100}
    url = f"{running.url}/chat/completions"
    asking = threading.Thread(target=lambda: replies.append(httpx.post(url, json=body, timeout=20)))
    asking.start()
    wait_until(lambda: engine.load.running)
    running.server.should_exit = True
    asking.join(20)
    assert replies[0].json()["usage"]["completion_tokens"] == 100
