"""Bodies made to cost much: answered or refused in words, worked on beside the loop, so that others are answered."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest
from serving import CHAT, HELLO, TEXT, chat, text

from danlu.serve import api, tokenize
from danlu.serve.replies import replies
from danlu.serve.wire import body

MANY = 50_000
NODE = {"type": "object", "properties": {f"a{at}": {"type": "string", "pattern": "^[a-z]+$"} for at in range(20)}}
TOOLS = [{"type": "function", "function": {"name": f"f{at}", "parameters": NODE}} for at in range(300)]
BODIES = {
    "ids": (TEXT, text(prompt=[5] * 200_000), 400),
    "wrong-typed prompts": (TEXT, text(prompt=[3.5] * MANY), 400),
    "wrong-typed lists": (TEXT, text(prompt=[{}] * MANY), 400),
    "phrases": (TEXT, text(force_words=[[f"word {at}" for at in range(6000)]]), 400),
    "a long phrase": (TEXT, text(force_words=[" ".join(f"w{at}" for at in range(6000))]), 400),
    "words to avoid": (TEXT, text(bad_words=[f"w{at}" for at in range(16384)], max_tokens=1), 200),
    "a huge schema": (TEXT, text(json_schema={"properties": {f"k{at}": NODE for at in range(200)}}, max_tokens=1), 200),
    "a huge set": (
        TEXT, text(json_schema={"items": {"enum": list(range(2000))}, "uniqueItems": True}, max_tokens=1), 200,
    ),
    "turns": (CHAT, chat(messages=HELLO * 5000), 400),
    "wrong-typed turns": (CHAT, chat(messages=[3] * MANY), 400),
    "tools": (CHAT, chat(tools=TOOLS), 400),
    "what has no effect": (CHAT, chat(metadata={f"k{at}": "v" for at in range(4000)}, max_tokens=1), 200),
    "more keys than are read": (CHAT, chat(metadata={f"k{at}": "v" for at in range(MANY)}), 400),
    "text": ("/tokenize", {"model": "tiny", "prompt": "the quick " * 50_000}, 200),
    "tokens": ("/detokenize", {"model": "tiny", "tokens": [5] * 200_000}, 200),
    "items": ("/v1/responses", {"model": "tiny", "input": HELLO * 5000}, 400),
    "scores": (TEXT, text(prompt=[5] * 300, echo=True, logprobs=20, prompt_logprobs=20), 200),
}  # fmt: skip
RAW = {
    "deep lists": (CHAT, b'{"model":"tiny","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "a deep schema": (
        TEXT, b'{"model":"tiny","prompt":"a","json_schema":' + b'{"items":' * 100_000 + b"1" + b"}" * 100_001, 400,
    ),
    "blanks": (TEXT, b" " * 50_000_000, 413),
}  # fmt: skip
ALL = {**{name: (path, json.dumps(sent).encode(), status) for name, (path, sent, status) in BODIES.items()}, **RAW}


@pytest.fixture
def threads(monkeypatch):
    """Where the work on bodies and on long answers is done."""
    seen = {}

    def watch(module, name):
        own = getattr(module, name)

        def watched(*arguments, **more):
            seen.setdefault(name, set()).add(threading.current_thread())
            return own(*arguments, **more)

        monkeypatch.setattr(module, name, watched)

    for module, name in (
        (body, "parse"),
        (api, "read_responses"),
        (api, "rendered"),
        (tokenize, "read_body"),
        (tokenize, "read_completion"),
        (replies, "prompt_report"),
        (replies, "echo_report"),
    ):
        watch(module, name)
    return seen


@pytest.mark.parametrize("name", ["text", "tokens", "items", "scores", "wrong-typed prompts"])
def test_the_loop_does_none_of_the_work(post, threads, name):
    path, sent, status = ALL[name]
    assert len(sent) > body.SHORT_BYTES or name == "scores"
    if name == "scores":
        sent += b" " * body.SHORT_BYTES
    assert post(path, sent).status_code == status
    assert "parse" in threads
    assert not any(threading.main_thread() in where for where in threads.values())


@pytest.mark.parametrize("name", ["phrases", "a long phrase", "wrong-typed turns", *RAW])
def test_it_is_refused_in_words(post, name):
    path, sent, status = ALL[name]
    response = post(path, sent)
    assert response.status_code == status
    assert 10 < len(response.json()["error"]["message"]) < 1200


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_others_are_answered_meanwhile(ask, name):
    """In under a tenth of a second, the best of three times: the machine has other work, too."""
    path, sent, status = ALL[name]

    async def talk(client):
        work = asyncio.create_task(client.post(path, content=sent, headers={"content-type": "application/json"}))
        longest = 0.0
        while not work.done():
            begun = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            await asyncio.sleep(0.001)  # what came from threads meanwhile
            longest = max(longest, time.monotonic() - begun)
        assert (await work).status_code == status
        return longest

    assert min(ask(talk) for _ in range(3)) < 0.1
