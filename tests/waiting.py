"""Waiting for what must come true, and holding up what must not end yet. No test waits by the clock."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

# A sound machine needs a small part of it; a busy one may need most.
PATIENCE_SECONDS = 60


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


async def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """`wait_until` on the running loop."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.005)


class Passes:
    """The forward passes of an engine: how many were made, and whether more may be."""

    def __init__(self, free: float) -> None:
        self.made, self._free, self._go_on = 0, free, threading.Event()

    def count(self) -> None:
        if self.made >= self._free:
            assert self._go_on.wait(PATIENCE_SECONDS), "nobody let it go on"
        self.made += 1

    @property
    def are_used_up(self) -> bool:
        return self.made >= self._free

    def go_on(self) -> None:
        self._go_on.set()


@contextlib.contextmanager
def passes_of(engine, free: float = math.inf) -> Iterator[Passes]:
    """Count an engine's forward passes; after `free` of them it is held up until `go_on()`, or the end of this."""
    own, passes = engine.core.decoder, Passes(free)

    def decoder(*args):
        passes.count()
        return own(*args)

    engine.core.decoder = decoder
    try:
        yield passes
    finally:
        passes.go_on()
        engine.core.decoder = own


@contextlib.contextmanager
def interrupts_stay_inside() -> Iterator[None]:
    """A KeyboardInterrupt that comes out fails the test; pytest would take it for the user's and end them all."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except KeyboardInterrupt:
        pytest.fail("an interrupt came out")
    finally:
        signal.signal(signal.SIGINT, before)


class Stopped(Exception):
    """A run that a test breaks off."""


def stop_after(step):
    """What a run is given to hear its rows with: it breaks off after that one."""

    def on_step(row):
        if row["step"] == step:
            raise Stopped

    return on_step
