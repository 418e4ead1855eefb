"""`danlu recall events`, `measure` and `train` on the command line."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danlu.recall import BuildOptions, Collection
from danlu.recall.measure.splits import leave_one_out

THINGS = pa.table(
    {"sku": range(30), "colour": [["red", "blue"][at % 2] for at in range(30)], "about": ["a thing"] * 30}
)


@pytest.fixture
def shop(call, tmp_path):
    path = tmp_path / "shop.recall"
    Collection.build(path, THINGS, BuildOptions(id="sku", text=("about",)))
    rng = np.random.default_rng(0)
    rows = [
        {"uid": int(user), "sku": int((begin + at) % 30), "ts": 10**9 + int(user) * 100 + at, "kind": "view"}
        for user, begin in enumerate(rng.integers(0, 30, 40))
        for at in range(6)
    ]
    pq.write_table(pa.Table.from_pylist([*rows, rows[0]]), tmp_path / "clicks.parquet")
    return path


def stored(call, shop, *more):
    names = ("--user", "uid", "--item", "sku", "--time", "ts")
    return call("recall", "events", shop, shop.parent / "clicks.parquet", *names, *more)


def test_events_are_stored_and_learnt_from(call, shop):
    code, out, err = stored(call, shop, "--channels", "swing", "ease", "--counts", "view=2", "--swing.alpha", "3")
    assert (code, "1 events stood there twice and count once" in err) == (0, True)
    assert "240 events of 40 users with 30 items, 30 of them rows; swing, ease" in out
    options = Collection.open(shop).behaviour.options
    assert (options.channels, options.counts, options.swing.alpha) == (("swing", "ease"), {"view": 2}, 3)
    code, _, err = call("recall", "events", shop, shop.parent / "clicks.parquet")
    assert (code, "no source has a column 'user'" in err) == (2, True)
    assert call("recall", "events", shop)[0] == 2
    assert len(Collection.open(shop).behaviour.events) == 240


def test_recommended_to_a_user_and_beside_rows(call, shop):
    assert stored(call, shop)[0] == 0
    code, out, err = call(
        "recall", "recommend", shop, "3", "--where", "colour = 'red'", "--top", "3", "--columns", "colour"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 3
    assert {row["colour"] for row in rows} == {"red"}
    assert all(set(row["found_by"]) <= {"item_cf", "swing", "user_cf"} for row in rows)
    code, out, _ = call("recall", "recommend", shop, "--items", "4", "5", "--channels", "swing", "--top", "2")
    assert (code, len(out.splitlines())) == (0, 2)
    code, out, _ = call("recall", "recommend", shop, "999", "--top", "2")  # of whom nothing is known
    assert (code, json.loads(out.splitlines()[0])["found_by"]) == (0, {"hot": 1})
    for wrong, seen in (
        (["ann"], "'ann' is no id"),
        ([], "nothing is asked for"),
        (["3", "--traits", "age"], "--traits age"),
        (["3", "--traits", "age=3"], "no channel"),
    ):
        code, _, err = call("recall", "recommend", shop, *wrong)
        assert (code, seen in err) == (2, True) or wrong[-1] == "age=3", err


def test_measured_on_events_that_are_held_out(call, shop, tmp_path):
    assert stored(call, shop)[0] == 0
    code, out, _ = call("recall", "measure", shop, "--json", "--k", "1", "5")
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["leave one out", "by time"]
    names = [one["name"] for one in found["leave one out"]["channels"]]
    assert names == ["item_cf", "swing", "user_cf", "hot", "fused"]
    split = leave_one_out(Collection.open(shop).behaviour.histories)
    assert found["leave one out"]["questions"] == (split.wanted.sizes > 0).sum() == 40
    swing = found["leave one out"]["channels"][1]
    assert 0 < swing["at"]["1"]["recall"] <= swing["at"]["5"]["recall"] <= 1
    picture = tmp_path / "measure.svg"
    code, out, _ = call("recall", "measure", shop, "--channels", "swing", "--split", "last", "--plot", picture)
    assert code == 0
    assert "leave one out: 40 questions" in out
    assert picture.read_text().startswith("<svg")
    code, _, err = call("recall", "measure", shop, "--plot", picture)
    assert (code, "that is not there yet" in err) == (2, True)
    assert call("recall", "measure", shop, "--split", "last", "--share", "0.1")[0] == 2


def test_measured_against_labels(call, shop, tmp_path):
    assert stored(call, shop)[0] == 0
    labels = tmp_path / "labels.jsonl"
    lines = [
        {"query": {"user": 3}, "relevant": [5, 6, 77]},
        {"query": {"like": "thing", "where": "sku < 3"}, "relevant": [1]},
    ]
    labels.write_text("\n".join(map(json.dumps, lines)))
    code, out, err = call("recall", "measure", shop, labels, "--json")
    assert (code, "1 ids in the labels are no rows" in err) == (0, True)
    channels = {one["name"]: one for one in json.loads(out)["labels"]["channels"]}
    assert list(channels) == ["words:about", "item_cf", "swing", "user_cf", "fused"]
    assert channels["words:about"]["at"]["10"]["recall"] == pytest.approx(0.5)
    code, out, _ = call("--lang", "zh", "recall", "measure", shop, labels, "--channels", "swing")
    assert (code, "召回率" in out) == (0, True)
    assert call("recall", "measure", shop, labels, "--split", "last")[0] == 2


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("{", "line 1: no JSON"),
        ("[]", "a label has query and relevant"),
        ('{"query": {"likes": "x"}, "relevant": [1]}', "a query has no 'likes'"),
        ('{"query": {"like": "x", "fuse": {"rrf_k": 0}}, "relevant": [1]}', "line 1: fuse"),
        ("", "holds no labels"),
        ('{"query": {"like": "x"}, "relevant": [1000]}', "no question has anything right"),
    ],
)
def test_what_is_no_label(call, shop, tmp_path, line, seen):
    (tmp_path / "labels.jsonl").write_text(line)
    code, _, err = call("recall", "measure", shop, tmp_path / "labels.jsonl")
    assert (code != 0, seen in err) == (True, True), err


def test_towers_are_trained_and_kept(call, shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stored(call, shop)[0] == 0
    small = ["--dim", "8", "--layers", "1", "--train.num_train_epochs", "2", "--train.batch_size", "16"]
    code, out, err = call("recall", "train", shop, *small)
    assert code == 0, err
    assert "30 x 8, runs/towers" in out
    rows = (tmp_path / "runs" / "towers" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == len(rows) == 6
    assert "towers" in Collection.open(shop).channels
    longer = [*small[:5], "3", *small[6:], "--resume", "true"]
    code, out, err = call("recall", "train", shop, *longer)
    assert (code, "step 9/9" in out) == (0, True), err
    code, _, err = call("recall", "train", shop, "--heads", "3")
    assert (code, "heads 3 do not divide dim 64" in err) == (2, True)
