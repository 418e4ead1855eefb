"""Two towers of a collection: what they learn from, where they are kept, and rows that they recommend.

They are trained on the items that have events. Rows without any are known by their attributes alone, as are rows that
come after the training, and users who have done nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from danlu.errors import ConfigError, nearest
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.files import ArrayFile
from danlu.recall.learned.attributes import Attributes
from danlu.recall.learned.serving import Learned, unit
from danlu.recall.opened import Opened
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rowset import RowSet
from danlu.recall.vectors.index import Index
from danlu.recall.vectors.search import nearest as nearest_vectors
from danlu.recall.vectors.tuning import tuned

TOWERS = "towers"
# Items beyond which inverted lists of their vectors are kept: up to so many all are compared in a millisecond.
LISTED_ITEMS = 20_000
# Of the ten items nearest to what users did, lists find so many.
_LISTS_RECALL = 0.95
_LISTS_ASKED = 1024
_ITEMS, OF_USERS, _TEXT = "known.attributes.weight", "of_users.attributes.weight", "known.text"


@dataclass(frozen=True)
class Sides:
    """Attributes:
    items, users: places of what is known, or None where nothing is read.
    text_vector: the column of vectors of items that is read, if one is.
    """

    items: Attributes | None
    users: Attributes | None
    users_path: str | None
    text_vector: str | None = None

    def dumped(self) -> bytes:
        read = [None if one is None else one.dumped().decode() for one in (self.items, self.users)]
        return json.dumps([*read, self.users_path, self.text_vector], ensure_ascii=False).encode()

    @classmethod
    def loaded(cls, text: bytes) -> Sides:
        items, users, path, text_vector = json.loads(text)
        loaded = [None if one is None else Attributes.loaded(one.encode()) for one in (items, users)]
        return cls(loaded[0], loaded[1], path, text_vector)


def text_vectors(opened: Opened, column: str, rows: Array) -> Array:
    """float32 (rows, dim), zeros where a row is -1 or has no vector. Raises ConfigError for another column."""
    known = {one.name: one for one in opened.manifest.columns if one.kind == "vector"}
    if column not in known:
        seen = f"text_vector: {column!r} is no column of vectors"
        raise ConfigError(seen, allowed=", ".join(known) or "(there is none)", fix=nearest(column, known))
    made = np.zeros((len(rows), known[column].dim), np.float32)
    there = np.flatnonzero(rows >= 0)
    values = opened.table(rows[there], [column]).column(0).combine_chunks()
    has_one = values.is_valid().to_numpy(zero_copy_only=False)
    made[there[has_one]] = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, known[column].dim)
    return made


def of_ids(opened: Opened, columns: Sequence[str], ids: Sequence[Any]) -> pa.Table:
    """A row for each id, null where no row has it."""
    rows = found(opened, ids)
    there = rows >= 0
    table = opened.table(rows[there], columns)
    places = pa.array(np.cumsum(there) - 1, mask=~there)
    return pa.table([table.column(name).take(places) for name in columns], names=list(columns))


def found(opened: Opened, ids: Sequence[Any]) -> Array:
    """The row (int64) of each id, -1 where none has it: also of ids of another type than the collection's."""
    fits = [at for at, one in enumerate(ids) if isinstance(one, opened.id_type) and not isinstance(one, bool)]
    rows = np.full(len(ids), -1, np.int64)
    rows[fits] = opened.find([ids[at] for at in fits])
    return rows


@dataclass(frozen=True, eq=False)
class _Passing:
    """Of the rows that may be given the items that were learnt, also as a set, and the places of the others."""

    parts: tuple[Bits, ...]
    items: Array
    others: Array
    bits: Bits


def _best(vectors: Array, chosen: Array, asked: Array, n: int) -> tuple[Array, Array]:
    """(places, scores) of the n chosen ones with the highest products, in any order."""
    scores = vectors @ asked if len(chosen) == len(vectors) else vectors[chosen] @ asked
    few = np.argpartition(-scores, n)[:n] if n < len(scores) else np.arange(len(scores))
    return chosen[few], scores[few]


def listed(learned: Learned, histories: Matrix) -> Index | None:
    """What the vectors of very many items are found by, so far as users with these histories need; None for fewer."""
    if len(learned.states) <= LISTED_ITEMS:
        return None
    made, vectors = Index.made(learned.item_vectors, "inner_product"), learned.item_vectors
    some = np.linspace(0, len(histories) - 1, min(_LISTS_ASKED, len(histories))).astype(np.int64)
    asked = learned.user_vectors(histories.taken(some))
    return replace(made, tuned=tuned(made.over(vectors), _LISTS_RECALL, asked))


class ServedTowers:
    """What towers recommend in one state of a collection.

    Args:
        opened: the collection. item_rows: int64 a item of its events, its row or -1.
        file: where they are kept. people: opens the collection of users at a path; None where that is not there.

    Attributes:
        taught: the options that they were trained with, as JSON; None where an older Danlu has trained them.

    Raises Damaged.
    """

    def __init__(
        self, opened: Opened, item_rows: Array, file: ArrayFile, people: Callable[[str], Opened | None]
    ) -> None:
        self._opened, self._item_rows, self._open_people = opened, item_rows, people
        self.learned = Learned.read(file)
        self.sides = Sides.loaded(bytes(file["sides"]))
        taught = file.get("taught")
        self.taught = None if taught is None else bytes(taught).decode()
        items = len(self.learned.states)
        self._lists = Index.read(file, items).over(self.learned.item_vectors) if "form" in file else None
        self._last: _Passing | None = None

    @cached_property
    def _others(self) -> tuple[Array, Array]:
        """(float32 (n, dim), int64 (n,) rows): those that have attributes alone."""
        if self.sides.items is None and self.sides.text_vector is None:
            return np.empty((0, self.learned.dim), np.float32), np.empty(0, np.int64)
        rows = self._item_rows[: len(self.learned.states)]
        others = (self._opened.everything() - self._opened.rows(rows[rows >= 0])).rows()
        states, told = self._states_of(others)
        return unit(states[told]), others[told]

    def _states_of(self, rows: Array) -> tuple[Array, Array]:
        """(float32 (rows, dim), whether anything is known of each), by attributes and the vector of a text."""
        states, told = np.zeros((len(rows), self.learned.dim), np.float32), np.zeros(len(rows), np.bool_)
        if self.sides.items is not None:
            columns = [place.column for place in self.sides.items.places]
            known = self.sides.items.known(self._opened.table(rows, columns))
            states += known.sums(self.learned.weights[_ITEMS])
            told |= np.diff(known.starts) > 0
        if self.sides.text_vector is not None:
            texts = text_vectors(self._opened, self.sides.text_vector, rows)
            states += texts @ self.learned.weights[f"{_TEXT}.weight"].T + self.learned.weights[f"{_TEXT}.bias"]
            told |= texts.any(1)
        return states, told

    def nearest(
        self,
        history: Matrix,
        n: int,
        among: RowSet,
        *,
        user: Any = None,
        traits: Mapping[str, Any] | None = None,
        seen: bool = False,
    ) -> tuple[Array, Array]:
        """(rows, cosines) of the n nearest for one user, the best first; of items beyond LISTED_ITEMS, by lists.

        Args:
            history: one row of items. among: the rows that may be given.
            user: the id, by which attributes are found. traits: attributes that are given, over those that are found.
            seen: whether items of the history may be given.
        """
        asked = self.learned.user_vectors(history, self._known_of(user, traits))[0]
        own = np.empty(0, np.int64) if seen else self._item_rows[history.columns]
        passing = self._passing(among)
        wanted = n + len(own)  # so many that without those of the history n are left
        if self._lists is None:
            items, scores = _best(self.learned.item_vectors, passing.items, asked, wanted)
        else:
            found = nearest_vectors([self._lists], [passing.bits], asked[None], max(min(wanted, passing.bits.count), 1))
            items, scores = found.rows[0][found.rows[0] >= 0], found.scores[0][found.rows[0] >= 0]
        others, other_scores = _best(self._others[0], passing.others, asked, wanted)
        rows = np.concatenate([self._item_rows[items], self._others[1][others]])
        scores = np.concatenate([scores, other_scores])
        order = np.lexsort((rows, -scores))
        order = order[~np.isin(rows[order], own)][:n]
        return rows[order], scores[order].astype(np.float64)

    def _passing(self, among: RowSet) -> _Passing:
        """Kept for the set that was asked for last."""
        if self._last is None or self._last.parts is not among.parts:
            rows = self._item_rows[: len(self.learned.states)]
            there = np.flatnonzero(rows >= 0)
            items, others = there[among.has(rows[there])], np.flatnonzero(among.has(self._others[1]))
            self._last = _Passing(among.parts, items, others, Bits.of(len(rows), items))
        return self._last

    def _known_of(self, user: Any, traits: Mapping[str, Any] | None) -> Array | None:
        """(1, dim), what is known of a user; None where towers read nothing of users."""
        attributes = self.sides.users
        if attributes is None:
            if traits:
                seen = "the towers know nothing of users but what they do"
                raise ConfigError(seen, fix="train them with users=COLLECTION, or leave traits out")
            return None
        columns = [place.column for place in attributes.places]
        if unknown := [name for name in traits or {} if name not in columns]:
            seen = f"the towers know no trait {unknown[0]!r}"
            raise ConfigError(seen, allowed=", ".join(columns), fix=nearest(unknown[0], columns))
        kept = {} if self._people is None else of_ids(self._people, columns, [user]).to_pylist()[0]
        about = {name: value for name, value in {**kept, **(traits or {})}.items() if value is not None}
        known = attributes.known(pa.Table.from_pylist([about]) if about else pa.table({"": [0]}))
        return known.sums(self.learned.weights[OF_USERS])

    @cached_property
    def _people(self) -> Opened | None:
        return None if self.sides.users_path is None else self._open_people(self.sides.users_path)
