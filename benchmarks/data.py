"""`danlu data check`: rows a second of one core, tokenized in batches and one at a time, with equal figures.

    make bench-data                                              (two minutes)
    .venv/bin/python benchmarks/data.py --model gemma3-270m --gigabyte

Rows are questions and answers of 6 to 40 words, cut out of the docstrings of Python's library (so many that new words
keep coming, as in any text), or of this project's Chinese documents. Rates count the processor time of the process with
one thread, so that other work on the machine matters little; both ways stand in one run. --gigabyte reads a file of
100 MB and one of 1 GB and compares the peaks of memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any

from machine import cpu_name

from danlu.commands.looking import checking_chat
from danlu.data.chat import Chat
from danlu.data.look import check as checking
from danlu.data.records import Record
from danlu.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
CHINESE = "".join(
    re.findall("[\u4e00-\u9fff，。：；！？、]+", "".join(p.read_text("utf-8") for p in ROOT.glob("docs/*.zh.md")))
)


@cache
def english() -> list[str]:
    """The words of the standard library's docstrings, about 900,000 and 60,000 different ones."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    found = [re.findall('"""(.*?)"""', path.read_text("utf-8", "replace"), re.S) for path in sources]
    return " ".join(cleandoc(text) for texts in found for text in texts if " " in text).split(" ")


def row(draw: random.Random, language: str) -> dict[str, str]:
    """A question of 6 to 15 words and an answer of 10 to 40; two characters stand for a Chinese word."""

    def words(least: int, most: int) -> str:
        count = draw.randint(least, most)
        if language == "zh":
            at = draw.randrange(len(CHINESE) - 2 * count)
            return CHINESE[at : at + 2 * count]
        at = draw.randrange(len(english()) - count)
        return " ".join(english()[at : at + count]).strip() or "?"

    return {"prompt": words(6, 15), "completion": words(10, 40)}


def write(path: Path, language: str, *, rows: int = 0, size_bytes: int = 0) -> Path:
    """A file of so many rows, or of about so many bytes."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while rows > 0 or file.tell() < size_bytes:
            count = min(rows, 1000) if rows > 0 else 1000
            lines = [json.dumps(row(draw, language), ensure_ascii=False) for _ in range(count)]
            file.write("\n".join(lines) + "\n")
            rows -= len(lines)
    return path


class OneByOne:
    """The plain way: each record rendered and tokenized by itself."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def sizes(self, records: Iterable[Record]) -> Iterator[tuple[Record, list[tuple[int, int]] | DataError]]:
        for record in records:
            try:
                yield record, [(len(each.token_ids), each.learnt_tokens) for each in self._chat.examples(record)]
            except DataError as error:
                yield record, error


def rate(look: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """(records a second of processor time, best of `runs`; the report)."""
    best, report = 0.0, None
    for _ in range(runs):
        start = time.process_time()
        report = look()
        best = max(best, report.records / (time.process_time() - start))
    return best, report


def compare(chat: Chat, folder: Path, rows: int, runs: int) -> None:
    """Both ways on a tenth of the rows, where they must say the same; the fast one on all of them as well."""
    for language in ("en", "zh"):
        some = write(folder / f"{language}-some.jsonl", language, rows=rows // 10)
        path = write(folder / f"{language}.jsonl", language, rows=rows)
        report = checking.check(some, chat=chat, near_records=0)
        encoder, checking.Encoder = checking.Encoder, OneByOne  # type: ignore[misc, assignment]
        plain, expected = rate(lambda path=some: checking.check(path, chat=chat, near_records=0), runs)
        checking.Encoder = encoder  # type: ignore[misc]
        assert replace(report, example=()) == replace(expected, example=()), "the figures differ"
        batched, report = rate(lambda path=path: checking.check(path, chat=chat, near_records=0), runs)
        near, _ = rate(lambda path=path: checking.check(path, chat=chat), runs)
        print(
            f"{language}: {report.lengths.mean:.0f} tokens a row; one at a time {plain:,.0f} rows/s, "
            f"in batches {batched:,.0f} rows/s ({batched / plain:.1f} x), "
            f"with near-duplicates {near:,.0f} rows/s ({near / plain:.1f} x)",
            flush=True,
        )


def peaks(model: str, folder: Path) -> None:
    """Peak memory of the command itself on files of two sizes."""
    for size in (100_000_000, 1_000_000_000):
        path = write(folder / "large.jsonl", "en", size_bytes=size)
        start = time.monotonic()
        code = (
            "import resource, sys; from danlu.cli import call; code = call(sys.argv[1:]); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
        )
        command = [sys.executable, "-c", code, "data", "check", str(path), "--model", model, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        records = json.loads(done.stdout)["records"]
        print(
            f"{path.stat().st_size / 1e6:,.0f} MB, {records:,} records: "
            f"{int(done.stderr.split()[-1]) / 1e3:,.0f} MB at the peak, "
            f"{records / (time.monotonic() - start):,.0f} rows/s by the clock"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--gigabyte", action="store_true")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"
    chat = checking_chat(options.model, None, accept_licence=True)
    assert chat is not None
    gc.freeze()
    print(f"{options.model}, {cpu_name()}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        compare(chat, Path(folder), options.rows, options.runs)
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")
        if options.gigabyte:
            peaks(options.model, Path(folder))


if __name__ == "__main__":
    main()
