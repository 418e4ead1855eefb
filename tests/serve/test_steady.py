"""A server that stays: what a request needed is gone with it, whatever way it ended."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from serving import CHAT, TEXT, chat, is_idle, text
from waiting import until

KINDS = [
    (CHAT, chat(max_tokens=4, eos_token_id=[])),
    (CHAT, chat(max_tokens=4, stream=True, stream_options={"include_usage": True})),
    (CHAT, chat(max_tokens=4, n=2, logprobs=True)),
    (TEXT, text(max_tokens=4, num_beams=2, stop=["x"])),
    (TEXT, text(max_tokens=4, guided_regex="[ab]{2}", echo=True)),
    (CHAT, chat(max_tokens=4, temperature=0, repetition_penalty=1e-40)),  # ends with an error in the engine
    (CHAT, chat(temprature=0)),
]

TIMES = 3


def live_objects() -> Counter[str]:
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    ours = ("danlu", "asyncio", "_asyncio", "torch", "starlette", "llguidance")
    return Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if str(kind.__module__).startswith(ours))


def test_twice_as_many_requests_leave_no_more_behind(ask, engine):
    async def talk(client):
        async def once():
            answers = await asyncio.gather(*(client.post(path, json=body) for path, body in TIMES * KINDS))
            assert Counter(answer.status_code for answer in answers) == {200: 5 * TIMES, 400: 2 * TIMES}
            await until(lambda: is_idle(engine))

        await once()  # forms, prefixes and templates that stay
        await once()
        before = live_objects()
        await once()
        await once()
        # Threads may hold their last piece of work, which is one of this kind or that. What each request left would be
        # there as often as its kind was asked since.
        await until(lambda: max((live_objects() - before).values(), default=0) < 2 * TIMES)

    ask(talk)
