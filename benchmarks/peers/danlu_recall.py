"""Danlu's side of benchmarks/recall.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from recalling import best, forget, once, peak_bytes, request, size_bytes

from danlu.recall import BuildOptions, Collection

# More filters than fit into a core's caches, asked in turn: what a service sees.
ROTATING = 200
# recall.py has the other questions; these are asked in words of each side's own.
TAGS = {
    "a tag and sex": "has_any(tags, 'tag 3') and sex = 'F'",
    "six conditions with tags": "(has_any(tags, 'tag 1', 'tag 9') or sex = 'F') and not has_any(tags, 'tag 4') "
    "and age between 20 and 60 and city in ('city 1', 'city 2', 'city 12') and registered >= 17000",
}


def main() -> None:
    asked = request()
    place = Path(asked["folder"])
    begun = time.perf_counter()
    Collection.build(place, asked["table"], BuildOptions(id="id"))
    built, peak = time.perf_counter() - begun, peak_bytes()
    every = [f"age between {at % 60} and {at % 60 + at // 8} and city = 'city {at}'" for at in range(ROTATING)]
    answer = warm(place, {**asked["questions"], **TAGS}, every, asked["repeats"])
    forget(place)
    made = Collection.open(place)
    answer["more"]["sex and age, from disk"] = once(lambda: made.count(next(iter(asked["questions"].values()))))
    answer["more"]["200 filters from disk, each"] = once(lambda: [made.count(text) for text in every]) / ROTATING
    print(json.dumps({"version": "", "build": built, "peak": peak, "size": size_bytes(place), **answer}))


def warm(place: Path, questions: dict[str, str], every: list[str], repeats: int) -> dict[str, Any]:
    """The best times of everything that is asked."""
    opened, made = best(lambda: Collection.open(place), repeats)
    timed = {name: best(lambda text=text: made.count(text), repeats) for name, text in questions.items()}
    first = next(iter(questions.values()))
    rows = made.where(first)
    more = {
        "sex and age, as a row set": best(lambda: made.where(first), repeats)[0],
        "200 filters in turn, each": best(lambda: [made.count(text) for text in every], repeats)[0] / len(every),
        "all row numbers of it": best(lambda: rows.rows(), repeats)[0],
        "its first 1,000 rows, all columns": best(lambda: made.table(rows, limit=1000), repeats)[0],
        "its profile": best(lambda: made.profile(rows), repeats)[0],
        "1,000 ids to rows": best(lambda: made.find(np.arange(1000)), repeats)[0],
    }
    return {
        "open": opened, "more": more,
        "counts": {name: count for name, (_, count) in timed.items()},
        "seconds": {name: seconds for name, (seconds, _) in timed.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
