"""Two towers of a collection: what they learn from, where they are kept, and rows that they recommend.

They are trained on the items that have events. Rows without any are known by their attributes alone, as are rows that
come after the training, and users who have done nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from danlu.recall.rows.bits import Array

TOWERS = "towers"
_ITEMS, _USERS, _TEXT = "known.attributes.weight", "of_users.attributes.weight", "known.text"


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


class ServedTowers:
    """What towers recommend in one state of a collection.

    Args:
        opened: the collection. item_rows: int64 a item of its events, its row or -1.
        file: where they are kept. people: opens the collection of users at a path; None where that is not there.

    Raises Damaged.
    """

    def __init__(
        self, opened: Opened, item_rows: Array, file: ArrayFile, people: Callable[[str], Opened | None]
    ) -> None:
        self._opened, self._item_rows, self._open_people = opened, item_rows, people
        self.learned = Learned.read(file)
        self.sides = Sides.loaded(bytes(file["sides"]))

    @cached_property
    def _vectors(self) -> tuple[Array, Array]:
        """(float32 (n, dim), int64 (n,) rows): items that were learnt, then rows that have attributes alone."""
        rows = self._item_rows[: len(self.learned.states)]
        learnt = np.flatnonzero(rows >= 0)
        vectors, of = self.learned.item_vectors[learnt], rows[learnt]
        if self.sides.items is None and self.sides.text_vector is None:
            return vectors, of
        others = (self._opened.everything() - self._opened.rows(of)).rows()
        states, told = self._states_of(others)
        return np.concatenate([vectors, unit(states[told])]), np.concatenate([of, others[told]])

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
        is_allowed: Callable[[Array], Array],
        *,
        user: Any = None,
        traits: Mapping[str, Any] | None = None,
        seen: bool = False,
    ) -> tuple[Array, Array]:
        """(rows, cosines) of the n nearest for one user, the best first.

        Args:
            history: one row of items. is_allowed: of rows (int64), a flag each.
            user: the id, by which attributes are found. traits: attributes that are given, over those that are found.
            seen: whether items of the history may be given.
        """
        vectors, rows = self._vectors
        given = is_allowed(rows)
        if not seen:
            own = self._item_rows[history.columns]
            given &= ~np.isin(rows, own)
        chosen = np.flatnonzero(given)
        asked = self.learned.user_vectors(history, self._known_of(user, traits))[0]
        scores = vectors[chosen] @ asked
        few = np.argpartition(-scores, n)[:n] if n < len(scores) else np.arange(len(scores))
        order = few[np.lexsort((rows[chosen[few]], -scores[few]))]
        return rows[chosen[order]], scores[order].astype(np.float64)

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
        return known.sums(self.learned.weights[_USERS])

    @cached_property
    def _people(self) -> Opened | None:
        return None if self.sides.users_path is None else self._open_people(self.sides.users_path)
