"""DuckDB's side of benchmarks/recall.py: a native table, which is faster than Parquet."""

from __future__ import annotations

import json
import time
from pathlib import Path

import duckdb
from recalling import best, peak_bytes, request, size_bytes

TAGS = {
    "a tag and sex": "list_contains(tags, 'tag 3') and sex = 'F'",
    "six conditions with tags": "(list_has_any(tags, ['tag 1', 'tag 9']) or sex = 'F') and not list_contains(tags, "
    "'tag 4') and age between 20 and 60 and city in ('city 1', 'city 2', 'city 12') and registered >= 17000",
}


def main() -> None:
    asked = request()
    repeats, place = asked["repeats"], Path(asked["folder"]).with_suffix(".duckdb")
    begun = time.perf_counter()
    base = duckdb.connect(str(place))
    base.execute(f"create table persons as select * from '{asked['table']}'")
    base.execute("checkpoint")
    built, peak = time.perf_counter() - begun, peak_bytes()

    def count(condition: str) -> int:
        return int(base.execute(f"select count(*) from persons where {condition}").fetchone()[0])

    questions = {**asked["questions"], **TAGS}
    timed = {name: best(lambda text=text: count(text), repeats) for name, text in questions.items()}
    answer = {
        "version": duckdb.__version__, "build": built, "peak": peak, "size": size_bytes(place), "more": {},
        "counts": {name: found for name, (_, found) in timed.items()},
        "seconds": {name: seconds for name, (seconds, _) in timed.items()},
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
