"""`danlu recall pick`: rows that qualify, like the examples, none said twice, as training reads them."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow as pa
import pytest

from danlu.data.formats import read_records
from danlu.errors import ConfigError, DataError
from danlu.recall import BuildOptions, Collection
from danlu.recall.picking import PickOptions, pick

THEMES = {
    "tea": ["tea", "leaves", "kettle", "water", "steep", "cup", "oolong", "garden", "brew", "pot"],
    "ship": ["ship", "sail", "harbour", "mast", "captain", "wave", "anchor", "deck", "rope", "tide"],
    "law": ["court", "judge", "appeal", "statute", "contract", "clause", "party", "damages", "plea", "brief"],
    "北京": ["胡同", "故宫", "长城", "烤鸭", "地铁", "雾霾", "豆汁", "颐和园", "四合院", "天坛"],
}


def texts(count, seed=0):
    """`count` texts of each theme, none like another."""
    draw = random.Random(seed)
    return [(theme, " ".join(draw.choices(words, k=30))) for _ in range(count) for theme, words in THEMES.items()]


@pytest.fixture
def built(tmp_path):
    made = texts(30)
    rows = [{"id": at, "theme": theme, "bio": text} for at, (theme, text) in enumerate(made)]
    rows += [{"id": 200 + at, "theme": "again", "bio": made[at][1].upper() + "."} for at in range(8)]
    rows += [{"id": 300, "theme": "tea", "bio": None}, {"id": 301, "theme": "tea", "bio": "  "}]
    table = pa.Table.from_pylist(rows)
    return Collection.build(tmp_path / "c", table, BuildOptions(id="id", text=("bio",)))


def themes(opened, picked):
    return opened.table(picked.rows, ["theme"]).column(0).to_pylist()


def picked(opened, **how):
    return pick(opened, PickOptions(**how), print)


def test_what_repeats_another_and_what_is_empty_is_passed_over(built):
    found = picked(built)
    assert (found.among, found.looked_at, found.empty, found.repeats) == (130, 130, 2, 8)
    assert built.ids(found.rows).to_pylist() == list(range(120))
    assert len(picked(built, near=None).rows) == 128


def test_rows_are_drawn_where_more_pass_than_are_wanted(built):
    ids = [built.ids(picked(built, top=20, seed=seed).rows).to_pylist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0] == sorted(ids[0])
    assert ids[0] != list(range(20))
    assert len(ids[0]) == 20


def test_examples_take_turns_and_are_not_picked_again(built):
    found = picked(built, like_where="id in (0, 3)", top=20)
    assert (found.examples, len(found.rows)) == (2, 20)
    assert themes(built, found) == 10 * ["tea", "北京"]
    assert not {0, 3, 200, 203} & set(built.ids(found.rows).to_pylist())  # nor what repeats them


@pytest.mark.parametrize("name", ["bio", "text"])
def test_examples_from_a_file(built, tmp_path, name):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({name: text}) + "\n" for theme, text in texts(3, seed=9) if theme == "law"))
    found = picked(built, like=path, top=12, where="theme <> 'ship'")
    assert themes(built, found) == ["law"] * 12
    path.write_text(json.dumps({"other": "x"}) + "\n")
    with pytest.raises(DataError, match="nothing to compare by"):
        picked(built, like=path, top=1)
    path.write_text(json.dumps({name: " "}) + "\n" + json.dumps({name: None}))
    with pytest.raises(DataError, match="no example"):
        picked(built, like=path, top=1)


def test_more_than_are_like_the_examples_are_not_invented(built):
    found = picked(built, like_where="id = 0", top=1000, channels=("words:bio",))
    assert set(themes(built, found)) == {"tea"}
    assert len(found.rows) == 29


def test_rows_without_text_are_like_others_by_their_vectors(tmp_path):
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(50, 8)) + np.repeat([[9.0], [-9.0]], 25, 0) * np.eye(8)[0]
    table = pa.table({"id": range(50), "v": vectors.tolist(), "note": [f"number {at} of fifty" for at in range(50)]})
    built = Collection.build(tmp_path / "c", table, BuildOptions(id="id", vector=("v",)))
    found = picked(built, like_where="id = 30", top=10, columns=("note=text",), near=1.0)
    assert all(25 <= one < 50 for one in built.ids(found.rows).to_pylist())


def test_likeness_is_not_handed_on(tmp_path):
    """Of a chain in which each says nearly what the one before says, not the first alone is left."""
    draw, text = random.Random(0), [random.Random(1).choice("abcdefgh") for _ in range(600)]
    chain = []
    for at in range(12):
        text[at * 48 : at * 48 + 48] = draw.choices("ijklmnop", k=48)
        chain.append("".join(text))
    built = Collection.build(
        tmp_path / "c", pa.table({"id": range(12), "bio": chain}), BuildOptions(id="id", text=("bio",))
    )
    left = built.ids(picked(built).rows).to_pylist()
    assert left[0] == 0
    assert 3 < len(left) < 12


def test_of_rows_that_are_all_alike_one_is_left(tmp_path):
    rows = pa.table({"id": range(50), "bio": ["just the same words again and again"] * 50})
    built = Collection.build(tmp_path / "c", rows, BuildOptions(id="id", text=("bio",)))
    assert built.ids(picked(built).rows).to_pylist() == [0]


WRONG = {
    "no top": ({"like_where": "id = 1"}, "top is needed"),
    "two kinds": ({"like_where": "id = 1", "like": "x", "top": 1}, "give one of them"),
    "no examples": ({"channels": ("words:bio",)}, "channels has no effect"),
    "a seed": ({"seed": 3, "like_where": "id = 1", "top": 2}, "seed has no effect"),
    "too loose": ({"near": 0.3}, "greater than or equal to 0.7"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said(what):
    given, seen = WRONG[what]
    with pytest.raises(ValueError, match=seen):
        PickOptions(**given)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"where": "them = 'tea'"}, "did you mean 'theme'"),
        ({"columns": ("boi=text",)}, "did you mean 'bio'"),
        ({"columns": ("bio=x", "theme=x")}, "two columns would be written as 'x'"),
        ({"columns": ("id",)}, "no column of text is written"),
        ({"like_where": "id = 0", "top": 3, "channels": ("words:bo",)}, "did you mean 'words:bio'"),
    ],
)
def test_what_the_collection_has_not_is_said(built, given, seen):
    with pytest.raises(ConfigError, match=seen):
        picked(built, **given)


# -- the command ------------------------------------------------------------------------------------------


def test_what_is_written_is_what_training_reads(call, built, tmp_path):
    out = tmp_path / "train.jsonl"
    how = ["--like_where", "id = 3", "--top", "10", "--columns", "theme=instruction", "bio=output"]
    code, shown, err = call("recall", "pick", built.path, "--out", out, *how)
    assert (code, shown) == (0, f"{out}\n"), err
    assert "10 of 129 rows that qualify" in err
    records = list(read_records(out))
    assert len(records) == 10
    assert records[0].messages[0]["content"] == "北京"
    code, _, err = call("recall", "pick", built.path, "--out", out)
    assert (code, "exists" in err) == (2, True)


def test_documents_without_a_word_more(call, built, tmp_path):
    out = tmp_path / "all.jsonl"
    code, _, err = call("recall", "pick", built.path, "--out", out, "--where", "theme = 'law'", "--lang", "zh")
    assert (code, "符合条件的 30 行中选出 30 行" in err) == (0, True), err
    assert set(json.loads(out.read_text().splitlines()[0])) == {"text"}


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        (["--where", "id > 1000"], "no row is left"),
        (["--columns", "bio=prose"], "name columns as training does"),
        (["--near", "2"], "less than or equal to 1"),
    ],
)
def test_nothing_is_written_where_nothing_can_be(call, built, tmp_path, how, seen):
    out = tmp_path / "none.jsonl"
    code, _, err = call("recall", "pick", built.path, "--out", out, *how)
    assert (code != 0, seen in err, out.exists()) == (True, True, False), err
    assert [path.name for path in tmp_path.iterdir() if "none" in path.name] == []
