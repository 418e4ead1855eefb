"""A row read at a glance is the row that the long way reads: record, notes, shapes, keys that nothing reads."""

import random

import pytest
from sample_rows import ROWS, write_jsonl

from danlu.data.formats import Reading, Skipped, read_records
from danlu.data.shapes.glance import Glance

TEXTS = [
    "好的。",
    "a <b> c",
    "a <image> c",
    "",
    " ",
    " 一\n",
    "[1]",
    ' {"role": "user"}',
    "\0",
    "nan",
    "<audio></audio>",
]
ODD = [None, 3, True, [], ["x"], {}, [{"role": "user", "content": "q"}], "\ud800", float("nan")]
KEYS = {
    "prompt_completion": [("prompt", "completion"), ("prompt", "response")],
    "alpaca": [("instruction", "output"), ("instruction", "input", "output"), ("input", "output"), ("问题", "回答")],
}
OTHERS = [
    "id",
    "ID",
    "",
    "system",
    "history",
    "text",
    "label",
    "group",
    "image",
    "tools",
    "context",
    "Prompt",
    "source",
]
NAMES = [
    *[("role", "content"), ("from", "value")] * 4,
    ("role", "value"),
    ("role", "content", "loss"),
    ("role", "text"),
]


def value(draw):
    return draw.choice([*TEXTS, *ODD] if draw.random() < 0.15 else ["一", "two words", "好的。"])


def pair_row(draw, format):
    row = {key: value(draw) for key in draw.choice(KEYS[format])}
    return row | {
        key: value(draw) if draw.random() < 0.5 else "" for key in draw.sample(OTHERS, draw.choice([0, 0, 1, 2]))
    }


def list_row(draw, key):
    speakers = draw.choice([["user", "assistant"], ["system", "user", "assistant"], ["human", "gpt"] * 2])
    if draw.random() < 0.2:
        speakers = [draw.choice(["user", "assistant", "tool", "Human", "system", 1]) for _ in range(3)]
    turns = [dict(zip(draw.choice(NAMES), (who, value(draw), False), strict=False)) for who in speakers]
    more = {other: value(draw) for other in draw.sample(OTHERS, draw.choice([0, 0, 1]))}
    return {key: draw.choice([*[turns] * 9, [], None]), **more}


def rows_of(format, seed, count=300):
    draw = random.Random(seed)
    first = {**ROWS[format]}
    if format in KEYS:
        return [first, *(pair_row(draw, format) for _ in range(count))]
    return [first, *(list_row(draw, next(iter(first))) for _ in range(count))]


def read(path, format, monkeypatch=None):
    if monkeypatch is not None:
        monkeypatch.setattr(Glance, "learn", lambda *_: None)
    skipped = Skipped()
    return list(read_records(path, format=format, on_error="skip", skipped=skipped)), skipped


@pytest.mark.parametrize("format", ["prompt_completion", "alpaca", "messages", "sharegpt"])
def test_both_ways_say_the_same(format, tmp_path, monkeypatch):
    seen = []
    record = Glance.record
    monkeypatch.setattr(Glance, "record", lambda *args: seen.append(made := record(*args)) or made)
    for seed in range(4):
        path = write_jsonl(tmp_path / "a.jsonl", *rows_of(format, seed))
        with monkeypatch.context() as without:
            expected = read(path, format, without)
        seen.clear()
        assert read(path, format) == expected
        assert sum(made is not None for made in seen) > 20


def test_columns_of_parquet_that_are_not_decoded_are_counted(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": "q", "completion": f"a {at}", "id": at} for at in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with monkeypatch.context() as without:
        expected = read(tmp_path / "a.parquet", None, without)
    assert read(tmp_path / "a.parquet", None) == expected
    assert expected[1].unread == {"id": 5}


@pytest.mark.parametrize("reading", [Reading(roles={"user": "assistant"}), Reading(columns={"group": "id"})])
def test_what_the_user_says_of_rows_is_asked_each_time(reading, tmp_path):
    row = {"prompt": "q", "completion": "a", "id": "甲"}
    glance = Glance(reading, Skipped())
    glance.learn(row, reading.shape(reading.renamed(row)[0], None))
    assert glance.record(row, "a:1") is None


def test_kinds_of_rows_that_are_known_are_bounded(monkeypatch):
    monkeypatch.setattr("danlu.data.shapes.glance.KEPT_KINDS", 3)
    monkeypatch.setattr("danlu.data.shapes.reading.KEPT_SHAPES", 3)
    reading = Reading()
    glance = Glance(reading, Skipped())
    for at in range(9):
        row = {"prompt": "q", "completion": "a", f"key {at}": at}
        glance.learn(row, reading.shape(reading.renamed(row)[0], "prompt_completion"))
        assert glance.record(row, "a:1").messages[0]["content"] == "q"
        assert len(glance._known) <= 3
        assert len(reading._shapes) <= 3
