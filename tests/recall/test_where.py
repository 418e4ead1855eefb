"""Where-clauses: the rows that SQLite finds, and errors that say where and what."""

from __future__ import annotations

import random
import re

import pyarrow as pa
import pytest
from clauses import drawn_clause
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from people import OPTIONS, people, sqlite, table

from danlu.errors import ConfigError
from danlu.recall import BuildOptions, Collection
from danlu.recall.where import EVERYTHING, NOTHING, parse

ROWS = people(700)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The collection in three segments, one with deleted rows, and SQLite."""
    path = tmp_path_factory.mktemp("where") / "people.recall"
    made = Collection.build(path, table(ROWS[:300]), OPTIONS)
    made = made.append(table(ROWS[300:301])).append(table(ROWS[301:]))
    made = made.delete(list(range(0, 700, 50)))
    return made, sqlite([row for row in ROWS if row["user_id"] % 50])


@pytest.mark.parametrize("seed", range(8))
def test_the_rows_are_those_that_sqlite_finds(asked, seed):
    collection, base = asked
    draw = random.Random(seed)
    for depth in (0, 0, 0, 0, 0, 0, 1, 1, 2, 3) * 6:
        ours, theirs = drawn_clause(draw, depth)
        expected = [row for (row,) in base.execute(f"select user_id from people where {theirs} order by user_id")]
        found = collection.where(ours)
        assert collection.ids(found).to_pylist() == expected, ours
        assert collection.count(ours) == len(expected), ours


def test_two_spellings_of_a_filter_give_one_answer(asked):
    collection, _ = asked
    for one, other in [
        ("age <= 3", "age in (0, 1, 2, 3)"),
        ("age between 10 and 20", "not (age < 10 or age > 20)"),
        ("sex = 'F' and age > 25", "age >= 26 and not sex <> 'F'"),
        ("city like 'Ro%'", "city = 'Rome'"),
        ("AGE > 25", '"age" > 25'),
        ("age > 25.5", "age >= 26"),
        ("interests = 'yoga'", "has_any(interests, 'yoga')"),
        ("registered >= DATE '2021-05-05'", "registered > '2021-05-04'"),
        ("seen >= '2024-04-01'", "seen >= '2024-04-01T08:00:00+08:00'"),
        ("city ilike 'ROM%'", "city = 'Rome'"),
    ]:
        assert collection.where(one) == collection.where(other), one


ERRORS = {
    "": "is empty",
    "   ": "is empty",
    "aeg > 25": "character 1: there is no column 'aeg'",
    "sex = 'F' and ages > 25": "character 15: there is no column 'ages'",
    "sex = F": "text stands in single quotes: 'F'",
    'sex = "F"': "text stands in single quotes: 'F'",
    "age = '25'": "age is of kind integer; '25' is text",
    "age > true": "true is a truth value",
    "city = 5": "city is of kind word; 5 is a number",
    "is_member = 1": "is_member is of kind boolean; 1 is a number",
    "registered > '2020'": "'2020' is no date",
    "registered > '2020-02-30'": "'2020-02-30' is no date",
    "registered > 5": "5 is a number",
    "seen > 'yesterday'": "'yesterday' is no time",
    "age = null": "write age is null",
    "age in (1, null)": "write age is null",
    "age in ()": "not understood",
    "age in (select 1)": "not understood",
    "age in 5": "not understood",
    "age + 1 > 3": "is no column",
    "age > score": "is no value",
    "age = 1 = 2": "is no column",
    "interests > 'a'": "interests is of kind tags, which has no order",
    "is_member > false": "of kind boolean, which has no order",
    "bio = 'x'": "bio is text, which is not filtered",
    "bio like 'x%'": "bio is of kind text",
    "age like 'x%'": "age is of kind integer",
    "has_any(age, 1)": "has_any asks for tags; age is of kind integer",
    "has_some(interests, 'a')": "did you mean 'has_",
    "has_any()": "not understood",
    "has_any(interests)": "one tag at least",
    "exists(select 1)": "not understood",
    "people.age > 3": "has a point in it",
    "age > 25 and": "line 1, character",
    "(age > 25": "Expecting )",
    "age > 25; drop table people": "Unexpected token",
    ";age > 25": "a ; parts it in two",
    "city = 'it": "where-clause",
    "age > 1 order by age": "Unexpected token",
    "age is distinct from 3": "not understood",
    "city like 'a' escape '!'": "not understood",
    "city like age": "like 'x%'",
    "age between symmetric 1 and 2": "not understood",
    "audience('young')": "there is no audience 'young'",
    "audience(young)": "allowed: audience('name')",
    "audience()": "allowed: audience('name')",
    "__import__('os').system('true')": "not understood",
    "age > 1e999": "is no value",
    "audience(distinct 'x')": "allowed: audience('name')",
    "has_any(interests, 'a' order by 1)": "is no value",
}


@pytest.mark.parametrize("text", ERRORS)
def test_what_is_wrong_is_said_with_its_place(asked, text):
    with pytest.raises(ConfigError, match=re.escape(ERRORS[text])):
        asked[0].where(text)


def test_an_unknown_column_names_the_nearest(asked):
    with pytest.raises(ConfigError, match="did you mean 'registered'"):
        asked[0].where("registred > '2020-01-01'")


NAMES = ["PartyAbbrev", "Vorgangs-NR", "a.b", "with blank", "age", "Age", "order", "select", 'q"uote', "年 龄", "it's"]


def test_columns_of_any_name_are_asked(tmp_path):
    made = Collection.build(tmp_path / "c", pa.table({name: [at, -1] for at, name in enumerate(NAMES)}))
    for at, name in enumerate(NAMES):
        quoted_name = '"' + name.replace('"', '""') + '"'
        assert made.count(f"{quoted_name} = {at}") == 1, name
    for plain, place in (("PartyAbbrev", 0), ("partyabbrev", 0), ("age", 4), ("Age", 5), ("order", 6)):
        assert made.count(f"{plain} = {place}") == 1
    for clause, seen in {
        "AGE = 4": "there is no column 'AGE', but age and Age",
        "Vorgangs-NR = 1": "stands in double quotes",
        "a.b = 2": 'write "a.b" in double quotes',
        "select = 7": "in double ones",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(seen)):
            made.count(clause)


@pytest.mark.parametrize("bytes_per_row", [0.0, 1.0, 20.0, 100.0])
def test_null_stays_out_where_every_value_passes_or_none_does(tmp_path, bytes_per_row):
    """Shortcuts for what all values pass are where null slips in."""
    given = {"n": [1, None, 2], "w": ["a", None, "b"], "b": [True, None, False], "none": pa.nulls(3, pa.int64())}
    made = Collection.build(tmp_path / "c", pa.table(given), BuildOptions(bytes_per_row=bytes_per_row))
    for clause, count in {
        "n <> 99": 2, "not (n = 99)": 2, "n <> 1": 1, "not n in (1, 2)": 0, "n != 0 or n < 5": 2, "n > -5": 2,
        "n < -5": 0, "w <> 'x'": 2, "not w like '%'": 0, "w like '%'": 2, "not b": 1, "b or not b": 2,
        "not (b and n = 2)": 2,
        "none > 3": 0, "not none > 3": 0, "none is null": 3, "none is not null": 0, "n is null or n is not null": 3,
    }.items():  # fmt: skip
        assert made.count(clause) == len(made.where(clause)) == count, clause


def test_clauses_that_are_too_much_are_refused(asked):
    collection, _ = asked
    deep = "not (" * 3000 + "age > 1" + ")" * 3000
    for text in (deep, "(" * 5000 + "age > 1" + ")" * 5000):
        with pytest.raises(ConfigError, match="nested too deeply"):
            collection.where(text)
    with pytest.raises(ConfigError, match="characters"):
        collection.where(f"age in ({','.join(['25'] * 200_000)})")
    nested = "age = 1"
    for at in range(20):
        nested = f"(sex = 'F' {'and' if at % 2 else 'or'} (age < {at} {'or' if at % 2 else 'and'} {nested}))"
    assert 0 < collection.count(nested) < collection.count("sex = 'F' or age < 20")


def test_long_chains_are_not_deep(asked):
    collection, _ = asked
    assert collection.count(" or ".join(["age = 25"] * 2000)) == collection.count("age = 25")
    assert collection.count(" and ".join(["age > 25"] * 2000)) == collection.count("age > 25")
    assert collection.count(f"age in ({','.join(map(str, range(5000)))})") == collection.count("age >= 0")


def test_a_plan_is_made_once(asked, monkeypatch):
    collection, _ = asked
    expected = collection.count("age > 31 and sex = 'M'")
    monkeypatch.setattr("danlu.recall.collection.parse", None)
    assert collection.count("age > 31 and sex = 'M'") == len(collection.where("age > 31 and sex = 'M'")) == expected


ALPHABET = """
age city sex interests is_member bio nope and or not in is null like between = <> < >= ( ) , 25 -1 0.5 true
' " ; -- /* */ select from has_any has_all audience case when end cast as date :: [ ] { } \\ % x'41' 1e9 0x1F interval
exists || @ $1 ? :a count(*) over 'F' '北%' 🙂
"""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.lists(st.sampled_from([*ALPHABET.split(), "\x00"]), max_size=12).map(" ".join), st.text(max_size=30))
)
def test_nothing_that_is_written_breaks_the_reader(asked, text):
    """Rows, or an error that is meant for the user."""
    collection, _ = asked
    try:
        count = collection.count(text)
    except ConfigError:
        return
    assert 0 <= count <= len(collection)


def test_the_constants_are_everything_and_nothing():
    assert parse("true", [], "id", {}) == parse("not false", [], "id", {}) == EVERYTHING
    assert parse("false", [], "id", {}) == NOTHING
