"""hnswlib's side of benchmarks/recall_vectors.py: its filter is a function of Python that is asked for each row."""

import time
from importlib.metadata import version
from pathlib import Path

import hnswlib
import numpy as np
from vectoring import answered, request, told, vectors

EFFORTS = [10, 14, 20, 28, 40, 56, 80, 120, 200, 400]


def main():
    asked = request()
    values, k, place = vectors(asked), asked["k"], Path(asked["folder"]) / "hnswlib.index"
    index, took = hnswlib.Index(space="ip", dim=values.shape[1]), None
    if place.exists():
        index.load_index(str(place), max_elements=len(values))
    else:
        begun = time.perf_counter()
        index.init_index(max_elements=len(values), ef_construction=100, M=16)
        index.add_items(np.ascontiguousarray(values))
        took = time.perf_counter() - begun
        index.save_index(str(place))
    if asked["build_only"]:
        return

    def methods_for(_, rows, queries):
        passes = None if rows is None else set(rows.tolist())

        def work(effort):
            index.set_ef(effort)
            if passes is None:
                return index.knn_query(queries, k, num_threads=1)[0].astype(np.int64)
            return index.knn_query(queries, k, num_threads=1, filter=passes.__contains__)[0].astype(np.int64)

        return [("HNSW", EFFORTS, refusing(work, len(queries), k))]

    told(version("hnswlib"), took, answered(methods_for, asked))


def refusing(work, queries, k):
    """With no rows where it raises, as it does where it finds fewer than k."""

    def safe(effort):
        try:
            return work(effort)
        except RuntimeError:
            return np.full((queries, k), -1)

    return safe


main()
