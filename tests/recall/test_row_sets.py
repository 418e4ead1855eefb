"""Sets of rows: the compiled functions against the plain ones, and both against Python's sets."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.errors import DataError
from danlu.recall import rowset
from danlu.recall.rows import bits as forms
from danlu.recall.rows import kernels as compiled
from danlu.recall.rows import plain, tree
from danlu.recall.rows.bits import DENSE, EMPTY, FULL, SHARD_ROWS, SPARSE, Bits
from danlu.recall.rows.kernels import answered, counted, kernels
from danlu.recall.rows.plain import Answer, Plain
from danlu.recall.rows.tree import And, Between, Codes, Not, Or, Question
from danlu.recall.rowset import RowSet, Snapshot, everything, of_rows

SMALL = 128  # rows of a shard in most tests: what is sparse and what is dense differ within a few rows


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of few rows, in the plain forms: kernels.c has its size compiled in."""
    for module in (forms, plain, rowset):
        monkeypatch.setattr(module, "SHARD_ROWS", SMALL)
    monkeypatch.setattr(plain, "SHARD_WORDS", SMALL // 64)
    monkeypatch.setattr(compiled, "kernels", Plain)
    monkeypatch.setattr(rowset, "kernels", Plain)


def sets(rows):
    """Of every density, as they come: single rows, runs, and what is left of all."""
    few = st.sets(st.integers(0, rows - 1), max_size=20)
    runs = st.tuples(st.integers(0, rows), st.integers(0, rows)).map(lambda ends: set(range(min(ends), max(ends))))
    base = st.one_of(few, runs, few.map(lambda some: set(range(rows)) - some))
    return st.one_of(base, st.tuples(base, few).map(lambda two: two[0] ^ two[1]))


def bits_of(rows, some):
    return Bits.of(rows, np.array(sorted(some), np.int64))


@st.composite
def questions(draw, depth=3):
    """(tree, what a Python set says it holds, rows)."""
    rows = draw(st.integers(1, 5 * SMALL))
    form = draw(st.sampled_from(["u1", "u2", "u4"]))
    codes = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 10, rows).astype(form)
    values = codes.astype(draw(st.sampled_from(["i8", "f8"]))) - 5
    zones = np.array([[v.min(), v.max()] for v in np.split(values, range(SMALL, rows, SMALL))])

    def leaf():
        kind = draw(st.integers(0, 3))
        low = draw(st.integers(0, 9))
        high = draw(st.integers(low, 9))
        if kind == 0:
            some = draw(sets(rows))
            return bits_of(rows, some), some
        if kind == 1:
            return Codes(codes, low, high), {at for at in range(rows) if low <= codes[at] <= high}
        if kind == 2:
            chosen = np.array(draw(st.lists(st.integers(0, 1), min_size=high + 1, max_size=high + 1)), np.uint8)
            return Codes(codes, chosen=chosen), {at for at in range(rows) if codes[at] <= high and chosen[codes[at]]}
        return Between(values, zones, low - 5, high - 5), {at for at in range(rows) if low <= codes[at] <= high}

    def node(left):
        kind = draw(st.integers(0, 3)) if left else 0
        if kind == 0:
            return leaf()
        if kind == 1:
            part, some = node(left - 1)
            return Not(part), set(range(rows)) - some
        parts = [node(left - 1) for _ in range(draw(st.integers(0, 3)))]
        held = [some for _, some in parts]
        trees = tuple(part for part, _ in parts)
        if kind == 2:
            return And(trees), set(range(rows)).intersection(*held)
        return Or(trees), set().union(*held)

    return (*node(depth), rows)


def test_plain_forms_agree_with_pythons_sets(small_shards):
    @settings(max_examples=100, deadline=None)
    @given(questions())
    def holds(asked):
        asked_tree, expected, rows = asked
        (found,) = answered([Question(rows, asked_tree)])
        assert found == bits_of(rows, expected)
        assert Plain().places(found, 0, len(found.kinds), rows).tolist() == sorted(expected)
        assert counted([Question(rows, asked_tree)]) == [len(expected)]

    holds()


needs_compiler = pytest.mark.skipif(isinstance(kernels(), Plain), reason="no C compiler here")


def drawn(rng, rows, density):
    return Bits.of(rows, np.flatnonzero(rng.random(rows) < density))


@pytest.fixture(scope="module")
def leaves():
    """Of every kind and form, over two shards and a part."""
    rng, rows = np.random.default_rng(0), 2 * SHARD_ROWS + 777
    codes = rng.integers(0, 9, rows)
    codes[:SHARD_ROWS] = 4  # a shard of one value
    values = rng.normal(size=rows)
    cuts = np.split(values, [SHARD_ROWS, 2 * SHARD_ROWS])
    zones = np.array([[v.min(), v.max()] for v in cuts])
    whole = [(v - 5) * 10**12 for v in np.split(codes.astype(np.int64), [SHARD_ROWS, 2 * SHARD_ROWS])]
    sets = [drawn(rng, rows, density) for density in (0, 1e-5, 1e-3, 0.02, 0.04, 0.5, 0.99, 1)]
    mixed = Bits.of(rows, np.concatenate([np.arange(SHARD_ROWS), np.array([SHARD_ROWS, 2 * SHARD_ROWS + 776])]))
    scans = [Codes(codes.astype(form), 2, 5) for form in (np.uint8, np.uint16, np.uint32)]
    tables = [
        Codes(codes.astype(form), chosen=np.array([1, 0, 0, 1, 1, 0], np.uint8)) for form in (np.uint8, np.uint32)
    ]
    numbers = np.concatenate(whole)
    ranges = [
        Between(values, zones, -0.5, 0.25),
        Between(values, zones, -100.0, 100.0),
        Between(values, zones, 50.0, 60.0),
        Between(numbers, np.array([[v.min(), v.max()] for v in whole]), -(10**12), 2 * 10**12),
    ]
    return rows, codes, [*sets, mixed, *scans, *tables, *ranges]


@needs_compiler
def test_compiled_functions_agree_with_the_plain_ones(leaves):
    rows, _, parts = leaves
    rng = np.random.default_rng(1)
    shards = forms.shards_of(rows)

    def node(left):
        if not left or rng.random() < 0.2:
            return parts[rng.integers(len(parts))]
        if rng.random() < 0.3:
            return Not(node(left - 1))
        return (And, Or)[rng.integers(2)](tuple(node(left - 1) for _ in range(rng.integers(4))))

    kinds = set()
    for asked in [*parts, *map(Not, parts), *(node(3) for _ in range(60))]:
        question, seen = Question(rows, asked), []
        for side in (kernels(), Plain()):
            out = Answer.of(rows)
            side.evaluate(question, 0, shards, np.zeros(shards, np.int64), out)
            alone = np.zeros(shards, np.int64)
            side.evaluate(question, 1, 2, alone, None)
            seen.append((out.bits(rows), alone))
        assert seen[0][0] == seen[1][0]
        assert seen[0][1].tolist() == seen[1][1].tolist() == [0, seen[0][0].counts[1], 0]
        kinds |= set(seen[0][0].kinds.tolist())
    assert kinds == {EMPTY, FULL, SPARSE, DENSE}


@needs_compiler
def test_compiled_places_and_histograms_agree_with_the_plain_ones(leaves):
    rows, codes, parts = leaves
    for part in (part for part in parts if isinstance(part, Bits)):
        for most in (0, 3, rows):
            sides = [side.places(part, 0, 3, most) for side in (kernels(), Plain())]
            assert np.array_equal(*sides)
        for form in (np.uint8, np.uint16, np.uint32):
            outs = [np.zeros(7, np.int64), np.zeros(7, np.int64)]  # of 9 codes: two are passed over
            for side, out in zip((kernels(), Plain()), outs, strict=True):
                side.histogram(part, codes.astype(form), out, 0, 3)
            assert np.array_equal(*outs)


@needs_compiler
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_compiled_hashes_agree_with_the_plain_ones(texts):
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    data = np.frombuffer(b"".join(texts), np.uint8)
    sides = [side.hashes(offsets, data) for side in (kernels(), Plain())]
    assert np.array_equal(*sides)
    made = sides[0].tolist()
    assert len(set(made)) == len(set(texts))  # so few never meet by chance


@needs_compiler
def test_a_deep_chain_needs_little_memory_and_a_wide_one_is_right():
    rows = SHARD_ROWS
    rng = np.random.default_rng(2)
    some = [drawn(rng, rows, 0.5) for _ in range(4)]
    chain, right = some[0], some[0]
    for at in range(200):
        chain = (And if at % 3 else Or)((chain, some[at % 4]))
        right = (And if at % 3 else Or)((some[at % 4], right)) if at < 40 else right
    assert Question(rows, chain).depth == 1
    assert Question(rows, right).depth == 40
    for asked in (chain, right):
        out = Answer.of(rows)
        Plain().evaluate(Question(rows, asked), 0, 1, np.zeros(1, np.int64), out)
        assert answered([Question(rows, asked)]) == [out.bits(rows)]


@needs_compiler
def test_damaged_places_and_codes_lead_nowhere():
    """What a flipped bit may leave in a file that is only mapped."""
    rows = 1000
    wild = np.array([3, 2**31, 4_000_000_000, 999], np.uint32).view(np.uint64)
    damaged = Bits(rows, wild, np.array([SPARSE], np.uint8), np.zeros(1, np.int64), np.array([4]))
    full = Bits.whole(rows, FULL)
    (found,) = answered([Question(rows, And((Or((damaged, bits_of(rows, {5}))), full)))])
    assert kernels().places(found, 0, 1, rows).tolist() == [3, 5, 999]
    codes = np.full(rows, 2**31, np.uint32)
    assert counted([Question(rows, Codes(codes, chosen=np.ones(3, np.uint8)))]) == [0]
    counts = np.zeros(3, np.int64)
    kernels().histogram(damaged, codes, counts, 0, 1)
    assert counts.tolist() == [0, 0, 0]


def test_threads_answer_as_one_does(monkeypatch, leaves):
    rows, _, parts = leaves
    question = Question(rows, Or((And((parts[5], parts[6])), parts[1])))
    monkeypatch.setattr(compiled, "_SHARDS_A_THREAD", 1)
    alone = answered([question] * 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert answered([question] * 3) == alone
    assert counted([question] * 3) == [bits.count for bits in alone]


def test_without_a_compiler_the_plain_forms_answer():
    code = "from danlu.recall.rows.kernels import kernels; print(type(kernels()).__name__)"
    environment = {**os.environ, "DANLU_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Plain\n"


# -- row sets ---------------------------------------------------------------------------------------------


def snapshot(*segments, number=1):
    return Snapshot("people.recall", number, tuple(bits_of(rows, live) for rows, live in segments))


LIVE = snapshot((300, set(range(300)) - {7}), (1, {0}), (200, set(range(0, 200, 2))))
ALL = [*(row for row in range(300) if row != 7), 300, *range(301, 501, 2)]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(ALL)), st.sets(st.sampled_from(ALL)))
def test_row_sets_are_sets(a, b):
    x, y = of_rows(LIVE, a), of_rows(LIVE, b)
    for made, meant in ((x & y, a & b), (x | y, a | b), (x - y, a - b), (x ^ y, a ^ b), (~x, set(ALL) - a)):
        assert list(made) == sorted(meant)
        assert len(made) == len(meant)
        assert made.rows().tolist() == sorted(meant)
        assert made.rows(3).tolist() == sorted(meant)[:3]
        assert made == of_rows(LIVE, meant)
        assert bool(made) == bool(meant)
    assert all((row in x) == (row in a) for row in range(-1, 502))


def test_a_row_set_takes_numbers_in_any_order_and_leaves_out_what_is_deleted():
    assert list(of_rows(LIVE, [300, 5, 7, 5, 499])) == [5, 300, 499]
    assert list(of_rows(LIVE, np.array([], np.int32))) == []
    assert len(everything(LIVE)) == len(ALL)
    assert "5" not in everything(LIVE)


@pytest.mark.parametrize("wrong", [-1, 501])
def test_numbers_that_no_row_has_are_refused(wrong):
    with pytest.raises(DataError, match=f"no row {wrong}"):
        of_rows(LIVE, [wrong, 3])


def test_row_sets_of_two_snapshots_do_not_mix():
    later = snapshot((300, set(range(300))), number=2)
    for mix in (
        lambda: everything(LIVE) & everything(later),
        lambda: everything(LIVE) | everything(later),
        lambda: everything(LIVE) - everything(later),
        lambda: everything(LIVE) == everything(later),
    ):
        with pytest.raises(DataError, match=r"two snapshots: 1 of people.recall and 2"):
            mix()


def test_an_empty_collection_has_an_empty_set():
    nothing = RowSet(snapshot(), ())
    assert list(~nothing) == list(nothing.rows()) == []
    assert len(nothing) == 0


def test_memory_goes_by_what_is_in_the_set():
    rows = 4 * SHARD_ROWS
    assert Bits.whole(rows, FULL).bytes == 0
    assert Bits.of(rows, np.array([5, SHARD_ROWS])).bytes == 16  # two lists of one place, each filled up to a word
    assert Bits.of(rows, np.arange(0, SHARD_ROWS, 2)).bytes == SHARD_ROWS // 8
    assert tree.MOST_DEPTH < 100  # buffers of 128 KB: under 13 MB
