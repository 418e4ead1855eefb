"""Channels of behaviour: worked out by hand, compiled beside plain, updated beside fitted anew."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.errors import ConfigError
from danlu.recall.behaviour import fitting, kernels
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.models import filled
from danlu.recall.behaviour.options import (
    EaseOptions,
    HotOptions,
    ItemCFOptions,
    SwingOptions,
    UserCFOptions,
)
from danlu.recall.behaviour.plain import Plain, Products, Swing, Top
from danlu.recall.rows.kernels import kernels as set_kernels

# Four users of five items; the last item has no user.
USERS = Matrix.listed([[0, 1], [0, 1, 2], [1, 2], [3, 0]], 5)


def drawn(users, items, events, seed):
    """Users with items, some of both without any; values and times vary."""
    rng = np.random.default_rng(seed)
    chances = 1 / np.arange(1, items + 1)
    pairs = np.unique(rng.integers(0, users, events) * items + rng.choice(items, events, p=chances / chances.sum()))
    values, times = rng.integers(1, 4, len(pairs)), rng.integers(0, 20, len(pairs))
    return Matrix.of(pairs // items, pairs % items, values, times, (users, items)).latest(None)


def alike(one, other):
    return (
        np.array_equal(one.starts, other.starts)
        and np.array_equal(one.columns, other.columns)
        and np.array_equal(one.values, other.values)
    )


def as_dict(lists, row):
    start, stop = lists.starts[row], lists.starts[row + 1]
    return dict(zip(lists.columns[start:stop].tolist(), lists.values[start:stop].tolist(), strict=True))


# -- worked out by hand -----------------------------------------------------------------------------------


def test_item_cf_is_the_cosine_with_busy_users_counting_less():
    two, three = 1 / math.log2(3), 1 / math.log2(4)
    found = as_dict(fitting.item_cf(USERS).neighbours, 0)
    # items 0 and 1 have the users 0 (two items) and 1 (three) in common; each has three users
    assert found == pytest.approx({1: (two + three) / 3, 2: three / math.sqrt(6), 3: two / math.sqrt(3)})


def test_what_lies_apart_in_time_counts_less():
    users = Matrix(np.array([0, 2]), np.array([0, 1], np.int32), np.ones(2, np.float32), np.array([0.0, 30.0]), 2)
    near = as_dict(fitting.item_cf(users).neighbours, 0)[1]
    far = as_dict(fitting.item_cf(users, ItemCFOptions(half_days=10)).neighbours, 0)[1]
    assert far == pytest.approx(near / 4)  # 1 / (1 + 30 / 10)


def test_popularity_is_held_against_the_other_item():
    plain, held = (as_dict(fitting.item_cf(USERS, ItemCFOptions(popularity=p)).neighbours, 3)[0] for p in (0, 1))
    assert held == pytest.approx(plain / 3)


def test_swing_counts_pairs_of_users_who_share_little_else():
    # of item 0 only the users 0 and 1 share another item: they have two in common
    found = as_dict(fitting.swing(USERS).neighbours, 0)
    assert found == pytest.approx({1: 1 / math.sqrt(2) / math.sqrt(3) / (1 + 2)})
    one = as_dict(fitting.swing(USERS).neighbours, 1)
    assert one == pytest.approx({0: 1 / math.sqrt(6) / 3, 2: 1 / math.sqrt(6) / 3})


def test_users_like_this_one_recommend_what_they_have():
    top = fitting.user_cf(USERS).recommend(Matrix.listed([[2]], 5), 3)
    assert top.columns[0, : top.counts[0]].tolist() == [1, 0]
    # the users 1 and 2, over the root of three and of two items; item 2 has two users
    says = 1 / math.log2(3)
    assert top.scores[0, :2] == pytest.approx([says / math.sqrt(3) + says / math.sqrt(2), says / math.sqrt(3)])


def test_ease_is_its_closed_form():
    users = drawn(40, 8, 150, 3)
    model = fitting.ease(users, EaseOptions(l2=2.0, neighbours=7))
    dense = np.zeros((40, 8))
    dense[users.rows, users.columns] = users.values
    inverse = np.linalg.inv(dense.T @ dense + 2.0 * np.eye(8))
    wanted = np.eye(8) - inverse / np.diagonal(inverse)
    found = np.zeros((8, 8))
    found[model.neighbours.rows, model.neighbours.columns] = model.neighbours.values
    assert np.allclose(found, wanted, atol=1e-5)
    few = fitting.ease(users, EaseOptions(l2=2.0, neighbours=2))
    assert (few.neighbours.sizes == 2).all()


def test_ease_says_what_it_does_not_take():
    with pytest.raises(ConfigError, match="EASE on 20,001 items"):
        fitting.ease(Matrix.listed([[0]], 20_001))


def test_what_was_hot_long_ago_is_so_no_more():
    users = Matrix(
        np.array([0, 1, 2, 3]), np.array([0, 0, 1], np.int32), np.ones(3, np.float32), np.array([0.0, 0, 90]), 3
    )
    asked = Matrix.listed([[], [1]], 3)
    assert fitting.hot(users, HotOptions(half_days=30)).recommend(asked, 2).columns.tolist() == [[1, 0], [0, -1]]
    assert fitting.hot(users, HotOptions(half_days=None)).recommend(asked, 2).columns.tolist() == [[0, 1], [0, -1]]
    assert fitting.hot(users, is_timed=False).recommend(asked, 1).columns.tolist() == [[0], [0]]


# -- what every channel keeps to --------------------------------------------------------------------------

FITS = {
    "item_cf": lambda users: fitting.item_cf(users, ItemCFOptions(half_days=3, recency_days=5)),
    "swing": lambda users: fitting.swing(users, SwingOptions(recency_days=5)),
    "user_cf": lambda users: fitting.user_cf(users, UserCFOptions(neighbours=10)),
    "ease": lambda users: fitting.ease(users, EaseOptions(l2=5)),
    "hot": fitting.hot,
}


@pytest.mark.parametrize("name", FITS)
def test_only_what_is_allowed_and_not_seen_and_each_history_for_itself(name):
    users = drawn(60, 30, 500, 1)
    model = FITS[name](users)
    allowed = (np.arange(30) % 3 != 0).astype(np.uint8)
    top = model.recommend(users, 5, allowed=allowed)
    for row in range(len(users)):
        own = users.columns[users.starts[row] : users.starts[row + 1]]
        found = top.columns[row, : top.counts[row]]
        assert allowed[found].all()
        assert not np.isin(found, own).any()
        assert (np.diff(top.scores[row, : top.counts[row]]) <= 0).all()
        assert (top.columns[row, top.counts[row] :] == -1).all()
        alone = model.recommend(users.taken(np.array([row])), 5, allowed=allowed)
        assert np.array_equal(alone.columns[0], top.columns[row])
        assert np.array_equal(alone.scores[0], top.scores[row])
    again = FITS[name](users).recommend(users, 5, allowed=allowed)
    assert np.array_equal(again.scores, top.scores)
    assert np.isin(model.recommend(users, 5, seen=True).columns, users.columns).any()


@pytest.mark.parametrize("name", FITS)
def test_nothing_to_learn_from_and_nobody_to_ask(name):
    nothing = Matrix.listed([], 4)
    model = FITS[name](nothing)
    assert model.recommend(nothing, 3).columns.shape == (0, 3)
    stranger = model.recommend(Matrix.listed([[], [1]], 4), 3)
    assert stranger.counts.tolist() == [0, 0]
    assert np.isfinite(stranger.scores).all()


def test_a_narrow_filter_still_finds_all_that_is_there():
    """A filter that is applied to a list that was cut before would find fewer."""
    users = drawn(200, 50, 2000, 2)
    model = fitting.item_cf(users)
    everything = model.recommend(users, 50)
    for item in (3, 17, 49):
        allowed = np.zeros(50, np.uint8)
        allowed[item] = 1
        found = model.recommend(users, 1, allowed=allowed)
        assert np.array_equal(found.counts > 0, (everything.columns == item).any(axis=1))


def test_who_has_done_little_gets_what_is_hot_behind_it():
    first, then = Top.empty(3, 3), Top.empty(3, 3)
    first.put(0, np.array([4, 5, 6]), np.array([3.0, 2, 1]))
    first.put(1, np.array([5]), np.array([1.0]))
    for row in range(3):
        then.put(row, np.array([7, 5, 8]), np.array([9.0, 8, 7]))
    made = filled(first, then)
    assert made.columns.tolist() == [[4, 5, 6], [5, 7, 8], [7, 5, 8]]
    assert made.scores[1].tolist() == [1, 0, 0]
    assert first.counts.tolist() == [3, 1, 0]


def test_hot_users_and_items_are_capped():
    """A robot with every item changes nothing but by its latest ones, however many it has."""
    users = drawn(50, 40, 300, 4)
    lists = [users.columns[a:b].tolist() for a, b in zip(users.starts, users.starts[1:], strict=False)]
    robot = Matrix.listed([*lists, list(range(40))], 40)
    short = Matrix.listed([*lists, [38, 39]], 40)
    options = SwingOptions(user_items=2)
    assert alike(fitting.swing(robot, options).neighbours, fitting.swing(short, options).neighbours)
    capped = fitting.swing(robot, SwingOptions(item_users=2)).neighbours
    assert capped.sizes.sum() < fitting.swing(robot).neighbours.sizes.sum()


# -- compiled beside plain --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 130), st.booleans(), st.integers(1, 5))
def test_compiled_functions_are_the_plain_ones(seed, rows, width, with_times, most):
    users = drawn(rows, width, rows * 4, seed)
    rng = np.random.default_rng(seed)
    signed = users.weighed(rng.choice([-1.0, 0.0, 1.0], len(users.columns))) if seed % 4 else users
    products = Products(
        signed,  # rows whose sums may be 0 are added up in another way
        users.turned(),
        2.5 if with_times else None,
        rng.random(rows) if seed % 2 else None,
        rng.integers(0, 2, rows, np.uint8) if seed % 3 else None,
        Matrix.listed([[row] for row in range(rows)], rows) if seed % 5 else None,
    )
    swing = Swing(users.turned(), users, rng.random(rows), 0.5, rng.permutation(width).astype(np.int32))
    for what, size in ((products, rows), (swing, width)):
        tops = []
        for side in (kernels.kernels(), Plain()):
            top = Top.empty(size, most)
            (side.products if what is products else side.swing)(what, 0, size, top)
            tops.append(top)
        assert np.array_equal(tops[0].counts, tops[1].counts)
        assert np.allclose(tops[0].scores, tops[1].scores, rtol=1e-6)
        if what is products:  # the same sums in the same order
            assert np.array_equal(tops[0].columns, tops[1].columns)


def test_rows_taken_and_put_in_order_as_by_hand():
    users = drawn(30, 20, 200, 3)
    assert users.taken(np.arange(30)) is users
    assert users.latest(None) is users
    back = users.taken(np.arange(29, -1, -1))
    assert alike(back.taken(np.arange(29, -1, -1)), users)
    mixed = Matrix(users.starts, users.columns, users.values, -users.times, users.width)
    for row, (start, stop) in enumerate(pairwise(users.starts)):
        order = np.argsort(mixed.times[start:stop], kind="stable")
        assert mixed.latest(None).columns[start:stop].tolist() == users.columns[start:stop][order].tolist(), row
    numbers = np.array([3, 0, 3, 1, 0], np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(numbers))])
    assert set_kernels().sorted(numbers, starts).tolist() == np.argsort(numbers, kind="stable").tolist()


def test_threads_change_nothing(monkeypatch):
    users = drawn(400, 300, 4000, 5)
    one = fitting.swing(users).neighbours
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert alike(one, fitting.swing(users).neighbours)


# -- after further events ---------------------------------------------------------------------------------


def split(seed):
    """(earlier, all): users, items and events came to it."""
    everything = drawn(60, 40, 700, seed)
    rng = np.random.default_rng(seed)
    keep = (everything.rows < 50) & (everything.columns < 35) & (rng.random(len(everything.columns)) < 0.95)
    part = everything.only(keep)
    return Matrix(part.starts[:51], part.columns[: part.starts[50]], part.values[: part.starts[50]],
                  part.times[: part.starts[50]], 35), everything  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 500]))
def test_an_update_is_a_new_fit(seed, cap):
    old, new = split(seed)
    item_cf = ItemCFOptions(half_days=3, user_items=cap)
    updated = fitting.updated_item_cf(fitting.item_cf(old, item_cf), old, new, item_cf, 0)
    assert alike(updated.neighbours, fitting.item_cf(new, item_cf).neighbours)
    swing = SwingOptions(user_items=cap, item_users=cap)
    updated = fitting.updated_swing(fitting.swing(old, swing), old, new, swing)
    assert alike(updated.neighbours, fitting.swing(new, swing).neighbours)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.2]))
def test_an_update_with_a_tolerance_is_a_new_fit_within_it(seed, tolerance):
    whole = drawn(60, 40, 700, seed)
    begins = [np.flatnonzero(whole.rows < users) for users in (40, 45, 50, 55, 60)]
    states = [whole.only(np.isin(np.arange(len(whole.columns)), kept)) for kept in begins]
    options = ItemCFOptions(neighbours=5)
    model = fitting.item_cf(states[0], options)
    for old, new in pairwise(states):
        model = fitting.updated_item_cf(model, old, new, options, tolerance)
    factor = ((1 + tolerance) / (1 - tolerance)) ** options.popularity * (1 + 1e-6)
    wanted = fitting.item_cf(states[-1], ItemCFOptions(neighbours=100)).neighbours
    for item in range(40):
        found, all_ = as_dict(model.neighbours, item), as_dict(wanted, item)
        for other, value in found.items():
            assert 1 / factor <= value / all_[other] <= factor
        left = [value for other, value in all_.items() if other not in found]
        if left and len(found) == options.neighbours:
            assert max(left) <= min(found.values()) * factor**2
        else:
            assert not left


def test_an_update_finds_few_lists_anew(monkeypatch):
    users = drawn(3000, 2000, 12_000, 6)
    rng = np.random.default_rng(0)
    new = Matrix.of(
        np.append(users.rows, 0), np.append(users.columns, 1999 - rng.integers(100)), np.append(users.values, 1),
        np.append(users.times, 99), (3000, 2000),
    ).latest(None)  # fmt: skip
    model, seen = fitting.item_cf(users), []
    plain = kernels.products
    monkeypatch.setattr(kernels, "products", lambda what, most: (seen.append(len(what.a)), plain(what, most))[1])
    fitting.updated_item_cf(model, users, new)
    assert 0 < seen[0] < 400


def test_a_tolerance_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="tolerance 1"):
        fitting.updated_item_cf(fitting.item_cf(USERS), USERS, USERS, tolerance=1)
