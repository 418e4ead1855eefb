"""Danlu's side of benchmarks/recall_vectors.py: the same index for each case, which chooses by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from vectoring import answered, request, told, vectors

from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, ArrayWriter
from danlu.recall.rows.bits import FULL, Bits
from danlu.recall.vectors.index import Index
from danlu.recall.vectors.search import nearest
from danlu.recall.vectors.tuning import tuned

Methods = list[tuple[str, list[int], Callable[[int], np.ndarray]]]


def main() -> None:
    asked = request()
    values, k, disk = vectors(asked), asked["k"], Disk(Path(asked["folder"]))
    place, took, tuning = disk.root / "danlu.index", None, None
    if not place.exists():
        begun = time.perf_counter()
        made = Index.made(values, "inner_product")
        took = time.perf_counter() - begun
        made = replace(made, tuned=tuned(made.over(values), asked["recall"]))
        tuning = time.perf_counter() - begun - took
        with ArrayWriter(disk, place.name) as writer:
            made.write(writer)
        (disk.root / "danlu.sum").write_text(f"{writer.size} {writer.checksum}")
    size, checksum = map(int, (disk.root / "danlu.sum").read_text().split())
    index = Index.read(ArrayFile(disk, place.name, size, checksum), len(values)).over(values)
    if asked["build_only"]:
        return

    def together(_: int, rows: np.ndarray | None, queries: np.ndarray) -> Methods:
        bits = Bits.whole(len(values), FULL) if rows is None else Bits.of(len(values), rows)
        return [("together", [0], lambda _: nearest([index], [bits], queries, k).rows)]

    def one_by_one(_: int, rows: np.ndarray | None, queries: np.ndarray) -> Methods:
        bits = Bits.whole(len(values), FULL) if rows is None else Bits.of(len(values), rows)
        each = [queries[at : at + 1] for at in range(len(queries))]
        return [("one by one", [0], lambda _: np.vstack([nearest([index], [bits], one, k).rows for one in each]))]

    found, single = (answered(how, asked) for how in (together, one_by_one))
    told("", {"index": took, "tuning": tuning}, found, single=single, bytes=size, tuned=str(index.tuned))


if __name__ == "__main__":
    main()
