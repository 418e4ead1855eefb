"""Rows that qualify out of 10^6, 10^7 or 10^8: build, open, where-clauses; beside four others in the same run.

    make bench-recall                             (10^6 rows; a minute)
    make bench-recall ROWS=100000000 WRITE=--write  (20 GB of disk, 16 GiB of memory for Polars; twenty minutes)
    .venv/bin/python benchmarks/recall.py --rows 1000000 --peers duckdb polars --plain

The table is persons: id, sex, age (0 to 99), city (340 values, some common), the day of registration (3,650) and 20
tags that 30 % down to 0.1 % of the rows have. Each side reads the same Parquet file into the form that it is fastest in
(a collection, a native table, a frame or bitmaps in memory), in a process of its own, and answers the same questions
with the same counts, or the run fails. Times are the best of so many, in milliseconds; "from disk" is the first answer
after the files were dropped from memory. --plain adds Danlu without its compiled functions.
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
BATCH_ROWS = 1 << 20
CITIES, DAYS, TAGS = 340, 3650, 20
# Name -> condition. Tags, which each side asks for in words of its own, are in the sides' files.
QUESTIONS = {
    "sex and age": "sex = 'F' and age > 25",
    "and city": "sex = 'F' and age > 25 and city = 'city 7'",
    "100 cities": f"city in ({', '.join(repr(f'city {3 * at}') for at in range(100))})",
    "a range of days": "registered between 18000 and 18400",
    "six conditions": "(sex = 'F' or age between 18 and 30) and not city = 'city 3' and registered >= 17500 "
    "and (age < 60 or city in ('city 5', 'city 9'))",
}
SIDES = {
    "danlu": "Danlu", "plain": "Danlu, no compiler", "duckdb": "DuckDB", "polars": "Polars",
    "chdb": "ClickHouse (chdb)", "croaring": "CRoaring (pyroaring)",
}  # fmt: skip


def write(path: Path, rows: int) -> None:
    """The table, drawn from one seed."""
    rng = np.random.default_rng(0)
    chances = np.geomspace(0.3, 0.001, TAGS)
    names = np.array([f"tag {at}" for at in range(TAGS)])
    writer = None
    for start in range(0, rows, BATCH_ROWS):
        count = min(BATCH_ROWS, rows - start)
        has = rng.random((count, TAGS), np.float32) < chances
        owners, tags = np.nonzero(has)
        places = np.searchsorted(owners, np.arange(count + 1)).astype(np.int32)
        table = pa.table(
            {
                "id": np.arange(start, start + count),
                "sex": pa.array(np.array(["F", "M"])[rng.integers(0, 2, count)]),
                "age": rng.integers(0, 100, count, np.int32),
                "city": pa.array(_cities(rng, count)),
                "registered": rng.integers(16_000, 16_000 + DAYS, count, np.int32),
                "tags": pa.ListArray.from_arrays(places, pa.array(names[tags])),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _cities(rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    """Some are common: chances fall with the place, as those of towns do (Zipf)."""
    chances = 1 / np.arange(1, CITIES + 1)
    places = rng.choice(CITIES, count, p=chances / chances.sum())
    return np.array([f"city {at}" for at in range(CITIES)])[places]


def measured(side: str, table: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """What a side's process prints. Raises if it fails."""
    peer = ROOT / ".peers" / "recall" / "bin" / "python"
    python = sys.executable if side in ("danlu", "plain") else os.environ.get("RECALL_PEERS", str(peer))
    script = ROOT / "benchmarks" / "peers" / f"{'danlu' if side == 'plain' else side}_recall.py"
    environment = {**os.environ, **({"DANLU_NATIVE": "0"} if side == "plain" else {})}
    request = {"table": str(table), "folder": str(folder / side), "questions": QUESTIONS, "repeats": repeats}
    done = subprocess.run([python, script], input=json.dumps(request), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


LABELS = {
    "en": {
        "rows": "rows", "build": "build, s", "open": "open, ms", "peak": "memory of the build at most, GiB",
        "size": "on the disk, GB",
    },
    "zh": {
        "rows": "行", "build": "建库，秒", "open": "打开，毫秒", "peak": "建库峰值内存，GiB", "size": "磁盘占用，GB",
        "sex and age": "性别和年龄", "and city": "再加城市", "100 cities": "100 个城市", "a range of days": "一段日期",
        "six conditions": "六个条件", "sex and age, as a row set": "性别和年龄，得到行集合",
        "200 filters in turn, each": "轮换 200 个条件，每个", "a tag and sex": "标签和性别",
        "six conditions with tags": "带标签的六个条件", "all row numbers of it": "其全部行号",
        "its first 1,000 rows, all columns": "前 1,000 行及全部列", "its profile": "其画像",
        "1,000 ids to rows": "1,000 个 id 查行号", "all its ids to Parquet": "其全部 id 写成 Parquet",
        "all its ids to Roaring": "其全部 id 写成 Roaring 位图",
        "sex and age, from disk": "性别和年龄，从磁盘", "200 filters from disk, each": "轮换 200 个条件，从磁盘，每个",
    },
}  # fmt: skip
UNDER = {
    "en": "{cpu}, {cores} cores; milliseconds, best of {repeats}, warm but where it says otherwise; the same counts on "
    "all sides; written by `make bench-recall ROWS={rows} WRITE=--write`.",
    "zh": "{cpu}，{cores} 核；单位毫秒，{repeats} 次取最快，除注明外均为热查询；各方计数一致；由\n"
    "`make bench-recall ROWS={rows} WRITE=--write` 写入。",
}


def check(found: dict[str, dict[str, Any]]) -> None:
    """Raises SystemExit where counts differ: then nothing is worth comparing."""
    (name, first), *others = found.items()
    for side, answer in others:
        if answer["counts"] != first["counts"]:
            raise SystemExit(f"{side} counts {answer['counts']}, {name} {first['counts']}")


def lines(found: dict[str, dict[str, Any]], rows: int, label: dict[str, str]) -> Iterator[str]:
    """A table in Markdown."""
    heads = " | ".join(f"{SIDES[side]} {answer['version']}".strip() for side, answer in found.items())
    yield f"| {rows:,} {label['rows']} | {heads} |"
    yield "|---" + "|--:" * len(found) + "|"
    for name, scale in (("build", 1), ("peak", 2**-30), ("size", 1e-9), ("open", 1000)):
        yield f"| {label[name]} | " + " | ".join(_figure(one.get(name), scale) for one in found.values()) + " |"
    counts = {key: count for one in found.values() for key, count in one["counts"].items()}
    for question, count in counts.items():
        cells = [_figure(one["seconds"].get(question), 1000) for one in found.values()]
        yield f"| {label.get(question, question)}: {count:,} | " + " | ".join(cells) + " |"
    for name in dict.fromkeys(key for one in found.values() for key in one["more"]):
        cells = [_figure(one["more"].get(name), 1000) for one in found.values()]
        yield f"| {label.get(name, name)} | " + " | ".join(cells) + " |"


def _figure(value: float | None, scale: float) -> str:
    if value is None:
        return "–"
    return f"{value * scale:,.2f}" if value * scale >= 0.1 else f"{value * scale:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["duckdb", "polars", "chdb", "croaring"])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the table and the collections are put; temporary without it")
    parser.add_argument("--write", action="store_true", help="put the table into the guide to recall")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write(folder / "persons.parquet", given.rows)
        sides = ["danlu", *(["plain"] if given.plain else []), *given.peers]
        found = {side: measured(side, folder / "persons.parquet", folder, given.repeats) for side in sides}
    check(found)

    def block(language: str) -> str:
        cores = len(os.sched_getaffinity(0))
        under = UNDER[language].format(cpu=cpu_name(), cores=cores, repeats=given.repeats, rows=given.rows)
        return "\n".join([*lines(found, given.rows, LABELS[language]), "", under, ""])

    print(block("en"))
    if given.write:
        guides.write(guides.RECALL, f"recall-{given.rows}", block)


if __name__ == "__main__":
    main()
