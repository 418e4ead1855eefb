"""Keywords on 10^4, 10^5 or 10^6 texts: questions a second for the ten best, of all rows and of one in a hundred.

    make bench-words                       (10^4 and 10^5 texts; two minutes)
    make bench-words SIZES="1000000"       (ten minutes, 6 GiB of memory)
    make bench-words WRITE=--write

Texts are 20 to 100 words drawn from 200,000 by Zipf's law, questions three to six of the rarer words of one text. Each
side gets the same words, finds the ten best by BM25 (k1 1.2, b 0.75, Lucene's idf) in a process of its own, with one
thread. Times are seconds of the processor, of which others that compute take nothing, the best of so many rounds over
all questions. Scores are compared with Danlu's: "the same ten"
is the share of questions whose ten scores agree to four digits; tantivy rounds the lengths of texts, so its differ.
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

import guides
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import cpu_name

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, GROUPS, QUESTIONS = 200_000, 100, 500
SIDES = {"danlu": "Danlu", "plain": "Danlu, no compiler", "bm25s": "bm25s (numba)", "tantivy": "tantivy"}
LABELS = {
    "en": {
        "texts": "texts", "all": "all rows, questions a CPU second",
        "some": "one row in a hundred, questions a CPU second", "build": "build, CPU s", "size": "on the disk, MB",
        "same": "the same ten", "same some": "the same ten of them",
        "under": "{cpu}; one thread; best of {repeats} rounds over {questions} questions",
    },
    "zh": {
        "texts": "篇文本", "all": "全部行，每 CPU 秒查询数", "some": "筛选出 1% 的行，每 CPU 秒查询数",
        "build": "建库，CPU 秒", "size": "磁盘占用，MB", "same": "前十相同的查询占比",
        "same some": "筛选后前十相同的占比", "under": "{cpu}；单线程；{questions} 个查询，{repeats} 轮取最快",
    },
}  # fmt: skip


def write(path: Path, rows: int) -> list[str]:
    """The texts, drawn from one seed; returns the questions."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, VOCABULARY + 1)
    ladder = np.cumsum(chances / chances.sum())
    lengths = rng.integers(20, 101, rows)
    drawn = np.searchsorted(ladder, rng.random(lengths.sum()))
    cuts = np.cumsum(lengths)[:-1]
    texts = [" ".join(f"w{word}" for word in words.tolist()) for words in np.split(drawn, cuts)]
    groups = pa.array([f"group {at}" for at in rng.integers(0, GROUPS, rows).tolist()])
    pq.write_table(pa.table({"id": np.arange(rows), "group": groups, "text": texts}), path)
    questions = []
    for at in rng.integers(0, rows, QUESTIONS).tolist():
        words = np.unique(np.array([int(word[1:]) for word in texts[at].split()]))
        rarer = words[words >= 20]
        chosen = rng.choice(rarer, min(len(rarer), int(rng.integers(3, 7))), replace=False)
        questions.append(" ".join(f"w{word}" for word in chosen.tolist()))
    return questions


def measured(side: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a side's process prints. Raises SystemExit if it fails."""
    peer = ROOT / ".peers" / "words" / "bin" / "python"
    python = sys.executable if side in ("danlu", "plain") else os.environ.get("WORDS_PEERS", str(peer))
    script = ROOT / "benchmarks" / "peers" / f"{'danlu' if side == 'plain' else side}_words.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"DANLU_NATIVE": "0"} if side == "plain" else {})}
    done = subprocess.run([python, script], input=json.dumps(request), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def same(one: list[list[float]], other: list[list[float]]) -> float:
    """The share of questions with the same scores, to four digits."""
    return float(np.mean([len(a) == len(b) and np.allclose(a, b, rtol=1e-4) for a, b in zip(one, other, strict=True)]))


def lines(found: dict[str, dict[str, Any]], rows: int, label: dict[str, str]) -> Iterator[str]:
    """A table in Markdown."""
    heads = " | ".join(f"{SIDES[side]} {answer['version']}".strip() for side, answer in found.items())
    yield f"| {rows:,} {label['texts']} | {heads} |"
    yield "|---" + "|--:" * len(found) + "|"
    first = next(iter(found.values()))
    for key, scale in (("all", 1), ("some", 1), ("build", 1), ("size", 1e-6)):
        cells = [
            f"{one[key] * scale:,.0f}" if one[key] * scale >= 10 else f"{one[key] * scale:.2g}"
            for one in found.values()
        ]
        yield f"| {label[key]} | " + " | ".join(cells) + " |"
    for key, of in (("same", "scores"), ("same some", "some scores")):
        yield f"| {label[key]} | " + " | ".join(f"{same(first[of], one[of]):.1%}" for one in found.values()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="*", default=[10**4, 10**5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["bm25s", "tantivy"])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the tables into the guide")
    given = parser.parse_args()
    tables = {}
    for rows in given.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            request = {"table": str(folder / "texts.parquet"), "repeats": given.repeats}
            request["questions"] = write(folder / "texts.parquet", rows)
            sides = ["danlu", *(["plain"] if given.plain else []), *given.peers]
            tables[rows] = {side: measured(side, {**request, "folder": str(folder / side)}) for side in sides}

    def block(language: str) -> str:
        label = LABELS[language]
        under = label["under"].format(cpu=cpu_name(), repeats=given.repeats, questions=QUESTIONS)
        text = "\n\n".join("\n".join(lines(found, rows, label)) for rows, found in tables.items())
        return f"{text}\n\n{under}.\n"

    print(block("en"))
    if given.write:
        guides.write(guides.RECALL, "words", block)


if __name__ == "__main__":
    main()
