"""Two towers of a collection: what they learn from, where they are kept, and rows that they recommend.

They are trained on the items that have events. Rows without any are known by their attributes alone, as are rows that
come after the training, and users who have done nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from danlu.config import PathText
from danlu.errors import ConfigError, DanluError, nearest
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.files import ArrayFile, ArrayWriter
from danlu.recall.learned.attributes import Attributes, Known
from danlu.recall.learned.options import TowerOptions
from danlu.recall.learned.serving import Learned, unit
from danlu.recall.rows.bits import Array

if TYPE_CHECKING:
    from collections.abc import Callable

    from danlu.device import Device
    from danlu.journal import Journal
    from danlu.recall.collection import Collection
    from danlu.recall.learned.train_options import TowerTrainOptions

TOWERS = "towers"
# Kinds of columns whose values tell rows apart.
_TELLING = ("word", "tags", "boolean", "integer", "real", "date", "time")
_ITEMS, _USERS = "known.attributes.weight", "of_users.attributes.weight"


class LearnOptions(TowerOptions):
    """Towers of a collection: what is known of rows and users beside what was done."""

    attributes: tuple[str, ...] | None = Field(
        None, description="columns that the items' tower reads; without it all but texts, vectors and ids, [] for none"
    )
    users: PathText | None = Field(None, description="a collection whose ids are the users, for their attributes")
    user_attributes: tuple[str, ...] | None = Field(None, description="columns of that collection; without it as above")


@dataclass(frozen=True)
class Sides:
    """Attributes:
    items, users: places of what is known, or None where nothing is read.
    """

    items: Attributes | None
    users: Attributes | None
    users_path: str | None

    def dumped(self) -> bytes:
        read = [None if one is None else one.dumped().decode() for one in (self.items, self.users)]
        return json.dumps([*read, self.users_path], ensure_ascii=False).encode()

    @classmethod
    def loaded(cls, text: bytes) -> Sides:
        items, users, path = json.loads(text)
        loaded = [None if one is None else Attributes.loaded(one.encode()) for one in (items, users)]
        return cls(loaded[0], loaded[1], path)


def train_towers(
    collection: Collection,
    options: LearnOptions,
    how: TowerTrainOptions,
    journal: Journal,
    device: Device,
    *,
    seed: int = 0,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> Collection:
    """The next state, with towers trained on its events. Metrics and checkpoints go to the run directory.

    Raises DataError where there are no events, ConfigError for columns that are not there, and what training raises.
    """
    from danlu.recall.learned.training import Learnt, learn

    behaviour = collection.behaviour
    events = behaviour.events
    items = _known(collection, options.attributes, events.item_names.ids(np.arange(len(events.item_names))))
    people = None if options.users is None else type(collection).open(options.users, say=collection._say)
    if options.user_attributes is not None and people is None:
        raise ConfigError(
            "user_attributes has no effect without users", fix="name a collection whose ids are the users"
        )
    who = events.user_names.ids(np.arange(len(events.user_names)))
    users = None if people is None else _known(people, options.user_attributes, who)
    what = Learnt(behaviour.histories, items[1] if items else None, users[1] if users else None)
    towers = TowerOptions(**{name: getattr(options, name) for name in TowerOptions.model_fields})
    learned = learn(what, towers, how, journal, device, seed=seed, resume=resume, on_step=on_step)
    sides = Sides(items[0] if items else None, users[0] if users else None, options.users)

    def write(writer: ArrayWriter) -> None:
        learned.write(writer)
        writer.add("sides", np.frombuffer(sides.dumped(), np.uint8))

    with collection._newest_state() as (state, change):
        folder = change.write(write, len(events))
        change.commit(learnt={**state.manifest.learnt, TOWERS: folder})
    return collection._again()


def _known(collection: Collection, names: Sequence[str] | None, ids: Sequence[Any]) -> tuple[Attributes, Known] | None:
    """Places of what the collection knows of all its rows, and what it knows of these ids; None for no columns."""
    columns = _telling(collection, names)
    if not columns:
        return None
    attributes = Attributes.of(collection.table(collection.everything(), columns))
    return attributes, attributes.known(_of_ids(collection, columns, ids))


def _telling(collection: Collection, names: Sequence[str] | None) -> list[str]:
    known = {column.name: column.kind for column in collection.columns}
    if names is None:
        own = (collection.id_column, "_source")
        return [name for name, kind in known.items() if kind in _TELLING and name not in own]
    for name in names:
        if known.get(name) not in _TELLING:
            seen = f"{name!r} is of kind {known[name]}" if name in known else f"there is no column {name!r}"
            raise ConfigError(seen, allowed=f"kinds {', '.join(_TELLING)}", fix=nearest(name, known))
    return list(names)


def _of_ids(collection: Collection, columns: Sequence[str], ids: Sequence[Any]) -> pa.Table:
    """A row for each id, null where no row has it."""
    rows = found(collection, ids)
    there = rows >= 0
    table = collection.table(rows[there], columns)
    places = pa.array(np.cumsum(there) - 1, mask=~there)
    return pa.table([table.column(name).take(places) for name in columns], names=list(columns))


def found(collection: Collection, ids: Sequence[Any]) -> Array:
    """The row (int64) of each id, -1 where none has it: also of ids of another type than the collection's."""
    fits = [at for at, one in enumerate(ids) if isinstance(one, collection.id_type) and not isinstance(one, bool)]
    rows = np.full(len(ids), -1, np.int64)
    rows[fits] = collection.find([ids[at] for at in fits])
    return rows


class ServedTowers:
    """What towers recommend in one state of a collection.

    Args:
        file: where they are kept. Raises Damaged.
    """

    def __init__(self, collection: Collection, file: ArrayFile) -> None:
        self._collection = collection
        self.learned = Learned.read(file)
        self.sides = Sides.loaded(bytes(file["sides"]))

    @cached_property
    def _vectors(self) -> tuple[Array, Array]:
        """(float32 (n, dim), int64 (n,) rows): items that were learnt, then rows that have attributes alone."""
        behaviour = self._collection.behaviour
        rows = behaviour.item_rows[: len(self.learned.states)]
        learnt = np.flatnonzero(rows >= 0)
        vectors, of = self.learned.item_vectors[learnt], rows[learnt]
        if self.sides.items is None:
            return vectors, of
        columns = [place.column for place in self.sides.items.places]
        others = (self._collection.everything() - self._collection.rows(of)).rows()
        known = self.sides.items.known(self._collection.table(others, columns))
        states = known.sums(self.learned.weights[_ITEMS])
        told = np.diff(known.starts) > 0
        return np.concatenate([vectors, unit(states[told])]), np.concatenate([of, others[told]])

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
            own = self._collection.behaviour.item_rows[history.columns]
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
        kept = {} if self._people is None else _of_ids(self._people, columns, [user]).to_pylist()[0]
        about = {name: value for name, value in {**kept, **(traits or {})}.items() if value is not None}
        known = attributes.known(pa.Table.from_pylist([about]) if about else pa.table({"": [0]}))
        return known.sums(self.learned.weights[_USERS])

    @cached_property
    def _people(self) -> Collection | None:
        """The collection of users; what is wrong with it is said, and nothing is then known of users."""
        if self.sides.users_path is None:
            return None
        try:
            return type(self._collection).open(self.sides.users_path, say=self._collection._say)
        except DanluError as error:
            self._collection._say(f"attributes of users are not read: {error.seen}")
            return None
