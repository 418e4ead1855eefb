"""Danlu's side of benchmarks/recall.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from recalling import best, peak_bytes, request, size_bytes

from danlu.recall import BuildOptions, Collection

# More filters than fit into a core's caches, asked in turn: what a service sees.
ROTATING = 200


def main() -> None:
    asked = request()
    repeats, place = asked["repeats"], Path(asked["folder"])
    begun = time.perf_counter()
    Collection.build(place, asked["table"], BuildOptions(id="id"))
    built, peak = time.perf_counter() - begun, peak_bytes()
    opened, made = best(lambda: Collection.open(place), repeats)
    timed = {name: best(lambda text=text: made.count(text), repeats) for name, text in asked["questions"].items()}
    first = next(iter(asked["questions"].values()))
    rows = made.where(first)
    every = [f"age between {at % 60} and {at % 60 + at // 8} and city = 'city {at}'" for at in range(ROTATING)]
    more = {
        "sex and age, as a row set": best(lambda: made.where(first), repeats)[0],
        "200 filters in turn, each": best(lambda: [made.count(text) for text in every], repeats)[0] / ROTATING,
        "a tag and sex": best(lambda: made.count("has_any(tags, 'tag 3') and sex = 'F'"), repeats)[0],
        "all row numbers of it": best(lambda: rows.rows(), repeats)[0],
        "its first 1,000 rows, all columns": best(lambda: made.table(rows, limit=1000), repeats)[0],
        "its profile": best(lambda: made.profile(rows), repeats)[0],
        "1,000 ids to rows": best(lambda: made.find(np.arange(1000)), repeats)[0],
    }
    answer = {
        "version": "", "build": built, "peak": peak, "open": opened, "size": size_bytes(place), "more": more,
        "counts": {name: count for name, (_, count) in timed.items()},
        "seconds": {name: seconds for name, (seconds, _) in timed.items()},
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
