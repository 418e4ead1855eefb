"""Danlu's side of benchmarks/recall_vectors.py: the same index for each case, which chooses by itself."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from vectoring import cases, quickest, request, told, vectors

from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, ArrayWriter
from danlu.recall.rows.bits import FULL, Bits
from danlu.recall.vectors.index import VectorIndex
from danlu.recall.vectors.search import nearest
from danlu.recall.vectors.tuning import tuned


def main() -> None:
    asked = request()
    values, k, disk = vectors(asked), asked["k"], Disk(Path(asked["folder"]))
    place, took, tuning = disk.root / "danlu.index", None, None
    if not place.exists():
        begun = time.perf_counter()
        made = VectorIndex.made(values, "inner_product")
        took = time.perf_counter() - begun
        made = tuned(made, asked["recall"])
        tuning = time.perf_counter() - begun - took
        with ArrayWriter(disk, place.name) as writer:
            made.write(writer)
        (disk.root / "danlu.sum").write_text(f"{writer.size} {writer.checksum}")
    size, checksum = map(int, (disk.root / "danlu.sum").read_text().split())
    index = VectorIndex.read(ArrayFile(disk, place.name, size, checksum), values, "inner_product")
    if asked["build_only"]:
        return
    found, single = {}, {}
    for name, rows, queries, truth in cases(asked):
        bits = Bits.whole(len(values), FULL) if rows is None else Bits.of(len(values), rows)

        def together(_: int, bits: Bits = bits, queries: np.ndarray = queries) -> np.ndarray:
            return nearest([index], [bits], queries, k).rows

        def one_by_one(_: int, bits: Bits = bits, queries: np.ndarray = queries) -> np.ndarray:
            return np.vstack([nearest([index], [bits], queries[at : at + 1], k).rows for at in range(len(queries))])

        found[name] = quickest([("", [0], together)], truth, asked)
        single[name] = quickest([("", [0], one_by_one)], truth, asked)
        print(name, found[name], single[name], nearest([index], [bits], queries, k).seen.mean(), file=sys.stderr)
    told("", {"index": took, "tuning": tuning}, found, single=single, bytes=size, tuned=str(index.tuned))


if __name__ == "__main__":
    main()
