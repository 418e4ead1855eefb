"""The nearest of 10^5 or 10^6 vectors of 128 numbers under filters: queries a second at recall 0.95, beside others.

    make bench-recall-vectors ROWS=100000       (minutes)
    make bench-recall-vectors                   (10^6 vectors: half an hour, most of it building the others' graphs)
    .venv/bin/python benchmarks/recall_vectors.py --rows 1000000 --folder build/vectors --build-only

Vectors of length 1 lie in clusters of varied size and width, 24 directions in each, with noise in all. A filter passes
100 %, 10 %, 1 %, 0.1 % or 0.01 % of them: drawn anywhere; from the clusters around the queries (near); from those that
are farthest from them (far). Each side is a process of its own and answers all queries of a case in one call, on one
thread; seconds are those of the processor. Of a side's settings the quickest with the recall is taken, and where none
has it, the best recall is said. Danlu has no setting: its index is told the recall when it is made. --write puts the
table into the guide; --kept takes what earlier runs in the folder have measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from guides import RECALL, write
from machine import cpu_name

ROOT = Path(__file__).resolve().parents[1]
DIM, INNER, NOISE = 128, 24, 0.25
QUERIES, K, RECALL_WANTED = 200, 10, 0.95
SHARES = {"100 %": 1.0, "10 %": 0.1, "1 %": 0.01, "0.1 %": 0.001, "0.01 %": 0.0001}
PLACES = ("anywhere", "near", "far")
SIDES = {"danlu": "Danlu", "faiss": "faiss", "usearch": "usearch", "hnswlib": "hnswlib", "zvec": "zvec"}
# Seconds that a set of queries may take before no further effort is tried.
PATIENCE = 20


def make(folder: Path, rows: int) -> list[str]:
    """Vectors, and rows, queries and answers of each case, from one seed; names of the cases."""
    names = ["100 %", *(f"{share}, {place}" for share in list(SHARES)[1:] for place in PLACES)]
    if (folder / "made").exists():
        return names
    rng = np.random.default_rng(0)
    clusters = max(200, rows // 500)
    values, labels, middles = clustered(rng, rows + 8 * QUERIES, clusters)
    values, asked = values[:rows], values[rows:]
    np.save(folder / "vectors.npy", values)
    order = np.argsort(-(middles @ middles[0]))  # clusters from the nearest of the first to the farthest
    rank = np.empty(clusters, np.int64)
    rank[order] = np.arange(clusters)
    closeness = rank[labels] / clusters
    around = asked[np.argsort(closeness[rows:], kind="stable")[:QUERIES]]
    for at, name in enumerate(names):
        share, _, place = name.partition(", ")
        passing = drawn(rng, closeness[:rows], SHARES[share], place)
        queries = asked[:QUERIES] if place in ("", "anywhere") else around
        if SHARES[share] < 1:
            np.save(folder / f"{at}-rows.npy", passing)
        np.save(folder / f"{at}-queries.npy", queries)
        np.save(folder / f"{at}-truth.npy", truth(values, passing, queries))
    (folder / "made").touch()
    return names


def clustered(rng: np.random.Generator, rows: int, clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors (rows, DIM), the cluster of each, and the middles of the clusters."""
    middles = rng.standard_normal((clusters, DIM), np.float32)
    weights = rng.gamma(1, 1, clusters)
    labels = rng.choice(clusters, rows, p=weights / weights.sum())
    widths = rng.uniform(0.6, 1.4, clusters)
    values = middles[labels]
    for at, members in enumerate(np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])):
        directions = rng.standard_normal((INNER, DIM), np.float32) * np.float32(widths[at] / INNER**0.5)
        values[members] += rng.standard_normal((len(members), INNER), np.float32) @ directions
    for start in range(0, rows, 1 << 16):
        some = values[start : start + (1 << 16)]
        some += np.float32(NOISE) * rng.standard_normal(some.shape, np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return values, labels, middles


def drawn(rng: np.random.Generator, closeness: np.ndarray, share: float, place: str) -> np.ndarray:
    """Rows that pass: near are those of the nearest clusters with about three times as many, far of the far half."""
    if place == "near":
        inside = np.flatnonzero(closeness <= np.quantile(closeness, min(1.0, 3 * share)))
    elif place == "far":
        inside = np.flatnonzero(closeness >= 0.5)
    else:
        inside = np.arange(len(closeness))
    wanted = min(len(inside), max(1, round(share * len(closeness))))
    return np.sort(rng.choice(inside, wanted, replace=False)) if wanted < len(inside) else inside


def truth(values: np.ndarray, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(queries, K) row numbers, -1 where no more pass."""
    best = np.full((len(queries), K), -1, np.int64)
    scores = np.full((len(queries), K), -np.inf, np.float32)
    for start in range(0, len(rows), 1 << 16):
        some = rows[start : start + (1 << 16)]
        joined = np.hstack([scores, queries @ values[some].T])
        numbers = np.hstack([best, np.broadcast_to(some, (len(queries), len(some)))])
        kept = np.argpartition(-joined, K - 1, axis=1)[:, :K]
        best, scores = np.take_along_axis(numbers, kept, 1), np.take_along_axis(joined, kept, 1)
    return best


def measured(side: str, folder: Path, names: list[str], repeats: int, *, build_only: bool) -> dict[str, Any] | None:
    """What a side's process prints; None where it only builds. Raises if it fails."""
    peer = os.environ.get("RECALL_PEERS", str(ROOT / ".peers" / "recall-vectors" / "bin" / "python"))
    script = ROOT / "benchmarks" / "peers" / f"{side}_vectors.py"
    asked = {
        "folder": str(folder), "cases": names, "k": K, "recall": RECALL_WANTED, "repeats": repeats,
        "patience": PATIENCE, "build_only": build_only,
    }  # fmt: skip
    command = [sys.executable if side == "danlu" else peer, script]
    one_thread = {**os.environ, **({} if build_only else {"OMP_NUM_THREADS": "1"})}
    done = subprocess.run(command, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, env=one_thread)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.returncode}")
    return None if build_only else json.loads(done.stdout.splitlines()[-1])


def lines(found: dict[str, dict[str, Any]], names: list[str], rows: int, language: str) -> Iterator[str]:
    """A table in Markdown."""
    heading = {"en": "rows that pass", "zh": "通过筛选的行"}[language]
    one = {"en": "Danlu, one by one", "zh": "Danlu，逐条"}[language]
    sides = " | ".join(f"{SIDES[side]} {answer['version']}".strip() for side, answer in found.items())
    yield f"| {rows:,} × {DIM}: {heading} | {sides} | {one} |"
    yield "|" + "---|" * (len(found) + 2)
    places = {"en": {}, "zh": {"anywhere": "随机", "near": "近处", "far": "远处"}}[language]
    for name in names:
        share, _, place = name.partition(", ")
        shown = share + (f" {places.get(place, place)}" if place else "")
        cells = [cell(answer["found"][name]) for answer in found.values()]
        yield f"| {shown} | {' | '.join(cells)} | {cell(found['danlu']['single'][name])} |"


def cell(found: dict[str, Any]) -> str:
    rate = f"{found['rate']:,.0f}"
    return rate if found["recall"] >= RECALL_WANTED else f"{rate} ({found['recall']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10**5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["faiss", "usearch", "hnswlib", "zvec"])
    parser.add_argument("--folder", type=Path, help="where data and indexes stay for another run; none stay without it")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        names, found = make(folder, given.rows), {}
        for side in ["danlu", *given.peers]:
            kept = folder / f"{side}.json"
            if given.kept and kept.exists():
                found[side] = json.loads(kept.read_text())
                continue
            answer = measured(side, folder, names, given.repeats, build_only=given.build_only)
            if answer is not None:
                found[side] = answer
                kept.write_text(json.dumps(answer))
    if given.build_only:
        return
    for side, answer in found.items():
        print(side, "built in", answer["build"], {name: one["setting"] for name, one in answer["found"].items()})
    footer = {
        "en": f"{cpu_name()}, one thread: queries a second of processor time; best of {given.repeats}, warm.",
        "zh": f"{cpu_name()}，单线程：每秒 CPU 时间的查询数；{given.repeats} 次取最快，热态。",
    }
    tables = {lang: "\n".join([*lines(found, names, given.rows, lang), "", footer[lang], ""]) for lang in footer}
    print(tables["en"])
    if given.write:
        write(RECALL, f"vectors-{given.rows}", tables.__getitem__)


if __name__ == "__main__":
    main()
