"""What all clients ask."""

from __future__ import annotations

HELLO = [{"role": "user", "content": "hello"}]
RAIN = [{"role": "user", "content": "How is the weather in Paris?"}]
ADA = [{"role": "user", "content": "Who is Ada?"}]
THINK = [{"role": "user", "content": "think about it"}]
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
