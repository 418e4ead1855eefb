"""What the tests of the server share."""

from __future__ import annotations

import time

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def is_idle(engine):
    load = engine.load
    return not (load.waiting or load.running or load.kv_bytes)
