"""Memory of `danlu serve`, round after round of the same chats: it must become flat.

    make bench-memory WRITE=--write       (puts what it found into docs/serving.md and its Chinese twin)
    .venv/bin/python benchmarks/memory.py --rounds 30 --chats 200 --clients 100 --new_tokens 16

After each round the server has a rest in which it gives back what it freed; then what /metrics says of the process is
printed, in MB. At the end comes how much each round added, over the last two thirds of them, by least squares. Where
what is held or what is resident grew by more than --most_growth a round, the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import guides
import httpx
from machine import cpu_name
from serve import GUIDES, served

MEGABYTE = 2**20
REST_SECONDS = 6  # the server gives back after 5
PARTS = {
    "resident": 'danlu_memory_bytes{part="resident"}',
    "files": 'danlu_memory_bytes{part="files"}',
    "other": 'danlu_memory_bytes{part="other"}',
    "heap used": 'danlu_memory_bytes{part="heap_used"}',
    "before": 'danlu_memory_bytes{part="heap_before"}',
    "made": 'danlu_memory_bytes{part="heap_made"}',
    "since": 'danlu_memory_bytes{part="heap_since"}',
    "weights": "danlu_weight_bytes",
    "products": "danlu_product_bytes",
    "keys and values": "danlu_kv_bytes",
    "prefix cache": "danlu_prefix_cache_bytes",
    "forms": "danlu_form_bytes",
    "peak": 'danlu_memory_bytes{part="peak"}',
}
JUDGED = ("resident", "heap used")
TITLES = {
    "en": ("round", *PARTS),
    "zh": (
        "轮次", "常驻", "文件", "其他", "堆（在用）", "加载前", "加载", "加载后",
        "权重", "乘法格式", "KV Cache", "前缀缓存", "语法", "峰值",
    ),
}  # fmt: skip
HOW = {
    "en": "MB after so many rounds of {chats} chats of {new_tokens} new tokens, {clients} at once, and a rest;\n"
    "{model}, {cores} cores ({kind}). The last two thirds of the rounds added {resident:+.2f} MB each to\n"
    "what is resident and {held:+.2f} MB to the heap in use; written by `python benchmarks/memory.py --write`.",
    "zh": "单位 MB，在相应轮次并空闲片刻之后测得；每轮 {chats} 个对话，每个生成 {new_tokens} 个 token，\n"
    "{clients} 个并发，{model}，{cores} 核（{kind}）。后三分之二的轮次里，每轮的变化：常驻 {resident:+.2f} MB，\n"
    "堆（在用）{held:+.2f} MB；由 `python benchmarks/memory.py --write` 写入。",
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


def parts(metrics: str) -> dict[str, float]:
    """Megabytes of each part that the server tells."""
    found = {name: re.search(rf"^{re.escape(key)} (\S+)$", metrics, re.MULTILINE) for name, key in PARTS.items()}
    return {name: float(one[1]) / MEGABYTE for name, one in found.items() if one is not None}


def growth(sizes: Sequence[float]) -> float:
    """What each round added over the last two thirds of the rounds, by least squares."""
    late = sizes[len(sizes) // 3 :]
    return statistics.linear_regression(range(len(late)), late).slope


def grown(rounds: Sequence[dict[str, float]], most: float) -> list[str]:
    """Those of the judged parts that grew by more than so many megabytes a round. Raises KeyError without a part."""
    return [name for name in JUDGED if growth([sizes[name] for sizes in rounds]) > most]


def cells(number: int, sizes: dict[str, float]) -> str:
    return " | ".join([f"| {number}", *(f"{sizes[name]:.0f}" if name in sizes else "–" for name in PARTS)]) + " |\n"


def head(language: str) -> str:
    return f"| {' | '.join(TITLES[language])} |\n|{' --- |' * len(TITLES[language])}\n"


def block(seen: Sequence[dict[str, float]], chosen: argparse.Namespace, language: str) -> str:
    """What the guide says: the first round, the last, and two between, and by how much they grew."""
    shown = sorted({1, len(seen) // 3, 2 * len(seen) // 3, len(seen)})
    resident, held = (growth([sizes[name] for sizes in seen]) for name in JUDGED)
    known = {**vars(chosen), "cores": os.cpu_count(), "kind": cpu_name(), "resident": resident, "held": held}
    rows = "".join(cells(number, seen[number - 1]) for number in shown)
    return f"{head(language)}{rows}\n{HOW[language].format(**known)}\n"


def rounds_of(url: str, chosen: argparse.Namespace) -> Iterator[dict[str, float]]:
    for _ in range(chosen.rounds):
        asyncio.run(one_round(url, chosen.chats, chosen.clients, chosen.new_tokens))
        time.sleep(REST_SECONDS)
        yield parts(httpx.get(f"{url.removesuffix('/v1')}/metrics").text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--new_tokens", type=int, default=16)
    parser.add_argument("--most_growth", type=float, default=1.0, help="MB a round that still count as flat")
    parser.add_argument("--write", action="store_true", help="put what was found into the guide to serving")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 6:
        parser.error("--rounds: 6 or more, or nothing can be said of growth")
    print(head("en"), end="", flush=True)
    seen: list[dict[str, float]] = []
    with served(chosen.model) as url:
        for sizes in rounds_of(url, chosen):
            seen.append(sizes)
            print(cells(len(seen), sizes), end="", flush=True)
    for name in JUDGED:
        print(f"{name}: {growth([sizes[name] for sizes in seen]):+.2f} MB a round over the last two thirds")
    print(f"{chosen.chats} chats of {chosen.new_tokens} tokens a round, {chosen.clients} at once, on {cpu_name()}")
    if chosen.write:
        guides.write(GUIDES, "memory", lambda language: block(seen, chosen, language))
    if found := grown(seen, chosen.most_growth):
        sys.exit(f"not flat: {' and '.join(found)} grew by more than {chosen.most_growth:g} MB a round")
    print("flat")


if __name__ == "__main__":
    main()
