"""A small fake server to stand behind a Danlu, and what it is asked."""

from __future__ import annotations

import asyncio
import threading

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

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


def error(reply, status):
    assert reply.status_code == status, reply.text
    return reply.json()["error"]
