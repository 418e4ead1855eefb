"""What all clients ask, and waiting for what must come true."""

from __future__ import annotations

import time
from collections.abc import Callable

HELLO = [{"role": "user", "content": "hello"}]
RAIN = [{"role": "user", "content": "How is the weather in Paris?"}]
ADA = [{"role": "user", "content": "Who is Ada?"}]
THINK = [{"role": "user", "content": "think about it"}]
BOTH = [{"role": "user", "content": "How is the weather in Paris and Rome?"}]
MUST = [{"role": "user", "content": "You must ask for the weather in Paris."}]
LONG = [{"role": "user", "content": "word " * 9000}]  # longer than the context
COUNT = [{"role": "user", "content": "count"}]  # answered at a length that no test waits for
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait; no sound machine needs so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
