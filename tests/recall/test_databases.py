"""Database files as sources: a query of SQLite or DuckDB becomes rows, and what it cannot be is said."""

from __future__ import annotations

import sqlite3

import pytest

from danlu.errors import ConfigError, DataError
from danlu.recall import BuildOptions, Collection
from danlu.recall.databases import Database
from danlu.recall.sources import Source

ROWS = [(1, "Ann", 2.5, "tea,yoga", "2024-02-29"), (2, "北京", 3, None, None), (3, None, None, "", "2025-01-01")]


@pytest.fixture(autouse=True)
def disks_that_are_fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda number: None)


@pytest.fixture
def sqlite(tmp_path):
    path = tmp_path / "people.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("create table people (id integer, name text, score, tags text, day text)")
        base.executemany("insert into people values (?, ?, ?, ?, ?)", ROWS)
    base.close()
    return path


OPTIONS = BuildOptions(id="id", tags=("tags",), kinds={"day": "date"})


def test_the_only_table_is_taken(sqlite, tmp_path):
    made = Collection.build(tmp_path / "c", sqlite, OPTIONS)
    counts = {"true": 3, "score > 2.6": 1, "tags = 'tea'": 1, "day >= '2024-02-29'": 2, "name is null": 1}
    assert {text: made.count(text) for text in counts} == counts
    assert made.count("_source = 'people.sqlite'") == 3


def test_a_query_says_what_is_taken(sqlite, tmp_path):
    made = Collection.build(
        tmp_path / "c",
        Database(sqlite, "select id, upper(name) as shout from people where id < 3"),
        BuildOptions(id="id"),
    )
    assert made.table(made.everything(), ["id", "shout"]).to_pylist() == [
        {"id": 1, "shout": "ANN"},
        {"id": 2, "shout": "北京"},
    ]
    more = made.append(Source(Database(sqlite, "select 9 as number, 'x' as shout"), {"number": "id"}, "later"))
    assert more.table(more.where("_source = 'later'"), ["id"]).column(0).to_pylist() == [9]


def test_many_rows_come_in_batches(tmp_path):
    path = tmp_path / "n.db"
    with sqlite3.connect(path) as base:
        numbers = "with recursive m(i) as (select 0 union all select i + 1 from m limit 200000) select i from m"
        base.execute(f"create table n as {numbers}")
    base.close()
    assert [batch.num_rows for batch in Database(path).batches()] == [1 << 17, 200_000 - (1 << 17)]
    assert len(Collection.build(tmp_path / "c", path, BuildOptions(id="i"))) == 200_000


def test_nulls_first_and_nulls_alone_lose_nothing(tmp_path):
    path = tmp_path / "n.db"
    with sqlite3.connect(path) as base:
        base.execute("create table n (id integer, name text, half, blank text)")
        base.executemany("insert into n values (?, ?, ?, null)", [(1, None, 1), (2, "Steven", None), (3, "x", 0.5)])
    base.close()
    made = Collection.build(tmp_path / "c", path, BuildOptions(id="id"))
    assert made.table(made.everything(), ["name", "half", "blank"]).to_pylist() == [
        {"name": None, "half": 1.0, "blank": None},
        {"name": "Steven", "half": None, "blank": None},
        {"name": "x", "half": 0.5, "blank": None},
    ]


WRONG = {
    "syntax": ("selec * from people", DataError, 'near "selec"'),
    "a table": ("select * from peple", DataError, "no such table: peple"),
    "a change": ("delete from people", DataError, "readonly database"),
    "two": ("select 1; select 2", DataError, "one statement"),
    "no rows": ("select * from people where id > 9", DataError, "gives no rows"),
    "mixed": (
        "select id from people union all select name from people",
        DataError,
        r"type int and str(.|\n)*cast\(id as text\)",
    ),
    "bytes": ("select x'00ff' as b", DataError, "type bytes"),
    "columns": ("select id, id from people", DataError, "two columns are called 'id'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_query_can_be_is_said(sqlite, tmp_path, what):
    sql, kind, seen = WRONG[what]
    with pytest.raises(kind, match=seen):
        Collection.build(tmp_path / "c", Database(sqlite, sql), BuildOptions())
    assert not (tmp_path / "c").exists()


def test_values_that_change_their_type_later_are_said(tmp_path):
    path = tmp_path / "n.db"
    with sqlite3.connect(path) as base:
        base.execute("create table n (i)")
        base.executemany("insert into n values (?)", [*((at,) for at in range(1 << 17)), ("x",)])
    base.close()
    with pytest.raises(DataError, match=r"rows from 131073: the column i began with int64(.|\n)*cast\(i as text\)"):
        Collection.build(tmp_path / "c", path, BuildOptions())


def test_files_that_are_no_databases_are_said(sqlite, tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"not at all a database")
    with pytest.raises(DataError, match="is no database that is read here"):
        Collection.build(tmp_path / "c", path, BuildOptions())
    path.write_bytes(sqlite.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"malformed|not a database|disk image"):
        Collection.build(tmp_path / "c", path, BuildOptions())
    with sqlite3.connect(sqlite) as base:
        base.execute("create table other (id)")
    base.close()
    with pytest.raises(ConfigError, match=r"has 2 tables(.|\n)*other, people"):
        Collection.build(tmp_path / "c", sqlite, OPTIONS)


def test_from_the_command_line(call, sqlite, tmp_path):
    sql = ["--sql", "select * from people where id <> 2"]
    code, out, err = call("recall", "build", sqlite, "--out", tmp_path / "c", "--id", "id", *sql)
    assert (code, "2 rows" in out) == (0, True), err
    code, out, err = call("recall", "append", tmp_path / "c", sqlite, "--sql", "select * from people where id = 2")
    assert (code, "3 rows" in out) == (0, True), err
    (tmp_path / "rows.csv").write_text("id\n5\n")
    code, _, err = call("recall", "append", tmp_path / "c", tmp_path / "rows.csv", *sql)
    assert (code, "--sql has no effect on" in err) == (2, True)


def test_duckdb(tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed: its files are read by it")
    path = tmp_path / "people.duckdb"
    with duckdb.connect(str(path)) as base:
        base.execute("create table people (id bigint, name text, tags text[], day date, v float[2])")
        base.execute(
            "insert into people values (1, 'Ann', ['a', 'b'], '2024-02-29', [1, 2]), (2, null, null, null, [0, 1])"
        )
    made = Collection.build(tmp_path / "c", path, BuildOptions(id="id", vector=("v",)))
    assert [made.count(text) for text in ("tags = 'b'", "day = '2024-02-29'", "name is null")] == [1, 1, 1]
    assert made.table(made.everything(), ["v"]).column(0).to_pylist() == [[1, 2], [0, 1]]
    with pytest.raises(DataError, match="Parser Error"):
        Collection.build(tmp_path / "d", Database(path, "selec"), BuildOptions())
    with pytest.raises(DataError, match="read-only"):
        Collection.build(tmp_path / "d", Database(path, "delete from people"), BuildOptions())


def test_without_duckdb_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "x.duckdb"
    path.write_bytes(b"12345678DUCK....")
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"danlu\[duckdb\]"):
        Collection.build(tmp_path / "c", path, BuildOptions())
