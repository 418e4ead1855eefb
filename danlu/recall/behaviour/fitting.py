"""Users with their items -> what each channel knows; and what it knows after further events.

`item_cf` and `swing` find the neighbours of all items or of some, so that an update finds those anew that may have
changed and leaves the others. After an update:

* swing is what a new fit would be, exactly: a list changes with the users of its item and with what those did.
* item-CF is so for a tolerance of 0. A list also holds the norms of the other items, which change with every event of
  a popular one; lists are found anew once such a norm has moved by more than the tolerance t. Every similarity that is
  kept is then within a factor ((1 + t) / (1 - t))^popularity of a new fit's, and none that is left out is above the
  least that is kept by more than twice that.
* user-CF and hot items keep no lists, so nothing of them is ever old. EASE is fitted anew.
"""

from __future__ import annotations

import numpy as np

from danlu.errors import ConfigError
from danlu.recall.behaviour import kernels
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.models import Hot, ItemToItem, UserCF
from danlu.recall.behaviour.options import (
    EaseOptions,
    HotOptions,
    ItemCFOptions,
    SwingOptions,
    UserCFOptions,
)
from danlu.recall.behaviour.plain import Products, Swing, Top
from danlu.recall.rows.bits import Array

EASE_ITEMS = 20_000
# Rows of the Gram matrix that are made at once.
_GRAM_ROWS = 512
TOLERANCE = 0.02


def item_cf(users: Matrix, options: ItemCFOptions | None = None) -> ItemToItem:
    """Neighbours of every item. users: with their items, as `Events.matrix` gives them."""
    options = options or ItemCFOptions()
    capped = users.latest(options.user_items)
    norms = _norms(capped)
    return ItemToItem(_item_cf(capped, norms, _all(capped), options), norms, options.recency_days)


def swing(users: Matrix, options: SwingOptions | None = None) -> ItemToItem:
    """Neighbours of every item."""
    options = options or SwingOptions()
    capped = users.latest(options.user_items)
    return ItemToItem(_swing(capped, _all(capped), options), np.empty(0), options.recency_days)


def updated_item_cf(
    model: ItemToItem, old: Matrix, new: Matrix, options: ItemCFOptions | None = None, tolerance: float = TOLERANCE
) -> ItemToItem:
    """The model after further events.

    Args:
        old: what it was fitted or last updated with. new: the same users and items, and further ones after them.
        tolerance: share by which the norm of an item may have moved before its neighbours' lists are found anew.
    """
    options = options or ItemCFOptions()
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance {tolerance}", allowed="0 to below 1")
    before, after = old.latest(options.user_items), new.latest(options.user_items)
    norms = _norms(after)
    kept = np.concatenate([model.norms, norms[len(model.norms) :]])
    moved = np.abs(norms - kept) > tolerance * kept
    touched = _items_of_changed(before, after) | _beside(after, moved)
    rows = np.flatnonzero(touched).astype(np.int32)
    lists = _replaced(model.neighbours, rows, _item_cf(after, norms, rows, options), after.width)
    return ItemToItem(lists, np.where(moved, norms, kept), options.recency_days)


def updated_swing(model: ItemToItem, old: Matrix, new: Matrix, options: SwingOptions | None = None) -> ItemToItem:
    """The model after further events, as for `updated_item_cf`; it is what a new fit would be."""
    options = options or SwingOptions()
    before, after = old.latest(options.user_items), new.latest(options.user_items)
    rows = np.flatnonzero(_items_of_changed(before, after)).astype(np.int32)
    lists = _replaced(model.neighbours, rows, _swing(after, rows, options), after.width)
    return ItemToItem(lists, model.norms, options.recency_days)


def user_cf(users: Matrix, options: UserCFOptions | None = None) -> UserCF:
    options = options or UserCFOptions()
    capped = users.latest(options.user_items)
    items = capped.turned()
    says = (1.0 / np.log2(1.0 + np.maximum(items.sizes, 1)))[items.rows]
    length = np.sqrt(_sums(capped.rows, capped.values.astype(np.float64) ** 2, len(capped)))
    scale = np.divide(1.0, length, out=np.zeros(len(capped)), where=length > 0)
    return UserCF(
        capped, items.weighed(says).latest(options.item_users), scale, options.neighbours, options.recency_days
    )


def hot(users: Matrix, options: HotOptions | None = None, *, is_timed: bool = True) -> Hot:
    """What is hot when the last event happens. is_timed: whether times are known; without, all events count alike."""
    half = (options or HotOptions()).half_days if is_timed else None
    weights = users.values.astype(np.float64)
    if half is not None and len(users.times):
        weights /= 1.0 + (users.times.max() - users.times) / half
    scores = _sums(users.columns, weights, users.width).astype(np.float32)
    return Hot(scores, np.lexsort((np.arange(users.width), -scores))[: np.count_nonzero(scores)].astype(np.int32))


def ease(users: Matrix, options: EaseOptions | None = None) -> ItemToItem:
    """B = I - P diag(1 / P) with P the inverse of X'X + l2 I, in float32; of each row of B the largest are kept.

    Takes about 12 bytes for each pair of items while it is fitted. Raises ConfigError for more than 20,000 items.
    """
    options = options or EaseOptions()
    if users.width > EASE_ITEMS:
        fix = "leave out EASE, or the items with fewest events; item-CF and swing take any number"
        raise ConfigError(f"EASE on {users.width:,} items", allowed=f"{EASE_ITEMS:,}", fix=fix)
    gram = _gram(users.latest(options.user_items))
    gram[np.diag_indices(len(gram))] += options.l2
    weights = np.linalg.inv(gram)
    del gram
    weights /= -np.diagonal(weights).copy()
    np.fill_diagonal(weights, 0.0)
    return ItemToItem(_largest(weights, options.neighbours), np.empty(0), options.recency_days)


# -- parts ------------------------------------------------------------------------------------------------


def _all(users: Matrix) -> Array:
    return np.arange(users.width, dtype=np.int32)


def _sums(places: Array, weights: Array, size: int) -> Array:
    """float64 a place; bincount alone gives whole numbers where there is nothing to count."""
    return np.bincount(places, weights, size).astype(np.float64)


def _norms(users: Matrix) -> Array:
    """Of each item the sum of its squared values."""
    return _sums(users.columns, users.values.astype(np.float64) ** 2, users.width)


def _item_cf(users: Matrix, norms: Array, rows: Array, options: ItemCFOptions) -> Matrix:
    """Rows of similar items: sums over common users of both values / log2(1 + the user's items), over the norms."""
    of_user = 1.0 / np.log2(1.0 + np.maximum(users.sizes, 1))
    items = users.turned().taken(rows)
    items = items.weighed(of_user[items.columns])
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0) ** options.popularity
    own = Matrix(np.arange(len(rows) + 1), rows, np.ones(len(rows), np.float32), np.zeros(len(rows)), users.width)
    made = kernels.products(Products(items, users, options.half_days, scale, but=own), options.neighbours)
    lists = made.matrix(users.width)
    own_scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0) ** (1 - options.popularity)
    return lists.weighed(own_scale[rows][lists.rows])


def _swing(users: Matrix, rows: Array, options: SwingOptions) -> Matrix:
    weights = 1.0 / np.sqrt(np.maximum(users.sizes, 1))
    items = users.turned().latest(options.item_users)
    made = kernels.swing(Swing(items, users, weights, options.alpha, rows), options.neighbours)
    return made.matrix(users.width)


def _items_of_changed(before: Matrix, after: Matrix) -> Array:
    """A flag for each item of a user whose row has changed, of what it was and what it is."""
    sizes = np.zeros(len(after), np.int64)
    sizes[: len(before)] = before.sizes
    changed = sizes != after.sizes
    same = np.flatnonzero(~changed)
    if len(same):
        was, is_ = before.widened(len(after), after.width).taken(same), after.taken(same)
        differs = (was.columns != is_.columns) | (was.values != is_.values) | (was.times != is_.times)
        changed[same[np.unique(is_.rows[differs])]] = True
    flags = np.zeros(after.width, np.bool_)
    for matrix, users in ((before, changed[: len(before)]), (after, changed)):
        flags[matrix.columns[users[matrix.rows]]] = True
    return flags


def _beside(users: Matrix, items: Array) -> Array:
    """A flag for each item of a user who has one of those."""
    theirs = np.zeros(len(users), np.bool_)
    theirs[users.rows[items[users.columns]]] = True
    flags = np.zeros(users.width, np.bool_)
    flags[users.columns[theirs[users.rows]]] = True
    return flags


def _replaced(lists: Matrix, rows: Array, by: Matrix, width: int) -> Matrix:
    """Lists with these rows in the place of what they were."""
    wide = lists.widened(width, width)
    stays = np.ones(width, np.bool_)
    stays[rows] = False
    old = wide.only(stays[wide.rows])
    owners = np.concatenate([old.rows, rows[by.rows]])
    parts = [
        np.concatenate(pair) for pair in ((old.columns, by.columns), (old.values, by.values), (old.times, by.times))
    ]
    return Matrix.of(owners, parts[0], parts[1], parts[2], (width, width))


def _gram(users: Matrix) -> Array:
    """X'X of the users' values, float32."""
    items, made = users.turned(), np.zeros((users.width, users.width), np.float32)
    for start in range(0, users.width, _GRAM_ROWS):
        stop = min(start + _GRAM_ROWS, users.width)
        rows = items.taken(np.arange(start, stop))
        top: Top = kernels.products(Products(rows, users), users.width)
        made[np.nonzero(top.there)[0] + start, top.columns[top.there]] = top.scores[top.there]
    return made


def _largest(weights: Array, most: int) -> Matrix:
    """Of each row the entries that are largest without their sign, in order of columns."""
    width = len(weights)
    columns = np.empty((width, min(most, max(width - 1, 0))), np.int32)
    for start in range(0, width, _GRAM_ROWS):
        some = np.abs(weights[start : start + _GRAM_ROWS])
        rows = np.arange(start, start + len(some))
        some[rows - start, rows] = -1.0
        places = np.argpartition(-some, max(columns.shape[1] - 1, 0), axis=1)[:, : columns.shape[1]]
        columns[rows] = np.sort(places, axis=1)
    starts = np.arange(width + 1) * columns.shape[1]
    values = np.take_along_axis(weights, columns.astype(np.int64), axis=1).reshape(-1).astype(np.float32)
    return Matrix(starts, columns.reshape(-1), values, np.zeros(len(values)), width).only(values != 0)
