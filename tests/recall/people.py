"""A small table of persons, with all that is awkward in it, and the same in SQLite, whose answers are the measure."""

from __future__ import annotations

import random
import sqlite3
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from danlu.recall import BuildOptions

CITIES = ["Rome", "北京", "上海", "O'Fallon", 'say "hi"', "", "a%b", "São Paulo", "null"]
TAGS = ["yoga", "travel", "tea", "茶道"]
SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()), ("sex", pa.string()), ("age", pa.int32()), ("city", pa.string()),
        ("score", pa.float64()), ("is_member", pa.bool_()), ("registered", pa.date32()),
        ("seen", pa.timestamp("us")), ("big", pa.int64()), ("interests", pa.list_(pa.string())), ("bio", pa.string()),
    ]
)  # fmt: skip
OPTIONS = BuildOptions(id="user_id", text=("bio",))


def people(count: int, first_id: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed + first_id)

    def sometimes(value: Any) -> Any:
        return None if draw.random() < 0.1 else value

    return [
        {
            "user_id": first_id + at,
            "sex": sometimes(draw.choice("FM")),
            "age": sometimes(draw.randint(0, 99)),
            "city": sometimes(draw.choice(CITIES)),
            "score": sometimes(draw.choice([float("nan"), float("inf"), -0.0, 0.5, round(draw.gauss(0, 1), 2)])),
            "is_member": sometimes(draw.random() < 0.5),
            "registered": sometimes(date(2020, 1, 1) + timedelta(days=draw.randint(0, 2000))),
            "seen": sometimes(datetime(2024, 2, 29) + timedelta(seconds=draw.randint(0, 10**7))),
            "big": sometimes(draw.choice([-(2**63), -1, 0, 2**62, 2**63 - 1])),
            "interests": sometimes(draw.sample(TAGS, draw.randint(0, 3))),
            "bio": sometimes(draw.choice(["likes tea", "喜欢徒步的老师", ""])),
        }
        for at in range(count)
    ]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def sqlite(rows: list[dict[str, Any]]) -> sqlite3.Connection:
    """The table `people`; tags are a text of `|name|`, dates ISO, NaN null."""
    base = sqlite3.connect(":memory:")
    base.execute("pragma case_sensitive_like = on")
    base.execute(
        "create table people (user_id integer, sex text, age integer, city text, score real, is_member integer, "
        "registered text, seen text, big integer, interests text, bio text)"
    )
    base.executemany(f"insert into people values ({', '.join('?' * len(SCHEMA))})", [_plain(row) for row in rows])
    return base


def _plain(row: dict[str, Any]) -> list[Any]:
    made = dict(row)
    if made["interests"] is not None:
        made["interests"] = "".join(f"|{tag}|" for tag in made["interests"])
    for name, form in (("registered", "%Y-%m-%d"), ("seen", "%Y-%m-%d %H:%M:%S")):
        made[name] = made[name] and made[name].strftime(form)
    return list(made.values())


def write_files(folder: Path) -> Path:
    """persons.jsonl, a hundred of them, for the command line and the documents."""
    import json

    path = folder / "people.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in people(100):
            kept = {k: v for k, v in row.items() if k not in ("score", "seen", "big", "registered")}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    return path
