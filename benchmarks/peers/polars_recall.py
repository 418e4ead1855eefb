"""Polars' side of benchmarks/recall.py: a frame in memory, text as categories, small numbers in small types."""

from __future__ import annotations

import json
import time

import polars as pl
from recalling import best, peak_bytes, request


def main() -> None:
    asked = request()
    repeats = asked["repeats"]
    begun = time.perf_counter()
    persons = pl.read_parquet(asked["table"]).with_columns(
        pl.col("sex").cast(pl.Categorical),
        pl.col("city").cast(pl.Categorical),
        pl.col("age").cast(pl.UInt8),
        pl.col("registered").cast(pl.UInt16),
    )
    built, peak = time.perf_counter() - begun, peak_bytes()
    c = pl.col
    forms = {
        "sex and age": (c("sex") == "F") & (c("age") > 25),
        "and city": (c("sex") == "F") & (c("age") > 25) & (c("city") == "city 7"),
        "100 cities": c("city").is_in([f"city {3 * at}" for at in range(100)]),
        "a range of days": c("registered").is_between(18000, 18400),
        "six conditions": ((c("sex") == "F") | c("age").is_between(18, 30))
        & (c("city") != "city 3")
        & (c("registered") >= 17500)
        & ((c("age") < 60) | c("city").is_in(["city 5", "city 9"])),
        "a tag and sex": c("tags").list.contains("tag 3") & (c("sex") == "F"),
        "six conditions with tags": (
            c("tags").list.contains("tag 1") | c("tags").list.contains("tag 9") | (c("sex") == "F")
        )
        & ~c("tags").list.contains("tag 4")
        & c("age").is_between(20, 60)
        & c("city").is_in(["city 1", "city 2", "city 12"])
        & (c("registered") >= 17000),
    }

    def count(condition: pl.Expr) -> int:
        return int(persons.lazy().filter(condition).select(pl.len()).collect().item())

    timed = {name: best(lambda form=form: count(form), repeats) for name, form in forms.items()}
    answer = {
        "version": pl.__version__, "build": built, "peak": peak,
        "more": {},
        "counts": {name: found for name, (_, found) in timed.items()},
        "seconds": {name: seconds for name, (seconds, _) in timed.items()},
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
