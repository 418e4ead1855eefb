"""A collection as it grows, and 64 who read while one writes.

    make bench-recall-growth WRITE=--write     (16 GB of disk; six minutes)
    .venv/bin/python benchmarks/recall_growth.py --sizes 1000000 10000000

The persons of recall.py. Of each size: seconds to build, milliseconds to open and for two questions (the best of five),
seconds to append 100,000 rows. On the smallest, 64 threads ask a rotating set of filters, once alone and once while
another process appends and compacts all the time; each opens the collection anew every hundred questions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import guides
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import cpu_name
from recall import QUESTIONS, ROOT, write

from danlu.recall import BuildOptions, Collection

PICTURE = ROOT / "docs" / "pictures" / "recall-growth.svg"
APPENDED, READERS, SECONDS = 100_000, 64, 20.0
ASKED = ("sex and age", "six conditions")
LABELS = {
    "en": {
        "rows": "rows", "build": "build, s", "open": "open, ms", "sex and age": "sex and age, ms",
        "six conditions": "six conditions, ms", "append": "append 100,000 rows, s",
        "readers": "64 readers", "questions": "questions a second", "p50": "p50, ms", "p99": "p99, ms",
        "most": "longest, ms", "states": "states committed", "alone": "alone", "writer": "while one writes",
    },
    "zh": {
        "rows": "行数", "build": "建库，秒", "open": "打开，毫秒", "sex and age": "性别和年龄，毫秒",
        "six conditions": "六个条件，毫秒", "append": "追加 100,000 行，秒",
        "readers": "64 个读者", "questions": "每秒查询数", "p50": "p50，毫秒", "p99": "p99，毫秒",
        "most": "最长，毫秒", "states": "提交的状态数", "alone": "无写者", "writer": "一个写者不断追加与压实",
    },
}  # fmt: skip
UNDER = {
    "en": "{cpu}, {cores} cores; written by `make bench-recall-growth WRITE=--write`.",
    "zh": "{cpu}，{cores} 核；由 `make bench-recall-growth WRITE=--write` 写入。",
}


@dataclass(frozen=True)
class Size:
    """Seconds of everything, for one number of rows."""

    rows: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Readers:
    """What 64 threads saw."""

    latencies: np.ndarray[tuple[int], np.dtype[np.float64]]
    seconds: float
    states: int

    def cells(self) -> list[str]:
        p50, p99 = (np.percentile(self.latencies, share) * 1000 for share in (50, 99))
        rate, most = len(self.latencies) / self.seconds, self.latencies.max() * 1000
        return [f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{most:.1f}", f"{self.states:,}"]


def best(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def grown(folder: Path, rows: int) -> tuple[Size, Path]:
    """Built, asked, appended to; the collection stays."""
    table, place = folder / f"persons-{rows}.parquet", folder / f"{rows}.recall"
    write(table, rows)
    begun = time.perf_counter()
    made = Collection.build(place, table, BuildOptions(id="id"))
    seconds = {"build": time.perf_counter() - begun, "open": best(lambda: Collection.open(place))}
    table.unlink()
    seconds |= {name: best(lambda name=name: made.count(QUESTIONS[name])) for name in ASKED}  # type: ignore[misc]
    more = folder / "more.parquet"
    further(more, rows, APPENDED)
    begun = time.perf_counter()
    made.append(more)
    return Size(rows, {**seconds, "append": time.perf_counter() - begun}), place


def further(path: Path, first: int, rows: int) -> None:
    """Persons whose ids nobody has."""
    write(path, rows)
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "id", pa.array(np.arange(first, first + rows))), path)


def append_for_ever(place: str, seconds: str) -> int:
    """The writer's process: prints how many states it has committed."""
    made, states, end = Collection.open(place), 0, time.perf_counter() + float(seconds)
    with tempfile.TemporaryDirectory() as folder:
        more = Path(folder) / "more.parquet"
        while time.perf_counter() < end:
            further(more, 10**9 + len(made) + states, 1000)
            made = made.append(more)
            states += 1
            if states % 10 == 0:
                made = made.compact()
                states += 1
    print(states)
    return 0


def readers(place: Path, has_writer: bool) -> Readers:
    filters = [f"age between {at % 60} and {at % 60 + at // 8} and city = 'city {at}'" for at in range(200)]
    found: list[list[float]] = [[] for _ in range(READERS)]
    end = time.perf_counter() + SECONDS

    def read(own: list[float], at: int) -> None:
        made, asked = Collection.open(place), at
        while time.perf_counter() < end:
            asked += 1
            begun = time.perf_counter()
            if asked % 100 == 0:
                made = Collection.open(place)
            made.count(filters[asked % len(filters)])
            own.append(time.perf_counter() - begun)

    command = [sys.executable, __file__, "--writer", str(place), str(SECONDS - 1)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if has_writer else None
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, found, range(READERS)))
    states = 0
    if writer is not None:
        said, _ = writer.communicate()
        if writer.returncode:
            raise SystemExit("the writer failed")
        states = int(said)
    return Readers(np.concatenate([np.array(own) for own in found]), SECONDS, states)


def drawn(sizes: list[Size]) -> str:
    """Seconds by rows, both as powers of ten."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
        for name in sizes[0].seconds:
            axes.loglog([one.rows for one in sizes], [one.seconds[name] for one in sizes], marker="o", label=name)
        axes.set_xlabel("rows")
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue()


def block(sizes: list[Size], both: Mapping[str, Readers], language: str) -> str:
    label = LABELS[language]
    names = list(sizes[0].seconds)
    lines = [f"![{label['rows']}](pictures/{PICTURE.name})", ""]
    lines += [f"| {label['rows']} | " + " | ".join(label[name] for name in names) + " |"]
    lines += ["|--:" * (len(names) + 1) + "|"]
    for one in sizes:
        cells = (one.seconds[name] * (1 if name in ("build", "append") else 1000) for name in names)
        lines.append(f"| {one.rows:,} | " + " | ".join(f"{cell:,.2f}" for cell in cells) + " |")
    heads = [label[name] for name in ("readers", "questions", "p50", "p99", "most", "states")]
    lines += ["", "| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    lines += [f"| {label[name]} | " + " | ".join(one.cells()) + " |" for name, one in both.items()]
    under = UNDER[language].format(cpu=cpu_name(), cores=len(os.sched_getaffinity(0)))
    return "\n".join([*lines, "", under, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10**6, 10**7, 10**8])
    parser.add_argument("--folder", type=Path, help="where the collections are put; temporary without it")
    parser.add_argument("--write", action="store_true", help="put tables and picture into the guides")
    parser.add_argument("--writer", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.writer:
        return append_for_ever(*given.writer)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        made = [grown(Path(name), rows) for rows in given.sizes]
        sizes, (_, place) = [size for size, _ in made], made[0]
        both = {who: readers(place, who == "writer") for who in ("alone", "writer")}
    print(block(sizes, both, "en"))
    if given.write:
        PICTURE.write_text(drawn(sizes))
        guides.write(guides.RECALL, "recall-growth", lambda language: block(sizes, both, language))
    return 0


if __name__ == "__main__":
    sys.exit(main())
