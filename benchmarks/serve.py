"""Latency and throughput of `danlu serve` under load, at several numbers of clients.

    make bench-serve                     (writes the table into docs/serving.md and its Chinese twin)
    .venv/bin/python benchmarks/serve.py --clients 1 4 --requests 8 --new_tokens 16

Starts the command in a process of its own on a free port and asks it over HTTP, streaming. Every client asks again as
soon as it has its answer; prompts differ, and every answer has exactly --new_tokens tokens. Times are the client's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import guides
import httpx
from machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
GUIDES = {"en": ROOT / "docs" / "serving.md", "zh": ROOT / "docs" / "serving.zh.md"}
COLUMNS = {
    "en": ("clients", "tokens/s", "requests/s", "first token, ms", "between pieces, ms", "whole answer, ms"),
    "zh": ("客户端数", "token/s", "请求/s", "首个 token（毫秒）", "相邻两段之间（毫秒）", "整个回答（毫秒）"),
}
HOW = {
    "en": "p50 / p90 / p99 of {requests} requests of {new_tokens} new tokens each, {model}, {cores} cores ({kind}),\n"
    "load average before {busy:.1f}; written by `{command}`.",
    "zh": "p50 / p90 / p99，{requests} 个请求，每个生成 {new_tokens} 个 token，{model}，{cores} 核（{kind}），\n"
    "运行前的平均负载 {busy:.1f}；由 `{command}` 写入。",
}


@dataclass
class Timing:
    """One request: seconds from asking to each piece with text, and to the end."""

    pieces: list[float]
    whole: float
    tokens: int


@dataclass
class Row:
    """What so many clients saw; times in seconds."""

    clients: int
    tokens_per_second: float
    requests_per_second: float
    first: list[float]
    between: list[float]
    whole: list[float]

    @classmethod
    def of(cls, clients: int, timings: Sequence[Timing], seconds: float) -> Row:
        return cls(
            clients,
            sum(one.tokens for one in timings) / seconds,
            len(timings) / seconds,
            [one.pieces[0] for one in timings],
            [after - before for one in timings for before, after in pairwise(one.pieces)],
            [one.whole for one in timings],
        )

    def cells(self) -> list[str]:
        times = [percentiles(values) for values in (self.first, self.between, self.whole)]
        return [str(self.clients), f"{self.tokens_per_second:.0f}", f"{self.requests_per_second:.1f}", *times]


def percentiles(seconds: Sequence[float]) -> str:
    """p50, p90 and p99 in milliseconds: the least value that so many percent do not exceed."""
    ranked = sorted(seconds)
    return " / ".join(f"{ranked[math.ceil(len(ranked) * at / 100) - 1] * 1e3:.0f}" for at in (50, 90, 99))


def table(rows: Sequence[Row], language: str) -> str:
    lines = [COLUMNS[language], ["---"] * 6, *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@contextmanager
def served(model: str) -> Iterator[str]:
    """URL of a server in a process of its own."""
    command = [sys.executable, "-c", "from danlu.cli import main; main()", "serve", model, "--port=0"]
    with subprocess.Popen([*command, "--served_model_name=bench"], stdout=subprocess.PIPE, text=True, cwd=ROOT) as one:
        try:
            assert one.stdout is not None
            ready = one.stdout.readline()
            if not ready.startswith("ready: "):
                raise SystemExit("the server did not start")
            yield ready.removeprefix("ready: ").strip()
        finally:
            one.send_signal(signal.SIGTERM)


async def ask(client: httpx.AsyncClient, number: int, new_tokens: int) -> Timing:
    body = {
        "model": "bench", "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}],
        "max_tokens": new_tokens, "eos_token_id": [], "seed": number, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, pieces, tokens = time.perf_counter(), [], 0
    async with client.stream("POST", "/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line.removeprefix("data: "))
            if "error" in piece:
                raise RuntimeError(piece["error"]["message"])
            if piece["choices"] and piece["choices"][0]["delta"].get("content"):
                pieces.append(time.perf_counter() - began)
            tokens = (piece.get("usage") or {}).get("completion_tokens", tokens)
    whole = time.perf_counter() - began
    return Timing(pieces or [whole], whole, tokens)


async def load(url: str, clients: int, requests: int, new_tokens: int) -> Row:
    numbers = iter(range(requests))
    timings: list[Timing] = []

    async def client_loop(client: httpx.AsyncClient) -> None:
        for number in numbers:
            timings.append(await ask(client, number, new_tokens))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await ask(client, 0, 2)
        began = time.perf_counter()
        await asyncio.gather(*(client_loop(client) for _ in range(clients)))
        return Row.of(clients, timings, time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="put the table into the guide to serving")
    chosen = parser.parse_args(arguments)
    busy = os.getloadavg()[0]
    with served(chosen.model) as url:
        rows = [asyncio.run(load(url, clients, chosen.requests, chosen.new_tokens)) for clients in chosen.clients]
    print(table(rows, "en"), end="")
    if chosen.write:
        given = sys.argv[1:] if arguments is None else arguments
        threads = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
        command = " ".join([*threads, "python benchmarks/serve.py", *given])
        known = {**vars(chosen), "cores": os.cpu_count(), "kind": cpu_name(), "busy": busy, "command": command}
        guides.write(GUIDES, "serve", lambda language: f"{table(rows, language)}\n{HOW[language].format(**known)}\n")


if __name__ == "__main__":
    main()
