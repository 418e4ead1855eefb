"""What a collection knows of who did what: events, which are kept, and what is learnt of them, which can be made anew.

A collection's rows are the items of its events; whoever acts is a user, and needs no row. Events are stored under the
ids of both, so rows may be written anew and come later than what was done with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.errors import ConfigError, DataError, nearest
from danlu.recall.behaviour import fitting
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.models import ItemToItem, Model
from danlu.recall.behaviour.options import BehaviourOptions
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, Damaged
from danlu.recall.manifest import DATA, Folder, Manifest
from danlu.recall.rows.bits import Array

if TYPE_CHECKING:
    from danlu.recall.behaviour.events import EventOptions, Events
    from danlu.recall.collection import Collection, Sources
    from danlu.recall.towering import ServedTowers

HISTORIES = "histories"
# Channels whose lists are kept.
_LISTS: dict[str, Callable[..., ItemToItem]] = {
    "item_cf": fitting.item_cf,
    "swing": fitting.swing,
    "ease": fitting.ease,
}


@dataclass(frozen=True, eq=False)
class Acts:
    """Files of events and of what was learnt, mapped while they are there; a damaged one says so when asked for."""

    events: tuple[ArrayFile | Damaged, ...]
    learnt: dict[str, ArrayFile | Damaged]

    @classmethod
    def of(cls, disk: Disk, state: Manifest) -> Acts:
        events = tuple(_opened(disk, folder) for folder in state.events)
        return cls(events, {name: _opened(disk, folder) for name, folder in state.learnt.items()})

    def damage(self) -> list[str]:
        """What is wrong with the files, all of which are read for it."""
        files = [*self.events, *self.learnt.values()]
        found = [one.seen if isinstance(one, Damaged) else one.damage() for one in files]
        return [one for one in found if one]


def _opened(disk: Disk, folder: Folder) -> ArrayFile | Damaged:
    stored = folder.files[DATA]
    try:
        return ArrayFile(disk, f"{folder.name}/{DATA}", stored.size, stored.checksum)
    except Damaged as error:
        return error


def whole(file: ArrayFile | Damaged) -> ArrayFile:
    """Raises Damaged where it is."""
    if isinstance(file, Damaged):
        raise file
    return file


class Behaviour:
    """Events of one state of a collection, and the channels that are learnt of them.

    Args:
        acts: the files. collection: whose rows are the items.
    """

    def __init__(self, collection: Collection, acts: Acts) -> None:
        self._collection, self._acts = collection, acts
        self._models: dict[str, Model] = {}

    @cached_property
    def events(self) -> Events:
        """All of them. Raises DataError where there are none, Damaged."""
        from danlu.recall.behaviour.events import together
        from danlu.recall.behaviour.stored import read_events

        if not self._acts.events:
            seen = f"{self._collection.path} has no events"
            raise DataError(seen, fix=f"store some: danlu recall events {self._collection.path} FILE")
        return together([read_events(whole(file)) for file in self._acts.events])

    @property
    def options(self) -> BehaviourOptions:
        """How channels are learnt."""
        return self._histories[1]

    @property
    def histories(self) -> Matrix:
        """Users with their items."""
        return self._histories[0]

    @cached_property
    def _histories(self) -> tuple[Matrix, BehaviourOptions]:
        from danlu.recall.behaviour.stored import read_histories

        if HISTORIES not in self._acts.learnt:
            return self.events.matrix(), BehaviourOptions()
        try:
            matrix, about = read_histories(whole(self._acts.learnt[HISTORIES]))
            return matrix, BehaviourOptions.model_validate(about["options"])
        except Damaged as error:
            self._collection._say(
                f"{error.seen}; histories are made anew in memory, with what channels count by default"
            )
            return self.events.matrix(), BehaviourOptions()

    @cached_property
    def item_rows(self) -> Array:
        """int64 a item, its row; -1 for those that the collection has not, or no more."""
        names = self.events.item_names
        return self._collection.find(names.ids(np.arange(len(names))))

    @cached_property
    def row_items(self) -> Array:
        """int64 a row, its item; -1 for those with which nothing was done."""
        made = np.full(self._collection.snapshot.starts[-1], -1, np.int64)
        there = np.flatnonzero(self.item_rows >= 0)
        made[self.item_rows[there]] = there
        return made

    def model(self, channel: str) -> Model:
        """Raises ConfigError for a channel that does not stand ready."""
        if channel not in self.options.channels:
            allowed, fix = ", ".join(self.options.channels), nearest(channel, self.options.channels)
            raise ConfigError(f"no channel {channel!r} was learnt of the events", allowed=allowed, fix=fix)
        if channel not in self._models:
            self._models[channel] = self._made(channel)
        return self._models[channel]

    def _made(self, channel: str) -> Model:
        from danlu.recall.behaviour.stored import read_lists

        if channel == "hot":
            return fitting.hot(self.histories, self.options.hot, is_timed=self.events.is_timed)
        if channel == "user_cf":
            return fitting.user_cf(self.histories, self.options.user_cf)
        if channel in self._acts.learnt:
            try:
                return read_lists(whole(self._acts.learnt[channel]))[0]
            except Damaged as error:
                self._collection._say(f"{error.seen}; {channel} is learnt anew in memory")
        return _LISTS[channel](self.histories, getattr(self.options, channel))

    @cached_property
    def towers(self) -> ServedTowers | None:
        """The learned channel; None where none was trained, or it is damaged, which is said."""
        from danlu.recall.towering import TOWERS, ServedTowers

        if TOWERS not in self._acts.learnt:
            return None
        try:
            return ServedTowers(self._collection, whole(self._acts.learnt[TOWERS]))
        except Damaged as error:
            self._collection._say(f"{error.seen}; train it anew: danlu recall train {self._collection.path}")
            return None

    def history(self, user: Any) -> Matrix:
        """One row: what a user did; empty for one who is not known."""
        code = int(self.events.user_names.find([user])[0])
        return self.histories.taken(np.array([code])) if code >= 0 else Matrix.listed([[]], self.histories.width)

    def seeds(self, rows: Array) -> Matrix:
        """One row: the items of these rows, as if a user had done something with each."""
        items = self.row_items[rows]
        return Matrix.listed([items[items >= 0]], self.histories.width)

    def allowed(self, is_allowed: Callable[[Array], Array]) -> Array:
        """uint8 an item: whether the collection has it, and its row may be given.

        Args:
            is_allowed: of rows (int64), a flag each.
        """
        there = np.flatnonzero(self.item_rows >= 0)
        flags = np.zeros(len(self.item_rows), np.uint8)
        flags[there] = is_allowed(self.item_rows[there])
        return flags


def add_events(
    collection: Collection,
    sources: Sources,
    columns: EventOptions | None = None,
    options: BehaviourOptions | None = None,
    *,
    now: float | None = None,
) -> Collection:
    """The next state, with further events and what channels have learnt of all. One commit: all of it or nothing.

    Args:
        columns: which columns say who did what. options: how channels learn; None goes on as before.
        now: days since 1970, after which nothing can have happened; by default the clock's.

    Raises DataError for what is no event and for items that no row has, ConfigError for options that do not fit.
    """
    from danlu.recall.behaviour.events import read
    from danlu.recall.behaviour.stored import write_events
    from danlu.recall.collection import listed_sources

    new = read(listed_sources(sources), columns, now)
    if not len(new):
        raise DataError("there is no event in what was given", fix="name a file that has some")
    with collection._newest_state() as (state, change):
        _check_ids(state, new)
        folder = change.write(lambda writer: write_events(writer, new), len(new))
        learnt = _learnt(state, new, options, change.write)
        change.commit(events=[*state.manifest.events, folder], learnt={**state.manifest.learnt, **learnt})
    return collection._again()


def _check_ids(collection: Collection, new: Events) -> None:
    whole_ids = collection.id_type is int
    if new.item_names.is_whole != whole_ids:
        kinds = ["texts", "whole numbers"]
        seen = f"items are {kinds[new.item_names.is_whole]} in the events, and ids {kinds[whole_ids]} in the collection"
        raise DataError(seen, fix="write them alike; if the users are its rows, say so: rows=user")
    found = collection.find(new.item_names.ids(np.arange(len(new.item_names))))
    if (found < 0).all():
        seen = f"none of the {len(found):,} items of the events is an id of {collection.path}"
        raise DataError(seen, fix="name the column of its ids as item; if the users are its rows, say so: rows=user")


def _learnt(
    collection: Collection, new: Events, options: BehaviourOptions | None, write: Callable[..., Folder]
) -> dict[str, Folder]:
    """Folders of what was learnt of all events together."""
    from danlu.recall.behaviour.events import together
    from danlu.recall.behaviour.stored import write_histories, write_lists

    before = Behaviour(collection, collection._acts)
    has_events = bool(collection.manifest.events)
    events = together([before.events, new]) if has_events else new
    was = before.options if has_events else None
    options = options or was or BehaviourOptions()
    users = events.matrix(options.counts)
    of, goes_on = len(events), was is not None and was.counts == options.counts
    about = {"options": options.model_dump(mode="json")}
    made = {HISTORIES: write(lambda writer: write_histories(writer, users, about), of)}
    for channel in options.channels:
        if channel not in _LISTS:
            continue
        same = goes_on and was is not None and getattr(was, channel) == getattr(options, channel)
        lists = _lists(channel, users, options, before if same and channel in before.options.channels else None)
        made[channel] = write(lambda writer, lists=lists: write_lists(writer, lists, {}), of)
    return made


def _lists(channel: str, users: Matrix, options: BehaviourOptions, before: Behaviour | None) -> ItemToItem:
    own = getattr(options, channel)
    if before is None or channel == "ease":
        return _LISTS[channel](users, own)
    model = before.model(channel)
    assert isinstance(model, ItemToItem)
    if channel == "swing":
        return fitting.updated_swing(model, before.histories, users, own)
    return fitting.updated_item_cf(model, before.histories, users, own, options.tolerance)
