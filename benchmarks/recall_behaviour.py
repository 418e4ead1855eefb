"""Neighbours of items out of generated events: swing beside LibRecommender, item-CF beside implicit and similaripy.

    make bench-behaviour                               (10^6 events)
    .venv/bin/python benchmarks/recall_behaviour.py --events 10000000 --limit 600 --write

A user has 20 events in the mean, some a hundred times as many as others, and items are met by Zipf's law: 10^7 events
are of 500,000 users and 50,000 items. All sides keep 100 neighbours of each item and use all cores; each runs in a
process of its own, and one that takes longer than the limit is stopped. Danlu's swing counts the latest 300 users of an
item and 500 items of a user by default; LibRecommender's has no such caps, so Danlu's is shown without them as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import guides
import numpy as np
from machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
NEIGHBOURS = 100
CAPPED, UNCAPPED = (500, 300), (10**7, 10**7)
# (what, side, caps), and how a row is called.
SIDES: dict[tuple[str, str, tuple[int, int] | None], tuple[str, str]] = {
    ("swing", "danlu", CAPPED): ("swing, Danlu", "swing，丹炉"),
    ("swing", "danlu", UNCAPPED): ("swing, Danlu without caps", "swing，丹炉（不截断）"),
    ("swing", "librecommender", None): ("swing, LibRecommender", "swing，LibRecommender"),
    ("item-CF", "danlu", None): ("item-CF, Danlu", "item-CF，丹炉"),
    ("item-CF", "implicit", None): ("item-CF, implicit", "item-CF，implicit"),
    ("item-CF", "similaripy", None): ("item-CF, similaripy", "item-CF，similaripy"),
}


def write(path: Path, events: int) -> int:
    """Pairs of users and items, each once, drawn from one seed; returns how many there are."""
    rng = np.random.default_rng(0)
    users, items = max(events // 20, 10), max(events // 200, 10)
    chances = rng.lognormal(0, 1, users)
    who = rng.choice(users, events, p=chances / chances.sum()).astype(np.int64)
    zipf = 1 / np.arange(1, items + 1) ** 0.8
    what = rng.choice(items, events, p=zipf / zipf.sum())
    pairs = np.unique(who * items + what)
    np.savez(path, users=pairs // items, items=pairs % items, shape=np.array([users, items]))
    return len(pairs)


def measured(key: tuple[str, str, tuple[int, int] | None], pairs: Path, limit: int) -> dict[str, Any]:
    """What the side's process prints, or why it printed nothing."""
    what, side, caps = key
    python = sys.executable if side == "danlu" else str(ROOT / ".peers" / "behaviour" / "bin" / "python")
    if not Path(python).exists():
        return {"failed": "not installed"}
    script = ROOT / "benchmarks" / "peers" / ("danlu_behaviour.py" if side == "danlu" else "behaviour_peers.py")
    threads = len(os.sched_getaffinity(0))
    asked = {
        "what": what,
        "side": side,
        "caps": caps,
        "pairs": str(pairs),
        "neighbours": NEIGHBOURS,
        "threads": threads,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [python, script], input=json.dumps(asked), capture_output=True, text=True, env=environment, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"> {limit:,} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["failed"])[-1][:80]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def block(rows: dict[tuple[str, str, tuple[int, int] | None], dict[str, Any]], pairs: int, language: str) -> str:
    at = ("en", "zh").index(language)
    heads = (("neighbours of items", "time, s", "memory at most, GB", "pairs kept"),
             ("物品近邻", "时间，秒", "峰值内存，GB", "保留的近邻对"))[at]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for key, found in rows.items():
        name = SIDES[key][at] + (f" {found['version']}" if "version" in found else "")
        if "failed" in found:
            lines.append(f"| {name} | {found['failed']} | – | – |")
        else:
            lines.append(f"| {name} | {found['seconds']:,.2f} | {found['peak'] / 1e9:.2f} | {found['kept']:,} |")
    cores = len(os.sched_getaffinity(0))
    note = (
        f"{pairs:,} pairs of users and items, {NEIGHBOURS} neighbours of each item; {cpu_name()}, {cores} cores.",
        f"{pairs:,} 个用户–物品对，每个物品保留 {NEIGHBOURS} 个近邻；{cpu_name()}，{cores} 核。",
    )[at]
    return "\n".join([*lines, "", note, ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=10**6)
    parser.add_argument("--limit", type=int, default=600, help="seconds that a side may take")
    parser.add_argument("--only", nargs="*", help="names of sides; all without it: danlu, librecommender, …")
    parser.add_argument("--write", action="store_true", help="put the table into docs/behaviour")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pairs = Path(name) / "pairs.npz"
        count = write(pairs, given.events)
        rows = {}
        for key in (key for key in SIDES if given.only is None or key[1] in given.only):
            rows[key] = measured(key, pairs, given.limit)
            print(SIDES[key][0], rows[key], flush=True)
    print(block(rows, count, "en"))
    if given.write:
        guides.write(guides.BEHAVIOUR, "behaviour", lambda language: block(rows, count, language))


if __name__ == "__main__":
    main()
