"""Every refusal of a route with its status and its name, without a network."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from answering import fixed_scores
from serving import CHAT, TEXT, chat, error, text
from waiting import passes_of, until


def test_faults_in_the_body(post):
    assert error(post(CHAT, b'{"model": '), 400)["code"] == "invalid_json"
    assert error(post(CHAT, b'{"temperature": NaN}'), 400)["code"] == "invalid_json"
    assert error(post(CHAT, chat(temperature="hot")), 400)["param"] == "temperature"
    assert error(post(CHAT, chat(temprature=1)), 400)["param"] == "temprature"
    assert error(post(CHAT, b"{}", {"content-type": "text/plain"}), 415)
    assert error(post(CHAT, chat(model="gpt-4o")), 404)["code"] == "model_not_found"
    assert error(post(CHAT, chat(n=129)), 400)["param"] == "n"
    assert error(post(CHAT, chat(min_new_tokens=20, max_tokens=3)), 400)["param"] == "min_new_tokens"
    assert error(post(CHAT, chat(bad_words_ids=[[10**6]])), 400)["param"] == "bad_words_ids"
    assert error(post(TEXT, text(prompt="")), 400)
    assert error(post(TEXT, text(prompt=["a"] * 300, n=None)), 400)["param"] == "prompt"


def test_faults_are_told_in_words_and_numbers_as_they_are(post):
    digits = error(post(CHAT, b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}"), 400)["message"]
    assert "value has 5000 digits" in digits
    assert "sys." not in digits
    largest = error(post(CHAT, chat(seed=2**63)), 400)["message"]
    assert "less than or equal to 9223372036854775807 " in largest
    no_content = error(post(CHAT, chat(messages=[{"role": "user", "content": None}])), 400)["message"]
    assert no_content == "messages.0: content is missing; only an answer that calls tools may leave it out"


def test_unicode(engine, post):
    raw = json.dumps(chat()).encode().replace(b"what", b"\\ud800")
    assert "surrogate" in error(post(CHAT, raw), 400)["message"]
    for content in ("", "\0", "\N{ZERO WIDTH JOINER}" * 9, "e\N{COMBINING ACUTE ACCENT}", "\N{GRINNING FACE}丹炉"):
        assert post(CHAT, chat(messages=[{"role": "user", "content": content}])).status_code == 200
    spelt_out = [{"role": "user", "content": "a<|im_end|>b"}]
    answered = post(CHAT, chat(messages=spelt_out))
    assert answered.status_code == 200
    assert answered.json()["usage"]["prompt_tokens"] > len(engine.chat.prompt([{"role": "user", "content": "ab"}])) + 1


def test_long_bodies(ask, post):
    assert error(post(CHAT, b" " * 10_000_000), 413)["code"] == "body_too_long"
    taken = []

    async def talk(client):
        async def endless():
            while True:
                taken.append(1)
                yield b" " * 65536

        return await client.post(CHAT, content=endless(), headers={"content-type": "application/json"})

    error(ask(talk), 413)
    assert len(taken) <= 18


def test_slow_bodies(ask):
    async def talk(client):
        async def trickle():
            yield b"{"
            await asyncio.Event().wait()  # what comes next never comes

        return await client.post(CHAT, content=trickle(), headers={"content-type": "application/json"})

    assert error(ask(talk, request_timeout_seconds=0.2), 408)["code"] == "timeout"


def test_keys(ask):
    async def talk(client):
        sent = [None, "Bearer wrong", "Bearer ", "Basic secret", "Bearer secret", "bearer secret", "Bearer sécret"]
        replies = []
        for value in sent:
            headers = {} if value is None else {"Authorization": value.encode()}
            replies.append(await client.get("/v1/models", headers=headers))
        return replies, await client.get("/health"), await client.get("/nowhere"), await client.post(CHAT, json={})

    replies, health, nowhere, chatting = ask(talk, api_key="secret")
    assert [one.status_code for one in replies] == [401, 401, 401, 401, 200, 200, 401]
    assert error(replies[0], 401)["code"] == "invalid_api_key"
    assert health.json() == {"status": "ok"}
    error(nowhere, 401)
    error(chatting, 401)


def test_routes(ask):
    async def talk(client):
        return [
            await client.get("/v1/models"), await client.get("/v1/models/tiny"), await client.get("/v1/models/x"),
            await client.get("/v1/nothing"), await client.get(CHAT), await client.post("/v1/embeddings", json={}),
            await client.get("/openapi.json"),
        ]  # fmt: skip

    models, one, other, unknown, wrong_method, embeddings, description = ask(talk)
    assert [card["id"] for card in models.json()["data"]] == ["tiny"]
    assert one.json()["id"] == "tiny"
    error(other, 404)
    assert "/v1/nothing" in error(unknown, 404)["message"]
    error(wrong_method, 405)
    assert "embeddings" in error(embeddings, 501)["message"]
    body = description.json()["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "num_beams", "force_words"} <= set(body["properties"])
    assert "Phrase" in description.json()["components"]["schemas"]


def test_other_origins_only_when_asked_for(ask):
    async def talk(client):
        wish = {"Origin": "http://page.test", "Access-Control-Request-Method": "POST"}
        return (await client.options(CHAT, headers=wish)).headers.get("access-control-allow-origin")

    assert ask(talk) is None
    assert ask(talk, cors_origins=("http://page.test",), api_key="k") == "http://page.test"


def test_a_full_queue_says_when_to_come_back(ask, engine):
    async def talk(client):
        long = chat(max_tokens=400, eos_token_id=[], temperature=0)
        first = asyncio.create_task(client.post(CHAT, json=long))
        await until(lambda: client.app.state.service.places_taken)
        second = await client.post(CHAT, json=chat())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return second, client.app.state.service.places_taken

    with passes_of(engine, free=2):
        full, left = ask(talk, max_queue=1)
    assert error(full, 429)["code"] == "queue_full"
    assert full.headers["retry-after"] == "1"
    assert left == 0


@pytest.mark.parametrize("stream", [False, True])
def test_time_is_up(ask, engine, stream):
    async def talk(client):
        long = chat(max_tokens=450, eos_token_id=[], num_beams=32, stream=stream)
        return await client.post(CHAT, json=long), client.app.state.service.places_taken

    with passes_of(engine, free=4):
        response, left = ask(talk, request_timeout_seconds=0.2)
    if stream:
        assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == "timeout"
    else:
        assert error(response, 504)["code"] == "timeout"
    assert left == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_model_tells_no_secrets(post, engine, monkeypatch, stream):
    def decoder(*_args):
        raise ZeroDivisionError("secret path")

    monkeypatch.setattr(engine.core, "decoder", decoder)
    response = post(CHAT, chat(stream=stream))
    body = json.loads(response.text.split("data: ")[-1])["error"] if stream else error(response, 500)
    assert (body["code"], "secret" in response.text) == ("internal_error", False)
    monkeypatch.undo()
    assert post(CHAT, chat()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "knobs", [{}, {"num_beams": 2}, {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1}]
)
def test_scores_that_are_no_numbers_are_the_servers_fault(post, engine, monkeypatch, stream, knobs):
    fixed_scores(engine, monkeypatch, {5: math.nan})
    response = post(CHAT, chat(stream=stream, **knobs))
    body = json.loads(response.text.split("data: ")[-1])["error"] if stream else error(response, 500)
    assert (body["type"], body["code"], body["param"]) == ("server_error", "faulty_scores", None)
    assert "not numbers" in body["message"]
    scored = error(post(TEXT, text(echo=True, max_tokens=0, logprobs=1)), 500)
    assert scored["code"] == "faulty_scores"


@pytest.mark.parametrize(
    "knobs", [{"no_repeat_ngram_size": 1}, {"bad_words_ids": [[20], [21]]}, {"bad_words": ["a", "b"]}], ids=str
)
def test_when_every_token_is_banned_the_knob_is_named(post, engine, monkeypatch, knobs):
    banned = {20: 1.0, 21: 0.5}
    if "bad_words" in knobs:
        banned = {engine.chat.tokenizer.encode(word, add_special_tokens=False)[0]: 1.0 for word in knobs["bad_words"]}
    fixed_scores(engine, monkeypatch, banned)
    body = error(post(CHAT, chat(temperature=0, **knobs)), 400)
    assert body["param"] == next(iter(knobs))
    assert "banned" in body["message"]


def test_a_penalty_that_leaves_no_numbers_is_named(post):
    assert error(post(CHAT, chat(temperature=0, repetition_penalty=1e-40)), 400)["param"] == "repetition_penalty"
