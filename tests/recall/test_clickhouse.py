"""A collection in ClickHouse answers as it does here: on the engine in this process, where chdb is installed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from math import sqrt

import numpy as np
import pyarrow as pa
import pytest
from clauses import drawn_clause
from people import OPTIONS, SCHEMA, people, table

from danlu.errors import ConfigError, DataError
from danlu.recall import BuildOptions, Collection, Query
from danlu.recall.clickhouse import ClickHouse, condition_of
from danlu.recall.manifest import Column

ROWS = people(700, seed=3)
COLUMNS = [Column(name="id", kind="integer"), Column(name="na`me", kind="word"), Column(name="tags", kind="tags")]


def test_values_stay_values_whatever_they_hold():
    text = "\"na`me\" = 'x'') or 1=1 --\\' and not has_all(tags, '\\', ';drop table t') or id > 3"
    assert condition_of(text, COLUMNS, "id", {}) == (
        r"(((isNotNull(`na\`me`) and (toString(`na\`me`) = 'x\') or 1=1 --\\')) and "
        r"(`tags__known` and not (hasAll(`tags`, ['\\', ';drop table t'])))) or (true and (`id` > 3)))"
    )
    with pytest.raises(ConfigError, match="there is no column 'nam'"):
        condition_of("nam = 'x'", COLUMNS, "id", {})
    assert condition_of("audience('a')", COLUMNS, "id", {"a": "id in (1, 2)"}) == "(true and (`id` = 1 or `id` = 2))"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    pytest.importorskip("chdb", reason="chdb is not installed: ClickHouse's engine in this process")
    connect = pytest.importorskip("clickhouse_connect", reason="clickhouse-connect is not installed")
    made = connect.get_client(dsn=f"chdb:///{str(tmp_path_factory.mktemp('engine')).lstrip('/')}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def sides(client, tmp_path_factory):
    """The collection here, in two segments with deleted rows, and there."""
    path = tmp_path_factory.mktemp("here") / "c"
    draw = np.random.default_rng(0)
    rows = table(ROWS).append_column("v", pa.array(draw.normal(size=(700, 8)).tolist(), pa.list_(pa.float32())))
    options = BuildOptions(**{**OPTIONS.model_dump(), "vector": ("v",)})
    here = Collection.build(path, rows.slice(0, 400), options).append(rows.slice(400))
    here = here.delete(list(range(0, 700, 50))).name_audience("it's", "sex = 'F' and age > 25")
    return here, ClickHouse.copied(client, here, "peo`ple", order_by=("sex", "age"))


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_of_random_clauses_are_the_same(sides, seed):
    here, there = sides
    draw = random.Random(seed)
    for depth in (0, 0, 0, 0, 0, 0, 1, 1, 2, 3) * 10:
        clause, _ = drawn_clause(draw, depth)
        expected = sorted(here.ids(here.where(clause)).to_pylist())
        assert there.ids(clause).to_pylist() == expected, clause
    assert there.count(clause) == len(expected)


def test_audiences_and_values_come_along(sides, client):
    here, _ = sides
    there = ClickHouse.opened(client, "peo`ple")
    clause = "audience('it''s') and not city = 'Rome'"
    assert there.count(clause) == here.count(clause)
    columns = [name for name in SCHEMA.names if name != "interests"]
    clause = "user_id < 60"
    assert there.rows(clause, columns, limit=50).to_pylist() == here.table(here.where(clause), columns, 50).to_pylist()


def test_who_they_are(sides):
    here, there = sides
    clause = "sex = 'F' and age > 25"
    for mine, theirs in zip(here.profile(here.where(clause)), there.profile(clause), strict=True):
        assert (mine.name, mine.rows, mine.all_rows) == (theirs.name, theirs.rows, theirs.all_rows)
        assert (mine.known, mine.known_of_all) == (theirs.known, theirs.known_of_all)
        if mine.shares and not isinstance(mine.shares[0].value, tuple):
            assert Counter(mine.shares) == Counter(theirs.shares), mine.name


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_the_nearest_vectors(client, tmp_path, metric):
    draw = np.random.default_rng(1)
    vectors = [None if at % 7 == 0 else one for at, one in enumerate(draw.normal(size=(200, 5)).tolist())]
    listed = pa.array(vectors, pa.list_(pa.float32()))
    rows = pa.table({"id": [f"row {at}" for at in range(200)], "v": listed, "at": range(200)})
    here = Collection.build(tmp_path / "c", rows, BuildOptions(id="id", vector=("v",), metric=metric))
    there = ClickHouse.copied(client, here, f"vectors_{metric}")
    wanted = draw.normal(size=5)
    for where in ("true", "at > 150"):
        found = here.recall(Query(vector=wanted, where=where, top=20))
        away = there.nearest("v", wanted, 20, where)
        assert [one.id for one in found] == [id for id, _ in away]
        assert [one.places["vector:v"].score for one in found] == pytest.approx([score for _, score in away], abs=1e-5)
    for column, vector, seen in (("at", wanted, "no column of vectors"), ("v", [1.0], "5 finite numbers")):
        with pytest.raises(ConfigError, match=seen):
            there.nearest(column, vector, 3)


def test_what_was_done_with_them(client, tmp_path):
    draw = random.Random(0)
    pairs = [(f"u{draw.randint(0, 40)}", draw.randint(0, 30)) for _ in range(400)]
    rows = pa.table({"id": range(25), "odd": [at % 2 for at in range(25)]})
    acts = pa.table({"user": [user for user, _ in pairs], "item": [item for _, item in pairs], "time": range(400)})
    here = Collection.build(tmp_path / "c", rows, BuildOptions(id="id")).add_events(acts)
    there = ClickHouse.copied(client, here, "acted")
    users = defaultdict(set)
    for user, item in pairs:
        users[item].add(user)
    hot = sorted(((item, len(those)) for item, those in users.items() if item < 25), key=lambda one: (-one[1], one[0]))
    assert there.hot(10) == hot[:10]
    assert there.hot(3, "odd = 1") == [one for one in hot if one[0] % 2][:3]
    scores = {
        item: sum(len(users[item] & users[one]) / sqrt(len(users[item]) * len(users[one])) for one in (3, 8))
        for item in range(25) if item not in (3, 8) and users[item] & (users[3] | users[8])
    }  # fmt: skip
    best = sorted(scores, key=lambda item: (-round(scores[item], 9), item))[:5]
    found = there.together([3, 8], 5)
    assert [score for _, score in found] == pytest.approx([scores[item] for item in best])


def test_what_cannot_be_is_said(sides, client):
    here, there = sides
    with pytest.raises(DataError, match="already exists"):
        ClickHouse.copied(client, here, "peo`ple")
    with pytest.raises(DataError, match="there is no table 'none'"):
        ClickHouse.opened(client, "none")
    with pytest.raises(ConfigError, match="did you mean 'age'"):
        there.count("agee > 3")
    with pytest.raises(ConfigError, match="did you mean 'city'"):
        there.rows("true", ["citi"])
    with pytest.raises(ConfigError, match="did you mean 'sex'"):
        ClickHouse.copied(client, here, "other", order_by=("sexx",))
    client.command("create table plain (a Int64) engine = Memory")
    with pytest.raises(DataError, match="was not made here"):
        ClickHouse.opened(client, "plain")
