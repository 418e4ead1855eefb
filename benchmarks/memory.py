"""Memory of `danlu serve`, round after round of the same chats: it must become flat.

    make bench-memory
    .venv/bin/python benchmarks/memory.py --rounds 30 --chats 200 --clients 100 --new_tokens 16

Prints, after each round, what /metrics says of the process in MB, and at the end the growth over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Iterator, Sequence

import httpx
from serve import served

MEGABYTE = 2**20
PARTS = {
    "resident": 'danlu_memory_bytes{part="resident"}',
    "heap used": 'danlu_memory_bytes{part="heap_used"}',
    "heap free": 'danlu_memory_bytes{part="heap_free"}',
    "keys and values": "danlu_kv_bytes",
    "prefix cache": "danlu_prefix_cache_bytes",
    "forms": "danlu_form_bytes",
}


async def one_round(url: str, chats: int, clients: int, new_tokens: int) -> None:
    body = {
        "model": "bench", "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": new_tokens, "eos_token_id": [],
    }  # fmt: skip
    numbers = iter(range(chats))

    async def ask(client: httpx.AsyncClient) -> None:
        for _ in numbers:
            (await client.post("/chat/completions", json=body)).raise_for_status()

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))


def parts(metrics: str) -> list[float]:
    """Megabytes of each part; what a server does not say is nothing."""
    found = [re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE) for name in PARTS.values()]
    return [0.0 if one is None else float(one[1]) / MEGABYTE for one in found]


def rounds(url: str, chosen: argparse.Namespace) -> Iterator[list[float]]:
    for _ in range(chosen.rounds):
        asyncio.run(one_round(url, chosen.chats, chosen.clients, chosen.new_tokens))
        yield parts(httpx.get(f"{url.removesuffix('/v1')}/metrics").text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--new_tokens", type=int, default=16)
    chosen = parser.parse_args(arguments)
    print("| round |", " | ".join(f"{name}, MB" for name in PARTS), "|", flush=True)
    print("| --- |" + " --- |" * len(PARTS))
    resident = []
    with served(chosen.model) as url:
        for number, sizes in enumerate(rounds(url, chosen), 1):
            print(f"| {number} |", " | ".join(f"{size:.0f}" for size in sizes), "|", flush=True)
            resident.append(sizes[0])
    half = len(resident) // 2
    if half:
        print(f"growth from round {half} to the last: {resident[-1] - resident[half - 1]:+.0f} MB")


if __name__ == "__main__":
    main()
