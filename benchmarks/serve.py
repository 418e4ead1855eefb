"""Latency of a server under load: time to first token, time a token, and the whole, at several concurrencies.

    python benchmarks/serve.py [--model smollm2-135m] [--concurrency 1 4 16] [--requests 32] [--new_tokens 64]

Starts a server of its own on a free port and asks it over HTTP, streaming. Every client asks again as soon as it
has its answer; prompts differ, and every answer has exactly --new_tokens tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from dataclasses import dataclass
from statistics import quantiles

import httpx

from danlu import Engine
from danlu.serve.api import make_app
from danlu.serve.options import ServeOptions
from danlu.serve.server import Server, listen


@dataclass
class Timing:
    """One request: seconds to the first piece, seconds in all, tokens."""

    first: float
    whole: float
    tokens: int

    @property
    def each(self) -> float:
        return (self.whole - self.first) / max(1, self.tokens - 1)


async def ask(client: httpx.AsyncClient, number: int, new_tokens: int) -> Timing:
    body = {
        "model": "bench", "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}],
        "max_tokens": new_tokens, "eos_token_id": [], "seed": number, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line.removeprefix("data: "))
            if "error" in piece:
                raise RuntimeError(piece["error"]["message"])
            if first is None and piece["choices"] and piece["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
            tokens = (piece.get("usage") or {}).get("completion_tokens", tokens)
    whole = time.perf_counter() - began
    return Timing(whole if first is None else first, whole, tokens)


async def load(url: str, concurrency: int, requests: int, new_tokens: int) -> tuple[list[Timing], float]:
    """Timings of all requests, and the seconds that they took together."""
    numbers = iter(range(requests))
    timings: list[Timing] = []

    async def client_loop(client: httpx.AsyncClient) -> None:
        for number in numbers:
            timings.append(await ask(client, number, new_tokens))

    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await ask(client, 0, 2)
        began = time.perf_counter()
        await asyncio.gather(*(client_loop(client) for _ in range(concurrency)))
        return timings, time.perf_counter() - began


def percentiles(values: list[float], scale: float) -> str:
    cuts = quantiles(values, n=100, method="inclusive")
    return " / ".join(f"{cuts[at - 1] * scale:.0f}" for at in (50, 90, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=64)
    chosen = parser.parse_args()
    options, ready = ServeOptions(port=0), threading.Event()
    urls: list[str] = []

    def say(line: str) -> None:
        urls.append(line.removeprefix("ready: "))
        ready.set()

    with listen(options) as taken:
        server = Server(make_app(Engine(chosen.model), options, "bench"), options, say)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        ready.wait()
        try:
            print(
                "| clients | tokens/s | first token ms p50/p90/p99 | each token ms p50/p90/p99 | whole ms p50/p90/p99 |"
            )
            print("|---|---|---|---|---|")
            for concurrency in chosen.concurrency:
                timings, seconds = asyncio.run(load(urls[0], concurrency, chosen.requests, chosen.new_tokens))
                speed = sum(one.tokens for one in timings) / seconds
                columns = [
                    percentiles([getattr(one, name) for one in timings], 1e3) for name in ("first", "each", "whole")
                ]
                print(f"| {concurrency} | {speed:.0f} | {' | '.join(columns)} |", flush=True)
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
