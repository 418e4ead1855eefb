"""A real server on a loopback port, asked by OpenAI's own client and by clients that misbehave."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading

import httpx
import openai
import pytest
from answering import alive, tolerance_of
from serving import CHAT, HELLO, is_idle
from waiting import passes_of, wait_until

from danlu.generate.answers import Generation
from danlu.generate.params import GenerationParams
from danlu.generate.requests import Job
from danlu.generate.watching.live import LiveAnswers
from danlu.serve.options import ServeOptions
from danlu.serve.server import listen, serve
from danlu.serve.service import Run

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


def test_openais_client_reads_log_probabilities(client, engine):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0, "logprobs": True}
    made = engine.generate([HELLO], GenerationParams(max_new_tokens=12, logprobs=2))[0]
    (expected,), tolerance = made.sequences, tolerance_of(engine, made)
    own = pytest.approx([one.logprob for one in expected.logprobs], abs=tolerance)
    whole = client.chat.completions.create(**asked, top_logprobs=2)
    pieces = list(client.chat.completions.create(**asked, top_logprobs=2, stream=True))
    streamed = [one for piece in pieces if piece.choices[0].logprobs for one in piece.choices[0].logprobs.content]
    assert [one.logprob for one in whole.choices[0].logprobs.content] == own
    assert [one.logprob for one in streamed] == own
    assert [one.token for one in streamed] == [one.token for one in whole.choices[0].logprobs.content]
    for entry, answer in zip(streamed, expected.logprobs, strict=True):
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx([p for _, p in answer.top], abs=tolerance)
    ending = {"eos_token_id": expected.token_ids[-1]}  # its helper, which joins the pieces, takes no other end
    with client.chat.completions.stream(**asked, extra_body=ending) as stream:
        joined = [one.logprob for one in stream.get_final_completion().choices[0].logprobs.content]
    assert joined == pytest.approx([one.logprob for one in expected.logprobs][: len(joined)], abs=tolerance)
    assert len(joined) > 1


def test_openais_client_scores_a_prompt(client, engine):
    own = [one.logprob for one in engine.prompt_logprobs("the quick brown fox", 1)]
    tolerance = tolerance_of(engine, Generation(engine.token_ids("the quick brown fox"), ()))
    asked = {"model": "tiny", "prompt": "the quick brown fox", "logprobs": 1, "echo": True, "max_tokens": 0}
    (choice,) = client.completions.create(**asked).choices
    assert (choice.text, choice.logprobs.token_logprobs[0]) == ("the quick brown fox", None)
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(own, abs=tolerance)
    pieces = list(client.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].logprobs == choice.logprobs
    assert pieces[-1].choices[0].finish_reason == "length"


BEAMS = {"beam": {"num_beams": 3}, "group": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}}


@pytest.mark.parametrize("name", BEAMS)
def test_openais_client_is_told_what_leads(client, engine, name):
    params = GenerationParams(**BEAMS[name], max_new_tokens=30, eos_token_id=())
    leading = [event.leading for event in engine.stream(HELLO, params) if event.leading is not None]
    made = engine.generate([HELLO], params)[0]
    (expected,), tolerance = made.sequences, tolerance_of(engine, made)
    asked = {"model": "tiny", "max_tokens": 30, "stream": True, "extra_body": {**BEAMS[name], "eos_token_id": []}}
    for shown in (False, True):
        options = {"stream_options": {"include_leading": True}} if shown else {}
        pieces = [one.choices[0] for one in client.chat.completions.create(messages=HELLO, **asked, **options)]
        assert "".join(one.delta.content or "" for one in pieces) == expected.text
        assert pieces[-1].model_extra["score"] == pytest.approx(expected.score, abs=tolerance)
        said = [one.model_extra["danlu"]["leading"] for one in pieces if "danlu" in one.model_extra]
        assert bool(said) == shown
        left = iter(leading)
        assert all(text in left for text in said)  # in order; a busy reader skips some
        texts = [one.choices[0] for one in client.completions.create(prompt="the", **asked, **options)]
        assert any("danlu" in one.model_extra for one in texts) == shown
        assert all(one.text == "" for one in texts[:-1])


def test_what_leads_as_bytes(start):
    body = {**LONG, "max_tokens": 12, "num_beams": 3, "stream": True, "stream_options": {"include_leading": True}}
    lines = httpx.post(f"{start().url}/chat/completions", json=body, timeout=20).text.split("\n\n")
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    told = [piece["choices"][0] for piece in pieces if "danlu" in piece["choices"][0]]
    assert told
    for choice in told:
        assert list(choice.pop("danlu")) == ["leading"]
        assert choice == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}


def test_openais_client_reads_errors(client):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HELLO, top_p=7)
    assert bad.value.param == "top_p"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.APIStatusError, match="no embeddings"):
        client.embeddings.create(model="tiny", input="x")


def test_pieces_come_while_the_answer_grows(start, engine):
    with httpx.Client(base_url=start().url, timeout=20) as client:
        asked = client.stream("POST", "/chat/completions", json={**LONG, "stream": True})
        with passes_of(engine, free=20) as passes, asked as response:
            lines = (line for line in response.iter_lines() if line)
            early = [next(lines) for _ in range(5)]
            assert passes.made <= 20
            passes.go_on()
            late = list(lines)
    assert all("content" in line for line in early[1:])
    assert len(late) > 20


def test_beams_show_signs_of_life(start, engine, monkeypatch):
    monkeypatch.setattr("danlu.serve.stream.BEAT_SECONDS", 0.02)
    with httpx.Client(base_url=start().url, timeout=20) as client:
        body = {**LONG, "max_tokens": 200, "num_beams": 8, "stream": True}
        with passes_of(engine, free=20) as passes, client.stream("POST", "/chat/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            for _ in range(2):
                assert ": still working" in lines  # reads on until it comes
            passes.go_on()
            assert list(lines)[-1] == "data: [DONE]"


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
        wait_until(lambda: running.service.places_taken == 0)
    wait_until(lambda: is_idle(engine))  # the engine hears of it between two steps


def test_a_slow_reader_gets_its_whole_answer_and_holds_up_nobody(start, engine):
    running = start()
    address = running.server.servers[0].sockets[0].getsockname()
    (expected,) = engine.generate([HELLO], GenerationParams(max_new_tokens=450, eos_token_id=()))[0].sequences
    body = json.dumps({**LONG, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect(address)
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        got = slow.recv(64)
        for _ in range(8):
            reply = httpx.post(f"{running.url}/chat/completions", json={**LONG, "max_tokens": 5}, timeout=20)
            assert reply.json()["usage"]["completion_tokens"] == 5
            got += slow.recv(64)
        assert b"[DONE]" not in got
        while piece := slow.recv(4096):
            got += piece
    lines = [line for line in got.split(b"\n") if line.startswith(b"data: {")]
    said = [json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"].get("content", "") for line in lines]
    assert "".join(said) == expected.text
    assert b"[DONE]" in got
    wait_until(lambda: is_idle(engine) and running.service.places_taken == 0)


def test_64_streams_of_which_some_leave(start, engine):
    """Those who stay are answered as alone, through all comings and goings."""
    before = alive(Run, LiveAnswers, Job)
    running = start()
    kinds = [{"temperature": 0}, {"seed": 4, "n": 2}, BEAMS["beam"], BEAMS["group"], {"temperature": 0, "logprobs": 2}]
    asked = [{**LONG, "max_tokens": 24, "stream": True, "temperature": None, **kinds[at % 5]} for at in range(64)]

    async def one(client, at):
        texts = {}
        async with client.stream("POST", "/chat/completions", json=asked[at]) as response:
            async for line in response.aiter_lines():
                if at % 4 == 3 and texts:
                    return None
                if line.startswith("data: {"):
                    choice = json.loads(line.removeprefix("data: "))["choices"][0]
                    texts.setdefault(choice["index"], []).append(choice["delta"].get("content", ""))
        return ["".join(texts[index]) for index in sorted(texts)]

    async def all_of_them():
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=running.url, timeout=40, limits=limits) as client:
            return await asyncio.gather(*(one(client, at) for at in range(64)))

    drawn = GenerationParams(do_sample=True, seed=4, num_return_sequences=2, max_new_tokens=24, eos_token_id=())
    params = [GenerationParams(**BEAMS[name], max_new_tokens=24, eos_token_id=()) for name in ("beam", "group")]
    greedy = GenerationParams(max_new_tokens=24, eos_token_id=())
    alone = [
        [answer.text for answer in engine.generate([HELLO], one)[0].sequences]
        for one in (greedy, drawn, *params, greedy)
    ]
    for at, texts in enumerate(asyncio.run(all_of_them())):
        assert texts == (None if at % 4 == 3 else alone[at % 5])
    wait_until(lambda: is_idle(engine) and running.service.places_taken == 0)
    wait_until(lambda: alive(Run, LiveAnswers, Job) <= before)


def test_an_answer_waits_for_no_acknowledgement(start):
    running = start()
    with httpx.Client(base_url=running.url, timeout=20) as client:
        client.get("/models").raise_for_status()
        (one,) = running.server.server_state.connections
        taken = one.transport.get_extra_info("socket")
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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
    with passes_of(engine, free=20) as passes:
        asking.start()
        wait_until(lambda: passes.are_used_up)
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


def test_the_collector_passes_over_what_was_loaded_before(monkeypatch):
    """Going through all of it keeps every thread waiting, and a body of many lists asks for that again and again."""
    frozen = []

    class Nobody:
        has_cut_off = False

        def __init__(self, *given):
            pass

        def run(self, sockets):
            frozen.append(gc.get_freeze_count())

    monkeypatch.setattr("danlu.serve.server.Server", Nobody)
    options = ServeOptions(port=0)
    serve(None, options, listen(options), print)
    assert frozen[0] > gc.get_freeze_count()
