"""Ctrl-C and SIGTERM while a run trains: asked for once, the loop stops between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether the user asked to stop."""

    asked = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop reads between steps; a second one kills."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}

    def ask(number: int, _frame: Any) -> None:
        stop.asked = True
        signal.signal(number, before[number])

    for number in signals:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, before[number])
