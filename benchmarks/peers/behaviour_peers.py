"""The rivals' sides of benchmarks/recall_behaviour.py: LibRecommender's swing, implicit's and similaripy's item-CF.

LibRecommender's Python imports TensorFlow, which its swing does not use: its Rust (recfarm) is called as it calls it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import scipy.sparse as sp
from recalling import peak_bytes, request


@dataclass
class Sparse:
    """What recfarm takes, as libreco.utils.sparse has it."""

    sparse_indices: list[int]
    sparse_indptr: list[int]
    sparse_data: list[float]


def listed(matrix: sp.csr_matrix) -> Sparse:
    return Sparse(matrix.indices.tolist(), matrix.indptr.tolist(), matrix.data.tolist())


def main() -> None:
    asked = request()
    with np.load(asked["pairs"]) as file:
        users, items, shape = file["users"], file["items"], tuple(file["shape"].tolist())
    matrix = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape)
    most, threads = asked["neighbours"], asked["threads"]
    if asked["side"] == "librecommender":
        import recfarm

        by_user = matrix.tocsr()
        consumed = {u: by_user.indices[by_user.indptr[u] : by_user.indptr[u + 1]].tolist() for u in range(shape[0])}
        given = (listed(by_user), listed(matrix.T.tocsr()))
        model = recfarm.Swing(most, 1.0, 100_000_000, *shape, *given, consumed, 0.0)
        begun = time.perf_counter()
        model.compute_swing(threads)
        name, kept = "recfarm", model.num_swing_elements()
    elif asked["side"] == "implicit":
        from implicit.nearest_neighbours import CosineRecommender

        model = CosineRecommender(K=most, num_threads=threads)
        begun = time.perf_counter()
        model.fit(matrix, show_progress=False)
        name, kept = "implicit", int(model.similarity.nnz)
    else:
        import similaripy

        by_item = matrix.T.tocsr()
        begun = time.perf_counter()
        found = similaripy.cosine(by_item, k=most, num_threads=threads, verbose=False, format_output="csr")
        name, kept = "similaripy", int(found.nnz)
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "peak": peak_bytes(), "kept": kept, "version": version(name)}))


if __name__ == "__main__":
    main()
