"""An answer as server-sent events, with a sign of life while nothing comes."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

from danlu.serve.faults import ApiFault, as_fault
from danlu.serve.replies.replies import DONE, KEEP_ALIVE, Replies, event_of
from danlu.serve.service import Host, Receive, Run, while_wanted

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BEAT_SECONDS = 10.0
# After the deadline, a client that reads slowly has this long to take in what is on its way.
_GRACE_SECONDS = 5.0


class EventStream(Response, ABC):
    """Server-sent events as they come.

    Args:
        host: may be stopped meanwhile.
        deadline: on the monotonic clock.
        ended: hears None, or the fault that ended the stream.
    """

    media_type = "text/event-stream"

    def __init__(self, host: Host, deadline: float, ended: Callable[[ApiFault | None], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._host, self._deadline, self._ended = host, deadline, ended

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        fault: ApiFault | None = ApiFault(499, "the stream was cut off", code="cancelled")
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            seconds = self._deadline + _GRACE_SECONDS - time.monotonic()
            try:
                await while_wanted(self._pieces(send), receive, self._host, seconds)
                fault = None
            except Exception as error:
                fault = as_fault(error)
                if fault.status != 499:
                    await asyncio.wait_for(say(send, event_of(fault.body)), _GRACE_SECONDS)
            await asyncio.wait_for(say(send, b"", more=False), _GRACE_SECONDS)
        except (TimeoutError, OSError):  # nobody reads
            pass
        finally:
            self._ended(fault)
            await self._close()

    @abstractmethod
    async def _pieces(self, send: Send) -> None:
        """Send every event. Raises ApiFault."""

    @abstractmethod
    async def _close(self) -> None:
        """Let go of what the events came from."""


class AnswerStream(EventStream):
    """The pieces of a run as they come; owns the run and closes it."""

    def __init__(self, run: Run, replies: Replies, ended: Callable[[ApiFault | None], None]) -> None:
        super().__init__(run.service, run.deadline, ended)
        self._run, self._replies = run, replies

    async def _close(self) -> None:
        self._run.close()

    async def _pieces(self, send: Send) -> None:
        for index, before in enumerate(await self._run.befores()):
            await say(send, self._replies.beginning(index, before))
        async for news in self._run.pieces(BEAT_SECONDS):
            await say(send, KEEP_ALIVE if news is None else self._replies.piece(*news))
        if self._replies.counted:
            await say(send, self._replies.counts(self._run.usage))
        await say(send, DONE)


async def say(send: Send, data: bytes, *, more: bool = True) -> None:
    if data or not more:
        await send({"type": "http.response.body", "body": data, "more_body": more})
