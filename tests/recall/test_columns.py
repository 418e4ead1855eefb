"""Columns of a segment: every form of index against values looked at one by one, and files that do not fit."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.recall.columns import encoding, forms, stored
from danlu.recall.columns.asked import AllOf, Known, Like, OneOf, Range
from danlu.recall.columns.forms import AT_LEAST, DIGITS, EACH, SLICES, Index
from danlu.recall.columns.ids import Ids, again
from danlu.recall.columns.texts import Texts
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import SPARSE
from danlu.recall.rows.kernels import answered, kernels
from danlu.recall.rows.tree import Question


def rows_of(column, test, negated=False):
    tree = column.passing(test, negated)
    rows = column.known.rows
    (found,) = answered([Question(rows, tree)])
    return kernels().places(found, 0, len(found.kinds), rows).tolist()


def with_index(column, bytes_per_row=8.0):
    index = column.made_index(bytes_per_row)
    column.use(lambda: index)
    return column


def reread(column, tmp_path, rows):
    """The column and its index, from their files."""
    disk = Disk(tmp_path)
    number = len(disk.names())
    with ArrayWriter(disk, f"{number}.col") as writer:
        column.write(writer)
    again = encoding.read(ArrayFile(disk, f"{number}.col", writer.size, writer.checksum), rows)
    index = column.made_index(8.0)
    if index is not None:
        with ArrayWriter(disk, f"{number}.idx") as writer:
            index.write(writer)
        file = ArrayFile(disk, f"{number}.idx", writer.size, writer.checksum)
        again.use(lambda: Index.read(file, rows))
    return again


BUDGETS = {"each": 9.0, "at least": 60.0, "digits": 7.0, "slices": 2.0, "none": 0.0}
NUMBERS = {
    "few": lambda rng: rng.integers(0, 3, 500),
    "ages": lambda rng: rng.integers(-20, 100, 3000),
    "wide": lambda rng: rng.integers(-(2**62), 2**62, 500),
    "far apart": lambda rng: rng.choice([-(2**63), -1, 0, 7, 2**63 - 1], 500),
    "real": lambda rng: np.round(rng.normal(size=500), 1),
    "infinite": lambda rng: rng.choice([-math.inf, -0.0, 0.0, 5e-324, math.inf], 300),
}


def ranges_of(values, rng):
    some = [*rng.choice(values, 4).tolist(), values.min().item(), values.max().item(), 0, 25.5]
    for low, high in zip(some, rng.permutation(some).tolist(), strict=True):
        for above in (False, True):
            yield (
                Range(low, high, above, not above),
                lambda v, a=above, x=low, y=high: (v > x if a else v >= x) and (v <= y if a else v < y),
            )
        yield Range(low=low, above=True), lambda v, x=low: v > x
        yield Range(high=high), lambda v, y=high: v <= y
        yield OneOf((low, high)), lambda v, x=low, y=high: v in (x, y)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("values", NUMBERS)
@pytest.mark.parametrize("is_plain", [False, True])
def test_numbers_pass_what_each_of_them_passes(values, budget, is_plain, tmp_path):
    rng = np.random.default_rng(len(values))
    drawn = NUMBERS[values](rng)
    mask = rng.random(len(drawn)) < (0.9 if budget != "at least" else 2)
    column = (encoding.plain_numbers if is_plain else encoding.numbers)(drawn, mask)
    column = with_index(column, BUDGETS[budget])
    again = reread(column, tmp_path, len(drawn))
    listed = drawn.tolist()
    for test, passes in ranges_of(drawn, rng):
        expected = [at for at, value in enumerate(listed) if mask[at] and passes(value)]
        assert rows_of(column, test) == rows_of(again, test) == expected, test
        others = [at for at, value in enumerate(listed) if mask[at] and not passes(value)]
        assert rows_of(column, test, negated=True) == others, test
    assert rows_of(column, Known()) == np.flatnonzero(mask).tolist()
    assert rows_of(column, Known(), negated=True) == np.flatnonzero(~mask).tolist()
    taken, there = again.taken(np.arange(len(drawn)))
    assert there.tolist() == mask.tolist()
    assert np.array_equal(taken[mask], drawn[mask])


def test_the_budget_chooses_the_forms():
    codes = np.random.default_rng(0).integers(0, 101, 20_000)
    column = encoding.numbers(codes, np.ones(len(codes), bool))
    found = {name: set(column.made_index(budget).layout) for name, budget in BUDGETS.items()}
    assert found["none"] == set()
    assert found["slices"] == {SLICES}  # 7 bits: 0.9 bytes a row
    assert found["digits"] == {DIGITS, EACH}  # 19 sets and 101 short lists: 2.4 and about 4
    assert found["at least"] == {AT_LEAST, EACH}
    for budget in BUDGETS.values():
        made = column.made_index(budget).sets
        assert made.sizes.sum() <= budget * len(codes) + 8 * len(made)  # each filled up to a word


def test_a_wide_number_is_sliced_where_a_scan_would_read_more():
    values = np.random.default_rng(0).permutation(200_000) + 10**15
    column = encoding.numbers(values, np.ones(len(values), bool))
    assert isinstance(column, stored.PlainNumbers)
    assert column.made_index(8.0).layout == {SLICES: (0, 18, 0)}
    with_index(column)
    order = np.argsort(values)
    assert rows_of(column, Range(10**15 + 5, 10**15 + 9)) == sorted(order[5:10].tolist())
    assert rows_of(column, Range(low=2**70)) == []
    assert rows_of(column, Range(high=-(2**70)), negated=True) == list(range(len(values)))


def test_what_is_sorted_costs_next_to_nothing():
    """A shard of one value is one byte of a table."""
    codes = np.repeat(np.arange(4), forms.SHARD_ROWS)
    sets = encoding.numbers(codes, np.ones(len(codes), bool)).made_index(8.0).sets
    assert sets.sizes.sum() == 0


WORDS = [
    "",
    "a",
    "ab",
    "aba",
    "b",
    "北京",
    "北海",
    "上海",
    "it's",
    'say "no"',
    "a%b",
    "a_b",
    "\x00",
    "z\U0010ffff",
    "Ab",
]


def drawn_words(rng, size=400):
    mask = rng.random(size) < 0.9
    places = rng.integers(0, len(WORDS), size)
    return np.where(mask, places + 1, 0), mask, [WORDS[at] for at in places.tolist()]


@pytest.mark.parametrize("budget", [0.0, 8.0])
def test_words_pass_what_each_of_them_passes(budget, tmp_path):
    codes, mask, words = drawn_words(np.random.default_rng(0))
    made = encoding.words(codes, [word.encode() for word in WORDS])
    again = reread(made, tmp_path, len(words))
    with_index(made, budget)
    fits = {
        "北%": lambda w: w.startswith("北"), "%": lambda w: True, "a_b": lambda w: re.fullmatch("a.b", w),
        "%海": lambda w: w.endswith("海"), r"a\_%": lambda w: w.startswith("a_"), "zz%": lambda w: False,
        "z\U0010ffff%": lambda w: w.startswith("z\U0010ffff"),
    }  # fmt: skip
    tests = [(Like(pattern), rule) for pattern, rule in fits.items()]
    tests += [(Like("AB%", ignore_case=True), lambda w: w.lower().startswith("ab"))]
    tests += [(OneOf(("北京", "none such", "it's")), lambda w: w in ("北京", "it's"))]
    tests += [(OneOf(("\ud800",)), lambda w: False)]
    tests += [(Range("ab", "b", above=True), lambda w: "ab" < w <= "b")]
    tests += [(Range(low="ab"), lambda w: w >= "ab"), (Range(high="b", below=True), lambda w: w < "b")]
    for test, passes in tests:
        for column in (made, again):
            assert rows_of(column, test) == [at for at, w in enumerate(words) if mask[at] and passes(w)], test
            assert rows_of(column, test, True) == [at for at, w in enumerate(words) if mask[at] and not passes(w)]
    taken, there = again.taken(np.arange(len(words)))
    assert [word for word, is_there in zip(taken, there, strict=True) if is_there] == [
        w for w, m in zip(words, mask, strict=True) if m
    ]


def test_tags_pass_any_all_and_none(tmp_path):
    rng = np.random.default_rng(0)
    names = ["yoga", "travel", "茶", "rare"]
    rows = [None if rng.random() < 0.1 else rng.choice(3, rng.integers(0, 4)).tolist() for _ in range(300)]
    rows[5] = [0, 0, 3]
    starts = np.cumsum([0, *(len(row or []) for row in rows)])
    flat = np.array([code + 1 for row in rows for code in row or []], np.int64)
    made = encoding.tags(starts, flat, [name.encode() for name in names], np.array([row is not None for row in rows]))
    again = reread(made, tmp_path, len(rows))
    with_index(made)
    held = [None if row is None else {names[at] for at in row} for row in rows]
    tests = [
        (OneOf(("yoga", "茶")), lambda has: bool(has & {"yoga", "茶"})),
        (AllOf(("yoga", "travel", "yoga")), lambda has: has >= {"yoga", "travel"}),
        (AllOf(("yoga", "no such")), lambda has: False),
        (OneOf(("no such",)), lambda has: False),
        (OneOf(()), lambda has: False),
        (AllOf(()), lambda has: True),
        (Like("t%"), lambda has: "travel" in has),
    ]
    for test, passes in tests:
        for column in (made, again):
            assert rows_of(column, test) == [at for at, has in enumerate(held) if has is not None and passes(has)], test
            assert rows_of(column, test, True) == [
                at for at, has in enumerate(held) if has is not None and not passes(has)
            ]
    taken, there = again.taken(np.arange(len(rows)))
    assert [set(some) if is_there else None for some, is_there in zip(taken, there, strict=True)] == held
    assert taken[5] == ["rare", "yoga"]  # once each


def test_rare_tags_among_very_many_are_found_without_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "MOST_SETS", 3)
    rows = [[at % 7, 7 + at % 2, *([9] if at == 50 else [])] for at in range(100)]
    names = [f"tag {at}" for at in range(10)]
    starts = np.cumsum([0, *map(len, rows)])
    flat = np.array([tag + 1 for row in rows for tag in row])
    made = encoding.tags(starts, flat, [name.encode() for name in names], np.ones(100, bool))
    again = reread(made, tmp_path, 100)
    for column in (with_index(made), again):
        assert column.index.which.tolist() == [1, 8, 9]  # tag 0 has 15 rows, as tag 1 has, 7 and 8 have 50
        for tag in range(10):
            assert rows_of(column, OneOf((f"tag {tag}",))) == [at for at, row in enumerate(rows) if tag in row]
    assert rows_of(again, AllOf(("tag 9", "tag 1"))) == [50]


def test_columns_of_no_rows_and_of_nulls_alone(tmp_path):
    for size in (0, 3):
        none = np.zeros(size, bool)
        columns = [
            encoding.numbers(np.zeros(size, np.int64), none),
            encoding.plain_numbers(np.zeros(size), none),
            encoding.words(np.zeros(size, np.int64), []),
            encoding.tags(np.zeros(size + 1, np.int64), np.empty(0, np.int64), [], none),
            encoding.texts(np.zeros(size + 1, np.int64), np.empty(0, np.uint8), none),
        ]
        for column in columns:
            again = reread(column, tmp_path, size)
            assert rows_of(again, Known(), True) == list(range(size))
            assert again.taken(np.arange(size))[1].tolist() == [False] * size
        for column in columns[:2]:
            assert rows_of(with_index(column), Range(high=5)) == rows_of(column, Range(high=5), True) == []


# -- ids --------------------------------------------------------------------------------------------------


def as_texts(words):
    return Texts.of([word.encode("utf-8", "surrogatepass") for word in words])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=5), max_size=30), st.lists(st.text(max_size=5), max_size=5))
def test_text_ids_are_found_even_where_their_numbers_meet(ids, others):
    kept = as_texts(ids)
    column = encoding.texts(kept.starts, kept.data, np.ones(len(ids), bool))
    last = {one: at for at, one in enumerate(ids)}
    wanted = [*ids, *others]
    met = Ids(np.zeros(len(ids), np.uint64), np.arange(len(ids), dtype=np.uint32))  # as if all had one number
    with pytest.MonkeyPatch.context() as patch:
        for made in (Ids.of(column), met):
            if made is met:
                patch.setattr("danlu.recall.columns.ids.keys_of", lambda texts: np.zeros(len(texts), np.uint64))
            found = made.find(as_texts(wanted), column)
            assert found.tolist() == [last.get(one, -1) for one in wanted]
            earlier, later = again(column, made)
            assert set(earlier.tolist()) == set(range(len(ids))) - set(last.values())
            assert set(later.tolist()) == {at for at, one in enumerate(ids) if one in ids[:at]}


def test_whole_ids_are_found_with_their_rows():
    column = encoding.plain_numbers(np.array([5, -3, 2**63 - 1, 5, 0]), np.ones(5, bool))
    ids = Ids.of(column)
    assert ids.find(np.array([5, 4, -3, 2**63 - 1, 0, -(2**63)]), column).tolist() == [3, -1, 1, 2, 4, -1]
    assert [some.tolist() for some in again(column, ids)] == [[0], [3]]
    nothing = encoding.plain_numbers(np.empty(0, np.int64), np.empty(0, bool))
    assert Ids.of(nothing).find(np.array([5]), nothing).tolist() == [-1]


def test_whole_numbers_that_no_real_is():
    """2^53 + 1 lies between two reals, 10^400 beyond all of them."""
    big = 2**53
    reals = encoding.numbers(np.array([big, big + 2, -big, 1e300, np.inf, -np.inf]), np.ones(6, bool))
    whole = encoding.numbers(np.array([big + 1, -(2**63), 2**63 - 1, 0]), np.ones(4, bool))
    for test, found in (
        (OneOf((big + 1,)), []),
        (OneOf((big + 2, big + 1)), [1]),
        (Range(low=big + 1), [1, 3, 4]),
        (Range(high=big + 1), [0, 2, 5]),
        (Range(high=big + 1, below=True), [0, 2, 5]),
        (Range(high=-big - 1), [5]),
        (Range(low=-big - 1, above=True), [0, 1, 2, 3, 4]),
        (Range(low=10**400), [4]),
        (Range(low=-(10**400)), [0, 1, 2, 3, 4]),
        (OneOf((10**400,)), []),
    ):
        assert rows_of(with_index(reals), test) == found
    assert rows_of(with_index(whole), Range(high=10**400)) == [0, 1, 2, 3]
    assert rows_of(with_index(whole), Range(low=-(10**400), high=big)) == [1, 3]
    assert rows_of(with_index(whole), OneOf((10**400, big + 1))) == [0]


# -- files ------------------------------------------------------------------------------------------------


def test_sets_that_do_not_fit_together_are_not_followed(tmp_path):
    column = encoding.numbers(np.arange(1000) % 50, np.ones(1000, bool))
    index, disk = column.made_index(8.0), Disk(tmp_path)
    wrong = {
        "kinds": lambda sets: sets._kinds.__setitem__((0, 0), 9),
        "offsets": lambda sets: sets._offsets.__setitem__((3, 0), 10**9),
        "counts": lambda sets: sets._counts.__setitem__((5, 0), -1),
        "longer than a list can be": lambda sets: (
            sets._kinds.__setitem__((0, 0), SPARSE),
            sets._counts.__setitem__((0, 0), 100),
        ),
    }
    for name, spoil in wrong.items():
        sets = column.made_index(8.0).sets
        spoil(sets)
        with ArrayWriter(disk, name) as writer:
            Index(sets, index.layout).write(writer)
        with pytest.raises(Damaged, match="do not fit together"):
            Index.read(ArrayFile(disk, name, writer.size, writer.checksum), 1000)
    with ArrayWriter(disk, "other rows") as writer:
        index.write(writer)
    with pytest.raises(Damaged, match="do not fit together"):
        Index.read(ArrayFile(disk, "other rows", writer.size, writer.checksum), 2_000_000)


def test_a_code_that_no_value_has_is_said():
    column = encoding.numbers(np.arange(10), np.ones(10, bool))
    column.codes[3] = 200
    with pytest.raises(Damaged, match="a code that no value has"):
        column.taken(np.array([3]))
