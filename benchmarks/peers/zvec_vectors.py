"""zvec's side of benchmarks/recall_vectors.py: each case is a column with an index, asked for by a condition."""

import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zvec
from vectoring import answered, cases, request, told, vectors

BATCH = 1000
EFFORTS = [10, 20, 40, 80, 160, 320, 640]


def built(place, asked, values):
    every = [(at, rows) for at, (_, rows, _, _) in enumerate(cases(asked))]
    passes = {f"case{at}": np.isin(np.arange(len(values)), rows) for at, rows in every if rows is not None}
    schema = zvec.CollectionSchema(
        name="benchmark",
        fields=[zvec.FieldSchema(name, zvec.DataType.INT32, index_param=zvec.InvertIndexParam()) for name in passes],
        vectors=zvec.VectorSchema(
            "vector", zvec.DataType.VECTOR_FP32, dimension=values.shape[1],
            index_param=zvec.HnswIndexParam(metric_type=zvec.MetricType.IP, m=16, ef_construction=100),
        ),
    )  # fmt: skip
    begun = time.perf_counter()
    made = zvec.create_and_open(path=str(place), schema=schema)
    for start in range(0, len(values), BATCH):
        made.insert(
            [
                zvec.Doc(
                    id=str(row),
                    vectors={"vector": values[row].tolist()},
                    fields={name: int(flags[row]) for name, flags in passes.items()},
                )
                for row in range(start, min(start + BATCH, len(values)))
            ]
        )
    made.optimize()
    return made, time.perf_counter() - begun


def main():
    asked = request()
    values, k, place = vectors(asked), asked["k"], Path(asked["folder"]) / "zvec"
    index, took = (zvec.open(str(place)), None) if place.exists() else built(place, asked, values)
    if asked["build_only"]:
        return

    def methods_for(at, rows, queries):
        condition = {} if rows is None else {"filter": f"case{at} = 1"}

        def one(query, effort):
            asking = zvec.Query(field_name="vector", vector=query, param=zvec.HnswQueryParam(ef=effort))
            return [int(doc.id) for doc in index.query(asking, topk=k, **condition)]

        return [("HNSW", EFFORTS, lambda effort: [one(query, effort) for query in queries.tolist()])]

    told(version("zvec"), took, answered(methods_for, asked))


main()
