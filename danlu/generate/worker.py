"""One thread that steps the core, for as long as there is something to do.

Callers hand it work from any thread; between two steps it takes in what has arrived. An error in a step ends
every request with that error, and the thread goes on. Knows no prompts and no text.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

from danlu.generate.core import Core
from danlu.generate.scheduler import Request

Job = Callable[[], None]


class Worker:
    """Starts with the first request; ends when nobody holds it any more."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stop = weakref.finalize(self, self._inbox.put, None)

    def submit(self, request: Request) -> None:
        """Queue a request; a prompt that can never fit ends it with MemoryShortage."""

        def job() -> None:
            try:
                self.core.submit(request)
            except Exception as error:
                request.on_end(error)

        self._hand_in(job)

    def cancel(self, request: Request) -> None:
        """Forget a request as soon as the current step is done."""
        core = self.core
        self._hand_in(lambda: core.cancel(request))

    def close(self) -> None:
        """End the thread; what still runs is dropped."""
        self._stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _hand_in(self, job: Job) -> None:
        with self._starting:
            if self._thread is None:
                # The thread holds the core and the inbox, not the worker: a forgotten engine must be able to end.
                arguments: tuple[Any, ...] = (self.core, self._inbox)
                self._thread = threading.Thread(target=_loop, args=arguments, name="danlu-engine", daemon=True)
                self._thread.start()
        self._inbox.put(job)


def _loop(core: Core, inbox: queue.SimpleQueue[Job | None]) -> None:
    while True:
        while not inbox.empty() or core.is_idle:
            job = inbox.get()
            if job is None:
                return
            job()
        try:
            core.step()
        except Exception as error:
            core.fail(error)
