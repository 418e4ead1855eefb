"""Vectors as columns, and channels fused: every result says what has found it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from encoders import make_tiny_encoder

from danlu.errors import ConfigError, DataError
from danlu.recall import BuildOptions, Collection, Fuse, Query
from danlu.recall.fusing import Place, check, fused, tuned
from danlu.recall.query import Found


@pytest.fixture(autouse=True)
def disks_that_are_fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda number: None)


VECTORS = [[1.0, 0.0], [0.0, 2.0], None, [3.0, 3.0], [-1.0, 0.0], [0.5, 0.1]]
BIOS = ["tea", "tea hiking", "hiking", None, "茶 tea", "hiking hiking"]


def table(vectors=VECTORS, bios=BIOS, first=0):
    made = {"id": np.arange(first, first + len(bios)), "bio": pa.array(bios, pa.string()), "v": vectors}
    return pa.table({**made, "city": [f"city {at % 2}" for at in range(len(bios))]})


def options(**more):
    return BuildOptions(id="id", text=("bio",), vector=("v",), **more)


@pytest.fixture
def built(tmp_path):
    return Collection.build(tmp_path / "c", table(), options())


# -- vectors as a column ----------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)])
@pytest.mark.parametrize("ending", ["table", ".parquet", ".jsonl", ".arrow"])
def test_vectors_come_back_from_every_kind_of_file(tmp_path, type_, ending):
    from pyarrow import feather, parquet

    given = table(pa.array(VECTORS, type_))
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        parquet.write_table(given, path)
    elif ending == ".arrow":
        feather.write_feather(given, path)
    elif ending == ".jsonl":
        import json

        path.write_text("\n".join(json.dumps(row) for row in given.to_pylist()))
    made = Collection.build(tmp_path / "c", given if ending == "table" else path, options())
    now = made.append(table([[7.0, 8.0]], ["x"], 10)).append(table([None], ["y"], 11)).delete([0]).compact()
    wanted = [None if one is None else pytest.approx(one) for one in [*VECTORS[1:], [7.0, 8.0], None]]
    assert now.table(now.everything(), ["v"]).column(0).to_pylist() == wanted
    assert now.count("v is null") == 2
    assert {column.name: column.dim for column in now.columns}["v"] == 2


WRONG = {
    "another length": ([[1.0, 2.0, 3.0]], r"column v is of kind vector.*row 1 of them has a vector of 3 numbers"),
    "no number": ([[1.0, float("nan")]], "a number that is not finite"),
    "too large": ([[1.0, 1e300]], "a number that is not finite in 32 bits"),
    "text": (["x"], "it is no list of numbers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_vectors_that_do_not_fit_are_said(built, what):
    vectors, seen = WRONG[what]
    with pytest.raises(DataError, match=seen):
        built.append(table(vectors, ["x"], 10))
    assert len(Collection.open(built.path)) == 6


def test_what_is_no_vector_is_said(tmp_path):
    with pytest.raises(DataError, match=r"(?s)column v is of type .*vector=v"):
        Collection.build(tmp_path / "c", table(), BuildOptions(id="id"))
    with pytest.raises(DataError, match="column city is of type string, which is no vector"):
        Collection.build(tmp_path / "c", table(), BuildOptions(vector=("v", "city")))
    with pytest.raises(DataError, match="no row of any source has a vector"):
        Collection.build(tmp_path / "c", table([None] * 6), BuildOptions(vector=("v",)))
    with pytest.raises(ValueError, match="'v' is named in two of them"):
        BuildOptions(vector=("v",), tags=("v",))
    with pytest.raises(ConfigError, match="v is vectors, which are not filtered"):
        Collection.build(tmp_path / "c", table(), options()).where("v = 1")


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_the_nearest_are_those_that_comparing_finds(tmp_path, metric):
    made = Collection.build(tmp_path / "c", table(), options(metric=metric)).append(table([[1.0, 1.0]], ["x"], 10))
    asked = np.array([1.0, 0.5])
    given = {at: np.array(one) for at, one in [*enumerate(VECTORS), (10, [1.0, 1.0])] if one is not None}
    score = {
        "cosine": lambda one: one @ asked / np.linalg.norm(one) / np.linalg.norm(asked),
        "inner_product": lambda one: one @ asked,
        "l2": lambda one: -((one - asked) ** 2).sum(),
    }[metric]
    wanted = {at: score(one) for at, one in given.items()}
    found = made.recall(Query(vector=asked))
    assert {one.id: one.places["vector:v"].score for one in found} == pytest.approx(wanted, rel=1e-5)
    assert [one.id for one in found] == sorted(wanted, key=lambda at: (-wanted[at], at))
    assert [one.id for one in made.recall(Query(vector=asked, where="id in (4, 5)"))] == [5, 4]
    for wrong in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="a vector of shape"):
            made.recall(Query(vector=wrong))


# -- fused ------------------------------------------------------------------------------------------------


def found(least=None, **scores):
    """Rows r3=0.5 with their scores, in order."""
    ranked = sorted(((int(name[1:]), score) for name, score in scores.items()), key=lambda one: (-one[1], one[0]))
    return Found(np.array([row for row, _ in ranked], np.int64), np.array([score for _, score in ranked]), least)


LISTS = {"a": found(0.0, r1=10.0, r2=5.0, r3=1.0), "b": found(None, r3=0.9, r1=0.5, r4=0.1)}


def test_ranks_are_added_up_as_the_formula_says():
    one = fused(LISTS, Fuse(), 10)
    assert {each.row: each.score for each in one} == pytest.approx(
        {1: 1 / 61 + 1 / 62, 2: 1 / 62, 3: 1 / 63 + 1 / 61, 4: 1 / 63}
    )
    assert [each.row for each in one] == [1, 3, 2, 4]
    assert one[0].places == {"a": Place(1, 10.0), "b": Place(2, 0.5)}
    assert one[3].places == {"b": Place(3, 0.1)}
    heavy = fused(LISTS, Fuse(rrf_k=1, weights={"a": 3.0}), 10)
    assert heavy[0].score == pytest.approx(3 / 2 + 1 / 3)
    assert [each.row for each in fused(LISTS, Fuse(weights={"a": 0.0}), 10)] == [3, 1, 4]


def test_scores_are_put_between_0_and_1_and_added_up():
    one = fused(LISTS, Fuse(fuse="convex", weights={"a": 0.4, "b": 0.6}), 10)
    wanted = {1: 0.4 * 1 + 0.6 * 0.5, 2: 0.4 * 0.5, 3: 0.4 * 0.1 + 0.6 * 1, 4: 0.0}
    assert {each.row: each.score for each in one} == pytest.approx(wanted)
    same = fused({"a": found(None, r1=2.0, r2=2.0)}, Fuse(fuse="convex"), 10)
    assert [(each.row, each.score) for each in same] == [(1, 1.0), (2, 1.0)]


def test_a_quota_brings_in_what_others_leave_out():
    assert [each.row for each in fused(LISTS, Fuse(), 2)] == [1, 3]
    assert [each.row for each in fused(LISTS, Fuse(quotas={"a": 2}), 2)] == [1, 2]
    assert [each.row for each in fused(LISTS, Fuse(quotas={"b": 3}, weights={"b": 0.0}), 3)] == [1, 3]
    with pytest.raises(ConfigError, match="quotas of 3 rows together; 2 are wanted"):
        check(Fuse(quotas={"a": 3}), LISTS, 2)
    for wrong in (Fuse(weights={"c": 1.0}), Fuse(quotas={"c": 1})):
        with pytest.raises(ConfigError, match="no channel 'c' is asked"):
            check(wrong, LISTS, 5)


def test_weights_are_learnt_from_labels():
    """One channel is right, the other always wrong; then each is right at times, where only both together suffice."""
    good, bad = found(r1=1.0, r2=0.5), found(r7=1.0, r8=0.9, r9=0.8)
    how = tuned([({"good": good, "bad": bad}, [1, 2])], Fuse(fuse="convex"), 2)
    assert how.weights["good"] > how.weights["bad"]
    assert how.fuse == "convex"
    cases = [({"a": found(0.0, r1=1.0, r2=0.9), "b": found(0.0, r3=1.0, r2=0.9)}, [2])]
    assert [each.row for each in fused(cases[0][0], tuned(cases, Fuse(fuse="convex"), 1), 1)] == [2]
    with pytest.raises(ConfigError, match="no query has a row that is relevant"):
        tuned([({"good": good}, [])], Fuse(), 2)


def test_a_query_asks_what_it_names_and_results_say_what_found_them(built):
    both = built.recall(Query(like="tea", vector=[0.0, 1.0], top=3))
    assert [one.id for one in both] == [1, 0, 4]
    assert both[0].places.keys() == {"words:bio", "vector:v"}
    assert both.among == 6
    assert both.rows.tolist() == [one.row for one in both]
    assert set(both.seconds) == {"words:bio", "vector:v"}
    one = built.recall(Query(like="tea", vector=[0.0, 1.0], channels=("vector:v",)))
    assert {name for each in one for name in each.places} == {"vector:v"}
    assert built.recall(Query(text="tea", where="false")).found == ()
    tune = built.tune([(Query(like="tea", vector=[1.0, 0.0], top=1), [0]), (Query(text="hiking", top=1), [5, 999])])
    assert set(tune.weights) == {"words:bio", "vector:v"}


def test_of_rows_with_one_value_only_the_best_is_kept(built):
    found = built.recall(Query(text="tea hiking", fuse=Fuse(distinct="city", depth=1), top=2))
    assert len({one.row % 2 for one in found}) == len(found) == 2
    assert built.recall(Query(text="tea", fuse=Fuse(distinct="_source"), top=5)).rows.tolist() == [0]


def test_asking_for_more_results_adds_to_them(tmp_path):
    """Neither a larger top nor one result a value changes what came first."""
    rng = np.random.default_rng(0)
    bios = [" ".join(rng.choice(["tea", "hiking", "yoga", "x", "y"], rng.integers(1, 9))) for _ in range(300)]
    given = {"id": np.arange(300), "bio": bios, "v": list(rng.normal(size=(300, 2))), "of": np.arange(300) // 7}
    made = Collection.build(tmp_path / "m", pa.table(given), options())

    def found(top, **how):
        asked = Query(like="tea hiking", vector=[1.0, 0.3], top=top, fuse=Fuse(depth=10, **how))
        return made.recall(asked).rows.tolist()

    for how in ({}, {"distinct": "of"}, {"fuse": "convex"}):
        longest = found(300, **how)
        assert len(longest) == (43 if "distinct" in how else 300)
        assert all(found(top, **how) == longest[:top] for top in (1, 7, 10, 25, 40))


def test_a_filter_comes_before_ranks_and_pieces_are_fused_once(tmp_path, built):
    """Ranks are those among the rows that qualify, however many segments they lie in."""
    asked = Query(like="tea", vector=[0.0, 1.0], where="id in (0, 3, 4)")
    pieces = Collection.build(tmp_path / "p", table(VECTORS[:2], BIOS[:2]), options())
    for at in range(2, 6):
        pieces = pieces.append(table(VECTORS[at : at + 1], BIOS[at : at + 1], at))
    whole = [(one.id, one.score, one.places) for one in built.recall(asked)]
    assert [(one.id, one.score, one.places) for one in pieces.recall(asked)] == whole
    assert {place.rank for _, _, places in whole for place in places.values()} == {1, 2, 3}


FAULTS = {
    "nothing": (Query(where="true"), "nothing is asked for"),
    "no such channel": (Query(text="tea", channels=("words:bia",)), "did you mean 'words:bio'"),
    "no such weight": (Query(text="tea", fuse=Fuse(weights={"vector:v": 1.0})), "no channel 'vector:v' is asked"),
    "no column": (Query(text="tea", fuse=Fuse(distinct="ctiy")), "did you mean 'city'"),
    "no answer": (Query(like="tea", channels=("vector:v",)), "no channel has an answer to what is asked: vector:v"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_queries_that_are_wrong_are_said(built, what):
    query, seen = FAULTS[what]
    with pytest.raises(ConfigError, match=seen):
        built.recall(query)
    with pytest.raises(ConfigError, match="top=0"):
        Query(text="tea", top=0)


# -- vectors out of texts ---------------------------------------------------------------------------------


def test_vectors_are_made_of_texts_when_rows_are_added(tmp_path):
    encoder = str(make_tiny_encoder(tmp_path / "encoder"))
    how = BuildOptions(id="id", text=("bio",), embed=("bio",), embedder=encoder)
    given = table().drop_columns(["v"])
    made = Collection.build(tmp_path / "c", given, how)
    assert [column.name for column in made.columns][-2:] == ["bio_vector", "_source"]
    now = made.append(given.slice(0, 1).set_column(0, "id", pa.array([10])))
    vectors = now.table(now.everything(), ["bio_vector"]).column(0).to_pylist()
    assert vectors[3] is None
    assert vectors[0] == pytest.approx(vectors[6], abs=1e-6)
    found = now.recall(Query(like="hiking"))
    assert found[0].places.keys() == {"words:bio", "vector:bio_vector"}
    assert len(found) == 6  # all that have a text
    assert [one.id for one in now.compact().recall(Query(like="hiking"))] == [one.id for one in found]
    told = []
    long = pa.table({"id": [20], "bio": ["tea " * 200]})
    Collection.open(now.path, say=told.append).append(long)
    assert "1 texts of bio are longer than 64 tokens" in told[0]
    with pytest.raises(ConfigError, match="there is a column bio_vector already"):
        Collection.build(tmp_path / "d", given.append_column("bio_vector", given["bio"]), how)


def test_words_and_vectors_are_found_without_torch(built):
    code = (
        "import sys; from danlu.recall import Collection, Query\n"
        f"c = Collection.open({str(built.path)!r})\n"
        "print([one.id for one in c.recall(Query(where='id < 5', text='tea', vector=[0.0, 1.0], top=2))])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = [one.id for one in built.recall(Query(where="id < 5", text="tea", vector=[0.0, 1.0], top=2))]
    assert done.stdout == f"{wanted}\n[]\n"
