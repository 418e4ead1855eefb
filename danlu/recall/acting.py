"""What a collection knows of who did what: events, which are kept, and what is learnt of them, which can be made anew.

A collection's rows are the items of its events; whoever acts is a user, and needs no row. Events are stored under the
ids of both, so rows may be written anew and come later than what was done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.errors import ConfigError, DanluError, DataError, nearest
from danlu.recall.behaviour import fitting
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.models import ItemToItem, Model
from danlu.recall.behaviour.options import BehaviourOptions
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.manifest import DATA, Folder, Manifest
from danlu.recall.opened import Opened
from danlu.recall.rows.bits import Array, Bits
from danlu.recall.rowset import RowSet

if TYPE_CHECKING:
    from danlu.recall.behaviour.events import Events
    from danlu.recall.towering import ServedTowers

HISTORIES, TOWERS = "histories", "towers"
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

    @property
    def is_whole(self) -> bool:
        """Whether each could be opened."""
        return not any(isinstance(one, Damaged) for one in (*self.events, *self.learnt.values()))

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
        opened: the collection whose rows are the items. acts: the files.
        say: told of what is made anew. another: opens the collection at a path.
    """

    def __init__(
        self, opened: Opened, acts: Acts, say: Callable[[str], None], another: Callable[[str], Opened]
    ) -> None:
        self._opened, self._acts, self._say, self._another = opened, acts, say, another
        self._models: dict[str, Model] = {}
        self._allowed: tuple[tuple[Bits, ...], Array] | None = None

    @cached_property
    def events(self) -> Events:
        """All of them. Raises DataError where there are none, Damaged."""
        from danlu.recall.behaviour.events import together
        from danlu.recall.behaviour.stored import read_events

        if not self._acts.events:
            seen = f"{self._opened.path} has no events"
            raise DataError(seen, fix=f"store some: danlu recall events {self._opened.path} FILE")
        return together([read_events(whole(file)) for file in self._acts.events])

    @property
    def has_events(self) -> bool:
        return bool(self._acts.events)

    @property
    def has_towers(self) -> bool:
        return TOWERS in self._acts.learnt

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
            self._say(f"{error.seen}; histories are made anew in memory, with what channels count by default")
            return self.events.matrix(), BehaviourOptions()

    @cached_property
    def item_rows(self) -> Array:
        """int64 a item, its row; -1 for those that the collection has not, or no more."""
        names = self.events.item_names
        return self._opened.find(names.ids(np.arange(len(names))))

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
                self._say(f"{error.seen}; {channel} is learnt anew in memory")
        return _LISTS[channel](self.histories, getattr(self.options, channel))

    @cached_property
    def towers(self) -> ServedTowers | None:
        """The learned channel; None where none was trained, or it is damaged, which is said."""
        from danlu.recall.towering import ServedTowers

        if TOWERS not in self._acts.learnt:
            return None
        try:
            return ServedTowers(self._opened, self.item_rows, whole(self._acts.learnt[TOWERS]), self._people)
        except Damaged as error:
            self._say(f"{error.seen}; train it anew: danlu recall train {self._opened.path}")
            return None

    def _people(self, path: str) -> Opened | None:
        """The collection of users; what is wrong with it is said, and nothing is then known of users."""
        try:
            return self._another(path)
        except DanluError as error:
            self._say(f"attributes of users are not read: {error.seen}")
            return None

    def history(self, user: Any) -> Matrix:
        """One row: what a user did; empty for one who is not known."""
        code = int(self.events.user_names.find([user])[0])
        return self.histories.taken(np.array([code])) if code >= 0 else Matrix.listed([[]], self.histories.width)

    def given(self, ids: Sequence[Any]) -> Array:
        """int32, the items with these ids; those with which nothing was done are passed over."""
        items = self.events.item_names.find(ids)
        return items[items >= 0].astype(np.int32)

    def allowed(self, rows: RowSet) -> Array:
        """uint8 an item: whether the collection has it, and its row is in the set. Kept for the set asked for last."""
        last = self._allowed
        if last is None or last[0] is not rows.parts:
            there = np.flatnonzero(self.item_rows >= 0)
            flags = np.zeros(len(self.item_rows), np.uint8)
            flags[there] = rows.has(self.item_rows[there])
            self._allowed = last = (rows.parts, flags)
        return last[1]


def learnt_of(
    opened: Opened,
    before: Behaviour,
    new: Events,
    options: BehaviourOptions | None,
    write: Callable[[Callable[[ArrayWriter], None], int], Folder],
) -> dict[str, Any]:
    """What a manifest says after further events: they are written, and what channels learn of all of them.

    Args:
        before: of the state that they are added to. options: None goes on as before.

    Raises DataError for events that do not belong to the collection.
    """
    from danlu.recall.behaviour.events import together
    from danlu.recall.behaviour.stored import write_events, write_histories, write_lists

    _check_ids(opened, new)
    folder = write(partial(write_events, events=new), len(new))
    has_events = bool(opened.manifest.events)
    events = together([before.events, new]) if has_events else new
    was = before.options if has_events else None
    options = options or was or BehaviourOptions()
    users = events.matrix(options.counts)
    about = {"options": options.model_dump(mode="json")}
    made = {HISTORIES: write(partial(write_histories, users=users, about=about), len(events))}
    for channel in options.channels:
        if channel in _LISTS:
            goes_on = was is not None and _goes_on(was, options, channel)
            lists = _lists(channel, users, options, before if goes_on else None)
            made[channel] = write(partial(write_lists, model=lists, about={}), len(events))
    kept = {TOWERS: opened.manifest.learnt[TOWERS]} if TOWERS in opened.manifest.learnt else {}
    return {"events": [*opened.manifest.events, folder], "learnt": {**kept, **made}}


def _goes_on(was: BehaviourOptions, options: BehaviourOptions, channel: str) -> bool:
    """Whether what a channel has learnt is of use for learning on."""
    same = was.counts == options.counts and getattr(was, channel) == getattr(options, channel)
    return same and channel in was.channels


def _check_ids(opened: Opened, new: Events) -> None:
    """Raise DataError for events without any item of the collection."""
    if not len(new):
        raise DataError("there is no event in what was given", fix="name a file that has some")
    is_whole, fix = opened.id_type is int, "if the users are its rows, say so: rows=user"
    if new.item_names.is_whole != is_whole:
        kinds = ["texts", "whole numbers"]
        seen = f"items are {kinds[new.item_names.is_whole]} in the events, and ids {kinds[is_whole]} in the collection"
        raise DataError(seen, fix=f"write them alike; {fix}")
    found = opened.find(new.item_names.ids(np.arange(len(new.item_names))))
    if (found < 0).all():
        seen = f"none of the {len(found):,} items of the events is an id of {opened.path}"
        raise DataError(seen, fix=f"name the column of its ids as item; {fix}")


def _lists(channel: str, users: Matrix, options: BehaviourOptions, before: Behaviour | None) -> ItemToItem:
    own = getattr(options, channel)
    if before is None or channel == "ease":
        return _LISTS[channel](users, own)
    model = before.model(channel)
    assert isinstance(model, ItemToItem)
    if channel == "swing":
        return fitting.updated_swing(model, before.histories, users, own)
    return fitting.updated_item_cf(model, before.histories, users, own, options.tolerance)
