"""Events out of files and tables: what is read, what is refused, what becomes of what stands there twice."""

from __future__ import annotations

import json
from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.errors import ConfigError, DataError
from danlu.recall.behaviour.events import EventOptions, read, together
from danlu.recall.sources import Source

DAY = 86_400
NOW = 20_000.0
ROWS = [
    {"user": "ann", "item": 7, "time": datetime(2024, 2, 29, 12), "kind": "view", "weight": 1.0},
    {"user": "bob", "item": 7, "time": datetime(2024, 2, 29, 13), "kind": "buy", "weight": 2.0},
    {"user": "ann", "item": 9, "time": datetime(2024, 3, 1), "kind": "view", "weight": 0.5},
    {"user": "北京", "item": 7, "time": datetime(2024, 2, 29, 12), "kind": "view", "weight": 1.0},
]
TABLE = pa.Table.from_pylist(ROWS)


def events(table, now=NOW, **options):
    return read([Source(table)], EventOptions(**options), now)


def pairs(one):
    """{(user, item): (weight, days)}"""
    users, items = one.user_names.ids(one.users), one.item_names.ids(one.items)
    return dict(
        zip(zip(users, items, strict=True), zip(one.weights.tolist(), one.times.tolist(), strict=True), strict=True)
    )


def test_every_kind_of_file_says_the_same(tmp_path):
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(TABLE, tmp_path / "a.csv")
    pyarrow.feather.write_feather(TABLE, tmp_path / "a.arrow", compression="uncompressed")
    lines = [json.dumps({**row, "time": row["time"].isoformat()}, ensure_ascii=False) for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    wanted = events(TABLE)
    assert wanted.kind_names == ("view", "buy")
    assert wanted.user_names.ids(np.arange(3)) == ["ann", "bob", "北京"]
    assert pairs(wanted)["bob", 7] == (2.0, 19782 + 13 / 24)
    for ending in ("parquet", "csv", "arrow", "jsonl"):
        found = read([Source(tmp_path / f"a.{ending}")], now=NOW)
        assert pairs(found) == pairs(wanted), ending
        assert (found.kind_names, found.is_timed) == (wanted.kind_names, True)


def test_times_in_every_form():
    seconds = [1_700_000_000, 1_700_000_060]
    days = [one / DAY for one in seconds]
    for unit, scale in (("s", 1), ("ms", 1000), ("us", 10**6)):
        table = pa.table({"user": [1, 2], "item": [1, 1], "time": [one * scale for one in seconds]})
        assert events(table, time_unit=unit).times == pytest.approx(days, abs=1e-9)
    table = pa.table({"user": [1], "item": [1], "time": pa.array([date(2024, 2, 29)])})
    assert events(table).times.tolist() == [19782.0]
    without = events(pa.table({"user": [1, 2], "item": [1, 1]}))
    assert (without.is_timed, without.times.tolist()) == (False, [0.0, 1.0])


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"user": None}, "row 2 of them has no user"),
        ({"item": None}, "row 2 of them has no item"),
        ({"weight": -1.0}, "row 2 of them has a weight that is no number above 0"),
        ({"weight": float("nan")}, "a weight that is no number above 0"),
        ({"weight": float("inf")}, "a weight that is no number above 0"),
        ({"weight": 0.0}, "a weight that is no number above 0"),
        ({"weight": None}, "a weight that is no number above 0"),
        ({"time": None}, "row 2 of them has no time"),
        ({"time": datetime(2031, 1, 1)}, "row 2 of them has a time that is still to come"),
    ],
)
def test_what_is_no_event_is_refused_with_its_row(change, seen):
    rows = [ROWS[0], {**ROWS[1], **change}]
    with pytest.raises(DataError, match=seen):
        events(pa.Table.from_pylist(rows, TABLE.schema))


def test_milliseconds_taken_for_seconds_are_still_to_come():
    table = pa.table({"user": [1], "item": [1], "time": [1_700_000_000_000]})
    with pytest.raises(DataError, match="time_unit says what they count"):
        events(table)


def test_columns_by_other_names_and_those_that_are_not_there():
    table = TABLE.rename_columns(["uid", "sku", "ts", "kind", "weight"])
    found = events(table, user="uid", item="sku", time="ts")
    assert pairs(found) == pairs(events(TABLE))
    with pytest.raises(ConfigError, match="no source has a column 'user'"):
        events(table)
    with pytest.raises(ConfigError, match="no source has a column 'when'"):
        events(TABLE, time="when")
    with pytest.raises(ConfigError, match="is to be two things"):
        events(TABLE, user="item")
    with pytest.raises(DataError, match="the user column user is of kind real"):
        events(pa.table({"user": [1.5], "item": [1]}))
    with pytest.raises(DataError, match="the time column time is of kind tags"):
        events(pa.table({"user": [1], "item": [1], "time": [["a"]]}))
    with pytest.raises(DataError, match="column time is no time"):
        events(pa.table({"user": [1], "item": [1], "time": ["yesterday"]}))


def test_what_was_delivered_twice_counts_once_and_what_was_done_twice_counts_twice():
    found = events(pa.concat_tables([TABLE, TABLE, TABLE.slice(1, 1)]))
    assert (len(found), found.duplicates) == (4, 5)
    later = pa.Table.from_pylist([{**ROWS[0], "time": datetime(2024, 3, 5)}], TABLE.schema)
    twice = events(pa.concat_tables([TABLE, later]))
    assert (len(twice), twice.duplicates) == (5, 0)
    assert twice.matrix().values[twice.matrix().columns == 0][0] == pytest.approx(np.log2(3))
    untimed = pa.table({"user": [1, 1], "item": [2, 2]})
    assert (len(events(untimed)), events(untimed).duplicates) == (2, 0)


def test_a_pair_has_its_latest_time_and_users_are_in_order_of_time():
    table = pa.table({"user": [1, 1, 1, 1], "item": [5, 6, 5, 7], "time": [40 * DAY, 20 * DAY, 10 * DAY, 30 * DAY]})
    found = events(table).matrix()
    assert found.columns.tolist() == [1, 2, 0]
    assert found.times.tolist() == [20, 30, 40]
    assert found.values == pytest.approx([1, 1, np.log2(3)])


def test_kinds_count_what_they_are_told():
    found = events(TABLE)
    weighed = found.matrix({"buy": 3, "view": 0})
    assert weighed.values.tolist() == pytest.approx([np.log2(7)])
    with pytest.raises(ConfigError, match="no event is of kind 'bye'"):
        found.matrix({"bye": 1})
    with pytest.raises(ConfigError, match="kinds buy=-1"):
        found.matrix({"buy": -1})


def test_events_that_come_later_leave_earlier_codes_as_they_are():
    first = events(TABLE)
    more = events(pa.table({"user": ["cid", "bob"], "item": [7, 11], "time": [10**9, 10**9]}))
    both = together([first, more])
    assert both.user_names.ids(np.arange(4)) == ["ann", "bob", "北京", "cid"]
    assert both.item_names.ids(np.arange(3)) == [7, 9, 11]
    assert np.array_equal(both.users[: len(first)], first.users)
    assert pairs(both) == {**pairs(first), **pairs(more)}
    assert both.kind_names == ("view", "buy", "")
    with pytest.raises(DataError, match="whole numbers in some events and texts in others"):
        together([first, events(pa.table({"user": [1], "item": [7], "time": [10**9]}))])
    with pytest.raises(DataError, match="some events have times"):
        together([first, events(pa.table({"user": ["a"], "item": [7]}))])


def test_no_events_at_all():
    empty = events(TABLE.slice(0, 0))
    assert len(empty) == 0
    assert len(empty.matrix().columns) == 0
    assert empty.user_names.find(["ann"]).tolist() == [-1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4), st.integers(0, 9)), max_size=30), st.integers(0, 30))
def test_any_cut_of_a_log_adds_up_to_the_whole(rows, cut):
    def of(some):
        columns = list(zip(*some, strict=True)) or [[], [], []]
        return events(pa.table({name: pa.array(list(one), pa.int64()) for name, one in
                                zip(("user", "item", "time"), columns, strict=True)}))  # fmt: skip

    rows = list(dict.fromkeys(rows))
    whole, parts = of(rows), together([of(rows[:cut]), of(rows[cut:])])
    one, other = whole.matrix(), parts.matrix()
    assert one.columns.tolist() == other.columns.tolist()
    assert one.values.tolist() == other.values.tolist()
    assert one.starts.tolist() == other.starts.tolist()
