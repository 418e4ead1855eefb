"""CRoaring's side of benchmarks/recall.py: a set of rows for each value in memory, by hand for each question.

It has no tables and no clauses. Of ages there is a set for each "so old or older", which makes a range two sets; of
days, of which such sets would be too many, one for each day.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyroaring import BitMap
from recalling import best, peak_bytes, request

Sets = dict[Any, BitMap]


def main() -> None:
    asked = request()
    begun = time.perf_counter()
    made = read(asked["table"])
    older: Sets = {}
    sofar = BitMap()
    for age in range(99, -1, -1):
        sofar = sofar | made["age"].get(age, BitMap())
        older[age] = sofar
    for sets in (*made.values(), older):
        for one in sets.values():
            one.run_optimize()
    built, peak = time.perf_counter() - begun, peak_bytes()
    forms = questions(made, older)
    timed = {name: best(work, asked["repeats"]) for name, work in forms.items()}
    answer = {
        "version": version("pyroaring"), "build": built, "peak": peak, "more": {},
        "counts": {name: found for name, (_, found) in timed.items()},
        "seconds": {name: seconds for name, (seconds, _) in timed.items()},
    }  # fmt: skip
    print(json.dumps(answer))


def read(table: str) -> dict[str, Sets]:
    """Column -> value -> its rows."""
    made: dict[str, Sets] = {name: {} for name in ("sex", "age", "city", "registered", "tags")}
    start = 0
    for batch in pq.ParquetFile(table).iter_batches(1 << 20):
        for name, sets in made.items():
            column = batch[name]
            values = column.flatten() if name == "tags" else column
            places = np.repeat(np.arange(len(batch)), column.value_lengths()) if name == "tags" else None
            coded = values.dictionary_encode()
            codes = coded.indices.to_numpy()
            order = np.argsort(codes, kind="stable")
            cuts = np.searchsorted(codes[order], np.arange(len(coded.dictionary) + 1))
            owners = (order if places is None else places[order]) + start
            for at, value in enumerate(coded.dictionary.to_pylist()):
                sets.setdefault(value, BitMap()).update(owners[cuts[at] : cuts[at + 1]].astype(np.uint32))
        start += len(batch)
    return made


def questions(made: dict[str, Sets], older: Sets) -> dict[str, Any]:
    """What each question of the others does here: as few sets as it takes, the smallest first."""
    sex, city, day, tag = made["sex"], made["city"], made["registered"], made["tags"]
    days = sorted(day)

    def since(first: int, last: int = days[-1]) -> BitMap:
        return BitMap.union(*(day[one] for one in days if first <= one <= last))

    def six() -> int:
        young = (sex["F"] | (older[18] - older[31])) - city["city 3"]
        recent = young & since(17500)
        return (recent - older[60]).union_cardinality(recent & (city["city 5"] | city["city 9"]))

    def six_with_tags() -> int:
        some = (city["city 1"] | city["city 2"] | city["city 12"]) & older[20]
        left = (some - older[61] - tag["tag 4"]) & (tag["tag 1"] | tag["tag 9"] | sex["F"])
        return left.intersection_cardinality(since(17000))

    return {
        "sex and age": lambda: sex["F"].intersection_cardinality(older[26]),
        "and city": lambda: (city["city 7"] & sex["F"]).intersection_cardinality(older[26]),
        "100 cities": lambda: len(BitMap.union(*(city[f"city {3 * at}"] for at in range(100)))),
        "a range of days": lambda: len(since(18000, 18400)),
        "six conditions": six,
        "a tag and sex": lambda: tag["tag 3"].intersection_cardinality(sex["F"]),
        "six conditions with tags": six_with_tags,
    }


if __name__ == "__main__":
    main()
