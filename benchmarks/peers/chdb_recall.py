"""ClickHouse's side of benchmarks/recall.py: the engine in this process, a table sorted by what is asked for most."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

from chdb.session import Session
from recalling import best, peak_bytes, request, size_bytes

TABLE = """create table persons (id UInt64, sex LowCardinality(String), age UInt8, city LowCardinality(String),
    registered UInt16, tags Array(LowCardinality(String))) engine = MergeTree order by (sex, age)"""
TAGS = {
    "a tag and sex": "has(tags, 'tag 3') and sex = 'F'",
    "six conditions with tags": "(hasAny(tags, ['tag 1', 'tag 9']) or sex = 'F') and not has(tags, 'tag 4') "
    "and age between 20 and 60 and city in ('city 1', 'city 2', 'city 12') and registered >= 17000",
}


def main() -> None:
    asked = request()
    repeats, place = asked["repeats"], Path(asked["folder"])
    begun = time.perf_counter()
    base = Session(str(place))
    base.query("create database recall")
    base.query("use recall")
    base.query(TABLE)
    base.query(f"insert into persons select * from file('{asked['table']}', Parquet)")
    base.query("optimize table persons final")  # one part
    built, peak = time.perf_counter() - begun, peak_bytes()

    def count(condition: str) -> int:
        return int(base.query(f"select count() from persons where {condition}", "CSV").data())

    questions = {**asked["questions"], **TAGS}
    timed = {name: best(lambda text=text: count(text), repeats) for name, text in questions.items()}
    answer = {
        "version": version("chdb"), "build": built, "peak": peak, "size": size_bytes(place), "more": {},
        "counts": {name: found for name, (_, found) in timed.items()},
        "seconds": {name: seconds for name, (seconds, _) in timed.items()},
    }  # fmt: skip
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
