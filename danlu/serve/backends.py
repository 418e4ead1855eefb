"""Who answers: the engine of this process (OwnEngine), or another server with OpenAI's API (remote.py).

A backend gets a request that has been read and checked, and gives a response in OpenAI's shapes. Routes, keys and
bodies are left to api.py, and so is counting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastapi.responses import Response

from danlu.recall.passages import room
from danlu.serve.faults import ApiFault
from danlu.serve.metrics import Metrics
from danlu.serve.options import ServeOptions
from danlu.serve.replies.replies import Replies, Written, rendered
from danlu.serve.service import Receive, Run, Service, while_wanted
from danlu.serve.stream import AnswerStream
from danlu.serve.tokenize import detokenized, tokenized
from danlu.serve.wire.schema import Ask

Ended = Callable[[ApiFault | None], None]


class Backend(Protocol):
    """What a server needs of whoever answers.

    Attributes:
        closing: set when the server is told to stop; whatever still runs then ends.
        models: what clients may ask for, each with the model that it is an adapter of.
    """

    options: ServeOptions
    closing: asyncio.Event
    metrics: Metrics

    @property
    def models(self) -> Mapping[str, str | None]: ...

    async def kinds(self) -> Mapping[str, str]:
        """Base or instruct, of those models of which it is known."""

    async def reply(self, ask: Ask, chat: bool, arrived: float, receive: Receive, ended: Ended) -> Response:
        """The answer, whole or as a stream.

        Raises ApiFault, and calls `ended` when it does not: with None, or with what ended the stream.

        Args:
            chat: whether the answer is a message, or a text.
            arrived: when the request came, on the monotonic clock.
            receive: hears when the client goes away.
        """

    async def tokens(self, document: dict[str, Any], *, spelt: bool) -> dict[str, Any]:
        """The answer to a body of /tokenize, or of /detokenize (`spelt`). Raises ApiFault."""

    def room(self, ask: Ask) -> int | None:
        """Tokens that the prompt of a chat may have; None where nothing is known of it before it is asked."""

    async def length(self, ask: Ask) -> int:
        """Tokens that it has, where there is a room. Raises ApiFault and DanluError."""

    async def check_health(self) -> None:
        """Raise ApiFault unless requests can be answered."""

    async def close(self) -> None:
        """Let go of connections; called on the loop when the server has ended."""


class OwnEngine:
    """The engine of this process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.options, self.closing, self.metrics = service.options, service.closing, service.metrics

    @property
    def models(self) -> Mapping[str, str | None]:
        return {name: self.service.parent(name) for name in self.service.models}

    async def kinds(self) -> Mapping[str, str]:
        return await self.service.kinds()

    async def reply(self, ask: Ask, chat: bool, arrived: float, receive: Receive, ended: Ended) -> Response:
        run = await self.service.open(ask, arrived)
        reading = None if run.talk is None else run.talk.reader
        replies = Replies(ask, self.service.names, chat, reading=reading)
        if ask.stream:
            return AnswerStream(run, replies, ended)
        body = await _whole(self.service, run, replies, receive)
        ended(None)
        return Written(body)

    async def tokens(self, document: dict[str, Any], *, spelt: bool) -> dict[str, Any]:
        return await (detokenized if spelt else tokenized)(self.service, document)

    def room(self, ask: Ask) -> int | None:
        limits = (ask.params.max_new_tokens, ask.params.max_length) if ask.limited else (None, None)
        return room(self.service.engine.context_length, *limits, self.options.default_max_tokens)

    async def length(self, ask: Ask) -> int:
        (prompt,) = ask.prompts
        return len((await self.service.read(prompt, ask))[0])

    async def check_health(self) -> None:
        """The engine is in this process: if one answers, so does the other."""

    async def close(self) -> None:
        """The engine belongs to whoever made it."""


async def _whole(service: Service, run: Run, replies: Replies, receive: Receive) -> str:
    async def everything() -> str:
        befores = await run.befores()
        answers = await run.answers()
        if replies.is_long:
            return await asyncio.to_thread(lambda: rendered(replies.whole(answers, run.usage, befores)))
        return rendered(replies.whole(answers, run.usage, befores))

    try:
        return await while_wanted(everything(), receive, service, run.deadline - time.monotonic() + 1)
    finally:
        run.close()
