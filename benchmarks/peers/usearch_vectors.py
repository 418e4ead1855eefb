"""usearch's side of benchmarks/recall_vectors.py: without a filter in Python, more are fetched and then filtered."""

import time
from pathlib import Path

import numpy as np
import usearch
from usearch.index import Index
from vectoring import answered, request, told, vectors

FETCHED = (1, 2, 4, 10, 20, 50, 100, 200)


def main():
    asked = request()
    values, k, place = vectors(asked), asked["k"], Path(asked["folder"]) / "usearch.index"
    index, took = (
        Index(ndim=values.shape[1], metric="ip", dtype="i8" if asked.get("i8") else "f32", connectivity=16),
        None,
    )
    if place.exists():
        index.load(str(place))
    else:
        begun = time.perf_counter()
        index.add(np.arange(len(values)), np.ascontiguousarray(values))
        took = time.perf_counter() - begun
        index.save(str(place))
    if asked["build_only"]:
        return

    def methods_for(_, rows, queries):
        passes = np.ones(len(values), np.bool_)
        if rows is not None:
            passes[:] = False
            passes[rows] = True

        def work(effort):
            fetched, index.expansion_search = effort
            keys = index.search(queries, fetched, threads=1).keys.reshape(len(queries), -1).astype(np.int64)
            return [row[passes[row]][:k] for row in keys]

        if rows is None:
            yield "HNSW", [(k, effort) for effort in (10, 16, 24, 32, 48, 64, 96, 128, 256, 512)], work
        else:
            yield "HNSW", [(k * times, max(64, k * times)) for times in FETCHED], work

    told(usearch.__version__, took, answered(methods_for, asked))


main()
