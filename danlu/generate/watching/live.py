"""A running request as an asyncio program sees it: events without a thread that waits for them.

The engine's thread makes the steps and wakes the loop; text is made on the loop (growth.py). Knows no model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from danlu.generate.answers import Event, Generation
from danlu.generate.batch.worker import Worker
from danlu.generate.requests import Job
from danlu.generate.search.strategies import Step
from danlu.generate.watching.growth import Growth


class LiveAnswers:
    """The answers to one prompt as they grow. Made on the loop that reads them, and starts the request.

    Args:
        job: not submitted yet.
        worker: the engine's thread.
        finish: awaits the whole of a request that has ended; raises the error that ended it.
    """

    def __init__(
        self,
        job: Job,
        worker: Worker,
        finish: Callable[[], Awaitable[Generation]],
    ) -> None:
        self._job, self._worker, self._finish = job, worker, finish
        self._growth = Growth(job)
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._wake_on_news()
        worker.submit(job.request)

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self._job.prompt

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were in the prefix cache."""
        return self._job.request.cached_tokens

    def close(self) -> None:
        """End the request, wherever it stands."""
        self._worker.cancel(self._job.request)

    async def events(self) -> AsyncIterator[Event]:
        """Pieces of all answers, then each answer with its last piece; raises the error that ended the request."""
        ended = False
        while not ended:
            await self._news.wait()
            self._news.clear()
            ended = not self._job.ended.empty()
            for event in self._growth.events(self._progress()):
                yield event
        for event in self._growth.last(await self._finish()):
            yield event

    def _wake_on_news(self) -> None:
        request = self._job.request
        on_step, on_end = request.on_step, request.on_end

        def step(made: Step) -> None:
            on_step(made)
            self._wake()

        def end(error: BaseException | None) -> None:
            on_end(error)
            self._wake()

        request.on_step, request.on_end = step, end

    def _wake(self) -> None:
        """Called on the engine's thread. A loop that has ended has no reader left, and the engine goes on."""
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _progress(self) -> dict[int, tuple[int, ...]]:
        """What has been made since the last look."""
        progress: dict[int, tuple[int, ...]] = {}
        while not self._job.steps.empty():
            progress |= self._job.steps.get()
        return progress
