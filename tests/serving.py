"""What the tests of the server share."""

from __future__ import annotations

import asyncio
import json

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "what is the capital of France?"}]


def is_idle(engine):
    load = engine.load
    return not (load.waiting or load.running or load.kv_bytes)


def talked(app, talk):
    """What `talk(client)` gives, with a client of the application."""

    async def main():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client:
            client.app = app
            return await talk(client)

    return asyncio.run(main())


def chat(**more):
    return {"model": "tiny", "messages": HELLO, "max_tokens": 16, **more}


def text(**more):
    return {"model": "tiny", "prompt": "the quick brown", "max_tokens": 16, **more}


def events(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def error(response, status):
    assert response.status_code == status, response.text
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return body
