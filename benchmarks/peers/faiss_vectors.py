"""faiss's side of benchmarks/recall_vectors.py: HNSW and inverted lists under a bitmap of rows, and every row of it."""

import time
from pathlib import Path

import faiss
import numpy as np
from vectoring import answered, request, told, vectors

PRODUCT = faiss.METRIC_INNER_PRODUCT
HNSW_EFFORTS = [10, 14, 20, 28, 40, 56, 80, 120, 200, 400, 800]
IVF_EFFORTS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024]
# Rows up to which each of them is worth a look.
FEW = 20_000


def made(name, place, values):
    """An index, from its file if an earlier run has left one; and the seconds that it took."""
    if place.exists():
        return faiss.read_index(str(place)), None
    begun = time.perf_counter()
    if name == "hnsw":
        index = faiss.IndexHNSWFlat(values.shape[1], 32, PRODUCT)
        index.hnsw.efConstruction = 100
    else:
        index = faiss.index_factory(values.shape[1], f"IVF{max(16, round(4 * len(values) ** 0.5))},Flat", PRODUCT)
        index.train(values[:: max(1, len(values) // (40 * index.nlist))])
    index.add(values)
    took = time.perf_counter() - begun
    faiss.write_index(index, str(place))
    return index, took


def main():
    asked = request()
    values, k = np.ascontiguousarray(vectors(asked)), asked["k"]
    folder = Path(asked["folder"])
    indexes = {name: made(name, folder / f"faiss-{name}.index", values) for name in ("hnsw", "ivf")}
    flat = faiss.IndexFlat(values.shape[1], PRODUCT)
    flat.add(values)
    if asked["build_only"]:
        return
    hnsw, ivf = (indexes[name][0] for name in ("hnsw", "ivf"))

    def methods_for(_, rows, queries):
        selector = None
        if rows is not None:
            bits = np.zeros(len(values), np.uint8)
            bits[rows] = 1
            selector = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))

        def by_hnsw(effort):
            how = faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
            return hnsw.search(queries, k, params=how)[1]

        def by_ivf(effort):
            return ivf.search(queries, k, params=faiss.SearchParametersIVF(sel=selector, nprobe=effort))[1]

        def by_row(_):
            return flat.search(queries, k, params=faiss.SearchParameters(sel=selector))[1]

        yield "HNSW", HNSW_EFFORTS, by_hnsw
        yield "IVF", [one for one in IVF_EFFORTS if one < ivf.nlist] + [ivf.nlist], by_ivf
        if rows is not None and len(rows) <= FEW:
            yield "flat", [0], by_row

    told(faiss.__version__, {name: took for name, (_, took) in indexes.items()}, answered(methods_for, asked))


main()
