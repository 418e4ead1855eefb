"""A table of real persons (UCI's adult census): clauses counted as SQLite counts them, and who earns more.

    make bench-adult ADULT=adult.csv       (seconds)

Every pair of values of different columns is a clause, and its contrary: Danlu and SQLite have to count alike. Then the
profile of those who earn more than 50,000 a year: the values with the highest TGI of at least a hundredth of them.
"""

from __future__ import annotations

import argparse
import csv
import sqlite3
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import guides

from danlu.recall import BuildOptions, Collection

COLUMNS = ("age", "education", "marital-status", "occupation", "sex", "hours-per-week", "income-per-year")
RICH = "\"income-per-year\" = '>50K'"
# Of each column its commonest values; of the set, values that so many of it have.
MOST_VALUES, LEAST_SHARE, SHOWN = 6, 0.01, 8
LABELS = {
    "en": ("of those who earn more than 50K a year", "share", "of all", "TGI"),
    "zh": ("年收入 5 万美元以上者", "占比", "总体占比", "TGI"),
}
UNDER = {
    "en": "{rows:,} persons; {clauses:,} clauses count as SQLite counts them.",
    "zh": "{rows:,} 人；{clauses:,} 个条件的计数与 SQLite 一致。",
}


def clauses(base: sqlite3.Connection) -> Iterator[str]:
    """Pairs of values, and what neither has."""
    values = {
        name: [
            row[0]
            for row in base.execute(f'select "{name}" from t group by 1 order by count(*) desc, 1 limit {MOST_VALUES}')
        ]
        for name in COLUMNS
    }
    for one, other in combinations(COLUMNS, 2):
        for a in values[one]:
            for b in values[other]:
                mine, theirs = (f'"{name}" = {quoted(value)}' for name, value in ((one, a), (other, b)))
                yield f"{mine} and {theirs}"
                yield f"not ({mine} or {theirs})"


def quoted(value: int | str) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, help="adult.csv, with a line of names")
    parser.add_argument("--write", action="store_true", help="put the table into the guide to recall")
    given = parser.parse_args()
    base = sqlite3.connect(":memory:")
    with given.file.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
        marks, kinds = ", ".join("?" * len(names)), ", ".join(f'"{name}"' for name in names)
        base.execute(f"create table t ({kinds})")
        whole = [[int(one) if one.lstrip("-").isdigit() else one for one in row] for row in rows]
        base.executemany(f"insert into t values ({marks})", whole)
    with tempfile.TemporaryDirectory() as name:
        people = Collection.build(Path(name) / "adult.recall", given.file, BuildOptions())
        texts = list(clauses(base))
        mine = [people.count(text) for text in texts]
        theirs = [base.execute(f"select count(*) from t where {text}").fetchone()[0] for text in texts]
        if mine != theirs:
            raise SystemExit(f"counts differ: {texts[next(at for at, one in enumerate(mine) if one != theirs[at])]}")
        shares = [
            (
                f"{one.name} = {share.value}",
                share.rows / one.known,
                share.of_all / one.known_of_all,
                one.tgi(share) or 0,
            )
            for one in people.profile(people.where(RICH))
            if one.name in COLUMNS and one.name != "income-per-year"
            for share in one.shares
            if share.rows >= LEAST_SHARE * one.known
        ]
    best = sorted(shares, key=lambda one: -one[3])[:SHOWN]

    def block(language: str) -> str:
        heads = LABELS[language]
        lines = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|"]
        lines += [f"| {name} | {share:.1%} | {base:.1%} | {tgi:.0f} |" for name, share, base, tgi in best]
        return "\n".join([*lines, "", UNDER[language].format(rows=len(rows), clauses=len(texts)), ""])

    print(block("en"))
    if given.write:
        guides.write(guides.RECALL, "adult", block)


if __name__ == "__main__":
    main()
