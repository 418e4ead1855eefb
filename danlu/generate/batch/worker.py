"""One thread that steps the core, for as long as there is something to do.

Callers hand it work from any thread; between two steps it takes in what has arrived, so nothing else runs the
model meanwhile. An error in a step ends every request with that error, and the thread goes on. Knows no prompts
and no text.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from danlu.device import give_back_memory, memory_parts
from danlu.errors import ConfigError, Interrupted
from danlu.generate.batch.core import Core
from danlu.generate.batch.neighbours import Neighbours
from danlu.generate.batch.scheduler import Request
from danlu.model.compute.threads import keep_to, threads

Job = Callable[[], None]
Inbox = queue.SimpleQueue[Job | None]
T = TypeVar("T")

# After so long without work, freed memory is given back; between two requests it is kept.
_IDLE_SECONDS = 5.0
# Under load it is looked at so often, and given back above so many bytes: pieces too small to be used again.
_LOOK_SECONDS = 10.0
_MOST_SPARE_BYTES = 256 * 2**20
_LONG_PROMPTS = 256  # tokens: reading so many takes longer than a look at who else is there


# So often a thread that waits looks whether a signal has come.
_LISTEN_SECONDS = 1.0


def next_of(box: queue.SimpleQueue[T]) -> T:
    """The next thing in a queue; Ctrl-C ends the wait, whenever it comes.

    Python looks for signals between its own steps. One that another thread was given, or that came after the last look
    and before the wait began, would not be heard until something else woke the thread.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return box.get(timeout=_LISTEN_SECONDS)


def result_of(outcome: Future[T]) -> T:
    """What a future has come to, or the error that it has; Ctrl-C ends the wait, as in `next_of`."""
    while not outcome.done():
        wait([outcome], timeout=_LISTEN_SECONDS)
    return outcome.result()


def in_a_thread(function: Callable[[], T]) -> T:
    """Call `function` in a thread that ends with it.

    OpenMP keeps a pool of threads for each thread that ever ran a parallel product. Where the pools together have
    more threads than the machine has cores, its waiting threads go to sleep at once and waking them costs more than
    a small product. So that the worker's pool is the only one, nobody else keeps one.
    """
    with ThreadPoolExecutor(1) as executor:
        return result_of(executor.submit(function))


class Worker:
    """Starts with the first request; ends when it is closed, or when nobody holds it any more.

    Attributes:
        goes_by_itself: whether requests go on while nobody waits for them.
    """

    goes_by_itself = True

    def __init__(self, core: Core) -> None:
        self.core = core
        self._inbox: Inbox = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []  # none, or the one
        self._handing_in = threading.Lock()
        self._process: int | None = None  # that which it works in
        # Also at exit: a thread that the interpreter tears down inside torch would abort the process.
        self._stop = weakref.finalize(self, _end, self._inbox, self._threads)

    def submit(self, request: Request) -> None:
        """Queue a request; a prompt that can never fit ends it with MemoryShortage."""
        self._hand_in(partial(_submit, self.core, request))

    def cancel(self, request: Request) -> None:
        """Forget a request as soon as the current step is done."""
        with contextlib.suppress(Interrupted):  # then it is forgotten already
            self._hand_in(partial(self.core.cancel, request))

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` between two steps; returns what it returns, and raises what it raises."""
        return result_of(self.begin(function))

    def begin(self, function: Callable[[], T]) -> Future[T]:
        """`run` for those who do not wait."""
        outcome: Future[T] = Future()
        self._hand_in(partial(_run, function, outcome))
        return outcome

    def next_of(self, box: queue.SimpleQueue[T]) -> T:
        """The next thing in a queue that a request fills."""
        return next_of(box)

    def close(self) -> None:
        """End the thread; what still runs ends with Interrupted."""
        with self._handing_in:
            self._stop()

    def _require_usable(self) -> None:
        """A fork of the process has the model but no thread, neither this nor a product's: it would wait for ever."""
        if not self._stop.alive:
            raise _closed()
        here = os.getpid()
        self._process = self._process or here
        if here != self._process:
            raise ConfigError(
                f"an engine that works in process {self._process} is asked in process {here}, a fork of it",
                allowed="one process",
                fix="make the engine in the process that asks it, or fork before its first request",
            )

    def _hand_in(self, job: Job) -> None:
        with self._handing_in:
            self._require_usable()
            if not self._threads:
                # The thread holds the core and the inbox, not the worker: a forgotten engine must be able to end.
                arguments = (self.core, self._inbox)
                thread = threading.Thread(target=_loop, args=arguments, name="danlu-engine", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._inbox.put(job)


class InPlace(Worker):
    """A worker without a thread: whoever waits for something steps the core until it is there.

    For a model that the same thread trains. Each of two threads would keep a pool for its products (`in_a_thread`):
    of two cores, four threads, which sleep between any two products of a step.
    """

    goes_by_itself = False

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._stepping = threading.RLock()  # of two that wait, one steps for both

    def begin(self, function: Callable[[], T]) -> Future[T]:
        outcome = super().begin(function)
        with self._stepping:
            self._take_in()
        return outcome

    def next_of(self, box: queue.SimpleQueue[T]) -> T:
        while True:
            with self._stepping:
                if not box.empty():
                    return box.get()
                self._take_in()
                if self.core.is_idle and box.empty():
                    raise _closed()
                self._step()

    def close(self) -> None:
        with self._stepping:
            self._take_in()
            super().close()
            self.core.fail(_closed())

    def _hand_in(self, job: Job) -> None:
        self._require_usable()
        self._inbox.put(job)

    def _take_in(self) -> None:
        while not self._inbox.empty():
            if (job := self._inbox.get()) is not None:
                job()

    def _step(self) -> None:
        try:
            self.core.step()
        except Exception as error:
            self.core.fail(error)
        except BaseException:  # Ctrl-C, in the middle of a step
            self.core.fail(Interrupted("the step was stopped", fix="ask again"))
            raise


class Spare:
    """What is resident and in nobody's use: how much of it came since memory was last given back.

    What the allocator calls free says little: it goes on counting what was given back.
    """

    def __init__(self) -> None:
        self.give_back()

    def give_back(self) -> None:
        give_back_memory()
        self._least = _other_bytes()

    @property
    def grown_bytes(self) -> int:
        """Nothing where the system does not tell."""
        now = _other_bytes()
        self._least = min(self._least, now)
        return now - self._least


def _other_bytes() -> int:
    return memory_parts().get("other", 0)


def _end(inbox: Inbox, threads: list[threading.Thread]) -> None:
    """Ask the thread to end, and wait until it has: at most for the step that it is in."""
    inbox.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()


def _loop(core: Core, inbox: Inbox) -> None:
    looked, spare, neighbours = time.monotonic(), Spare(), Neighbours(threads())
    while True:
        was_idle = core.is_idle
        if not _take_in(core, inbox, spare):
            return
        if neighbours.look(after_rest=was_idle, is_long=was_idle and core.scheduler.waiting_tokens >= _LONG_PROMPTS):
            keep_to(neighbours.threads)
        try:
            core.step()
        except Exception as error:
            core.fail(error)
        if time.monotonic() > looked + _LOOK_SECONDS:
            looked = time.monotonic()
            if spare.grown_bytes > _MOST_SPARE_BYTES:
                spare.give_back()


def _take_in(core: Core, inbox: Inbox, spare: Spare) -> bool:
    """Do what has arrived, and wait where there is nothing else to do; False when it is time to end."""
    while not inbox.empty() or core.is_idle:
        job = _next(inbox, spare)
        if job is None:
            core.fail(_closed())
            return False
        job()
        del job  # it may hold the worker, and so keep it from being forgotten
    return True


def _next(inbox: Inbox, spare: Spare) -> Job | None:
    """The next job. When none comes for a while, memory that was freed goes back to the system first."""
    try:
        return inbox.get(timeout=_IDLE_SECONDS)
    except queue.Empty:
        spare.give_back()
        return inbox.get()


def _submit(core: Core, request: Request) -> None:
    try:
        core.submit(request)
    except Exception as error:
        request.on_end(error)


def _run(function: Callable[[], T], outcome: Future[T]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        outcome.set_result(function())
    except Exception as error:
        outcome.set_exception(error)


def _closed() -> Interrupted:
    return Interrupted("the engine was closed", fix="make another one")
