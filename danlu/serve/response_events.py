"""The stream of a chat as the stream of a response: OpenAI's events in their order, each with its number.

An item is announced, grows, and is told whole once it is over; the last event has the whole response. Only what has
come is told: an error ends the stream with an event of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from starlette.responses import JSONResponse, Response

from danlu.serve.replies.replies import event_of
from danlu.serve.stream import Send
from danlu.serve.wire.responses import (
    Wishes,
    call_item,
    ending,
    message_item,
    reasoning_item,
    text_part,
    usage_of,
)


def told(answer: Response, wishes: Wishes) -> Response:
    """A backend's answer to a chat as a response, whole or as a stream."""
    if isinstance(answer, JSONResponse):
        return JSONResponse(wishes.whole(json.loads(bytes(answer.body))), answer.status_code)
    return ResponseStream(answer, wishes)


class ResponseStream(Response):
    """Tells a chat's stream in the events of a response.

    Args:
        stream: the chat's, which is run.
    """

    media_type = "text/event-stream"

    def __init__(self, stream: Response, wishes: Wishes) -> None:
        super().__init__()
        self._stream, self._events = stream, Events(wishes)
        self._rest = b""

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        async def telling(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send(_body(self._events.beginning()))
                return
            said = self._told(message.get("body", b""))
            if said or not message.get("more_body", False):
                await send({**message, "body": said})

        await self._stream(scope, receive, telling)

    def _told(self, data: bytes) -> bytes:
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        return b"".join(map(self._one, whole))

    def _one(self, event: bytes) -> bytes:
        if not event.startswith(b"data: "):
            return event + b"\n\n"  # a sign of life
        data = event.removeprefix(b"data: ")
        if data.strip() == b"[DONE]":
            return b"".join(self._events.end())
        piece = json.loads(data)
        return b"".join(self._events.error(piece["error"]) if piece.get("error") else self._events.piece(piece))


def _body(events: Iterator[bytes]) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"".join(events), "more_body": True}


class Events:
    """The events of one response, made from the pieces of a chat."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that grows
        self._open_index: int | None = None  # of a call that grows
        self._logprobs: list[Any] = []
        self._usage: Any = None
        self._reason = "stop"

    def beginning(self) -> Iterator[bytes]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._wishes.response("in_progress"))

    def piece(self, piece: Mapping[str, Any]) -> Iterator[bytes]:
        """What a piece of the chat adds."""
        self._usage = piece.get("usage") or self._usage
        for choice in piece.get("choices") or ():
            delta = choice.get("delta") or {}
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                yield from self._grow("reasoning", thought)
            if delta.get("content"):
                yield from self._grow("message", delta["content"], logprobs)
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._reason = choice.get("finish_reason") or self._reason

    def end(self) -> Iterator[bytes]:
        status, reason = ending(self._reason)
        if self._open is None and not self._output:
            yield from self._begin(message_item([], "in_progress"))
        yield from self._close(status)
        response = self._wishes.response(status, self._output, usage_of(self._usage), reason)
        yield self._event(f"response.{status}", response=response)

    def error(self, error: Mapping[str, Any]) -> Iterator[bytes]:
        """The stream's end, where something went wrong."""
        named = {name: error.get(name) for name in ("code", "message", "param")}
        yield self._event("error", **named)

    # -- items

    def _grow(self, kind: str, text: str, logprobs: Any = ()) -> Iterator[bytes]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close("completed")
            is_thought = kind == "reasoning"
            yield from self._begin(reasoning_item("", "in_progress") if is_thought else message_item([], "in_progress"))
        assert self._open is not None, "an item was begun"
        self._open["content"][0]["text"] += text
        if kind == "reasoning":
            yield self._of_part("response.reasoning_text.delta", delta=text)
            return
        kept = list(logprobs) if self._wishes.logprobs else []
        self._logprobs += kept
        yield self._of_part("response.output_text.delta", delta=text, logprobs=kept)

    def _call(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        function, index = call.get("function") or {}, call.get("index", 0)
        if function.get("name") and index != self._open_index:
            yield from self._close("completed")
            yield from self._begin(
                call_item({"id": call["id"], "function": {"arguments": "", **function}}, "in_progress")
            )
            self._open_index = index
            if not function.get("arguments"):
                return
        elif self._open is not None:
            self._open["arguments"] += function.get("arguments") or ""
        if function.get("arguments"):
            yield self._of_item("response.function_call_arguments.delta", delta=function["arguments"])

    def _begin(self, item: dict[str, Any]) -> Iterator[bytes]:
        self._open = item
        shown = {**item, "content": []} if "content" in item else item
        if item["type"] == "function_call":
            shown = {**item, "arguments": ""}
        yield self._event("response.output_item.added", output_index=len(self._output), item=shown)
        if "content" in item:
            is_thought = item["type"] == "reasoning"
            item["content"] = [{"type": "reasoning_text", "text": ""} if is_thought else text_part("")]
            yield self._of_part("response.content_part.added", part=dict(item["content"][0]))

    def _close(self, status: str) -> Iterator[bytes]:
        item, self._open_index = self._open, None
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            named = {"arguments": item["arguments"], "name": item["name"]}
            yield self._of_item("response.function_call_arguments.done", **named)
        else:
            part = item["content"][0]
            if item["type"] == "reasoning":
                yield self._of_part("response.reasoning_text.done", text=part["text"])
            else:
                part["logprobs"], self._logprobs = self._logprobs, []
                yield self._of_part("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            yield self._of_part("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None

    # -- events

    def _of_part(self, kind: str, **more: Any) -> bytes:
        return self._of_item(kind, content_index=0, **more)

    def _of_item(self, kind: str, **more: Any) -> bytes:
        assert self._open is not None, "an item is open"
        return self._event(kind, item_id=self._open["id"], output_index=len(self._output), **more)

    def _event(self, kind: str, **more: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return f"event: {kind}\n".encode() + event_of(body)
