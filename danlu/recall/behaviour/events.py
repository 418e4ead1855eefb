"""Who did what, and when: files and tables -> events, checked, with a code for each user, item and kind.

What cannot be an event is an error that names its row: no user, no item, a weight that is not above 0, a time that is
still to come. A row that stands there twice, with the same time, was delivered twice and counts once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from danlu.config import Options
from danlu.errors import ConfigError, DataError, nearest
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.names import Names, coded, joined
from danlu.recall.manifest import Column
from danlu.recall.options import BuildOptions
from danlu.recall.rows.bits import Array
from danlu.recall.sources import Batch, Source, batches, schema_of

TimeUnit = Literal["s", "ms", "us"]
DAY_SECONDS = 86_400
_A_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6}
# Clocks that go wrong by less are no fault.
_EARLY_DAYS = 1.0
MOST_KINDS = 255


class EventOptions(Options):
    """Which columns of a file say who did what, when."""

    user: str = Field("user", description="the column of who did something; whole numbers or text")
    item: str = Field("item", description="the column of what it was done with; whole numbers or text")
    time: str = Field(
        "time", description="the column of when: times, dates, or numbers since 1970; without one, rows follow in order"
    )
    kind: str = Field("kind", description="the column of what was done, such as view or buy; none is needed")
    weight: str = Field("weight", description="the column of how much an event counts, above 0; 1 without it")
    rows: Literal["item", "user"] = Field(
        "item", description="which of the two a row of the collection is; with user, persons are recommended to items"
    )
    time_unit: TimeUnit = Field("s", description="what times that are numbers count, since 1970: s, ms or us")


@dataclass(frozen=True, eq=False)
class Events:
    """Attributes:
    users, items: int32 codes. kinds: uint8 codes. weights: float32.
    times: float64, days since 1970; where none are known, the place of each row.
    duplicates: rows that stood there twice, and count once.
    """

    users: Array
    items: Array
    kinds: Array
    weights: Array
    times: Array
    user_names: Names
    item_names: Names
    kind_names: tuple[str, ...]
    is_timed: bool
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.users)

    def only(self, chosen: Array) -> Events:
        """Some events, by flags or places; codes stay what they are."""
        kept = {name: getattr(self, name)[chosen] for name in ("users", "items", "kinds", "weights", "times")}
        return replace(self, **kept, duplicates=0)

    def matrix(self, kinds: Mapping[str, float] | None = None) -> Matrix:
        """Users with their items: the value of a pair is log2(1 + its weights summed), its time that of the last event.

        One event of weight 1 makes 1; a hundred make 6.7 (as Hu et al. 2008 damp how often something was watched).

        Args:
            kinds: what an event of each kind counts; 0 leaves it out, kinds that are not named count 1.

        Raises ConfigError for a kind that no event has, or counts below 0.
        """
        counted = np.ones(max(len(self.kind_names), 1))
        for name, weight in (kinds or {}).items():
            if name not in self.kind_names:
                fix = nearest(name, self.kind_names)
                raise ConfigError(f"no event is of kind {name!r}", allowed=", ".join(self.kind_names), fix=fix)
            if not 0 <= weight < np.inf:
                raise ConfigError(f"kinds {name}={weight}", allowed="0 or more")
            counted[self.kind_names.index(name)] = weight
        weights = self.weights * counted[self.kinds]
        shape = (len(self.user_names), len(self.item_names))
        chosen = np.flatnonzero(weights > 0)
        pairs = self.users[chosen].astype(np.int64) * shape[1] + self.items[chosen]
        order = np.argsort(pairs, kind="stable")
        pairs, chosen = pairs[order], chosen[order]
        begins = np.flatnonzero(np.diff(pairs, prepend=-1))
        if not len(begins):
            none = np.empty(0, np.int64)
            return Matrix.of(none, none, none, none, shape)
        sums = np.add.reduceat(weights[chosen], begins)
        latest = np.maximum.reduceat(self.times[chosen], begins)
        users, items = np.divmod(pairs[begins], shape[1])
        return Matrix.of(users, items, np.log2(1.0 + sums), latest, shape).latest(None)


def together(parts: Sequence[Events]) -> Events:
    """All events; users and items of the first keep their codes. Raises DataError where ids or times do not agree."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        for what, names, others in (
            ("users", part.user_names, first.user_names),
            ("items", part.item_names, first.item_names),
        ):
            if names.is_whole != others.is_whole:
                seen = f"ids of {what} are whole numbers in some events and texts in others"
                raise DataError(seen, fix="write them alike, as the collection has them")
        if part.is_timed != first.is_timed:
            raise DataError("some events have times and others have none", fix="give all of them times, or none")
    users, of_users = joined([part.user_names for part in parts])
    items, of_items = joined([part.item_names for part in parts])
    kinds = tuple(dict.fromkeys(name for part in parts for name in part.kind_names))
    of_kinds = [np.array([kinds.index(name) for name in part.kind_names], np.uint8) for part in parts]
    begins = np.cumsum([0, *(len(part) for part in parts)])
    times = [
        part.times if first.is_timed else np.arange(begin, begin + len(part), dtype=np.float64)
        for part, begin in zip(parts, begins, strict=False)
    ]
    return Events(
        np.concatenate([codes[part.users] for part, codes in zip(parts, of_users, strict=True)]),
        np.concatenate([codes[part.items] for part, codes in zip(parts, of_items, strict=True)]),
        np.concatenate([codes[part.kinds] for part, codes in zip(parts, of_kinds, strict=True)]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate(times),
        users,
        items,
        kinds,
        first.is_timed,
        sum(part.duplicates for part in parts),
    )


# -- reading ----------------------------------------------------------------------------------------------


def read(sources: Sequence[Source], options: EventOptions | None = None, now: float | None = None) -> Events:
    """The events of some files and tables.

    Args:
        now: days since 1970, after which nothing can have happened yet; by default the clock's.

    Raises DataError for what is no event, ConfigError for columns that are not there.
    """
    options = options or EventOptions()
    roles = _roles(sources, options)
    if options.rows == "user":
        roles = {**roles, "user": roles["item"], "item": roles["user"]}
    columns = [Column(name=name, kind=kind) for name, kind in roles.values()]
    gathered: dict[str, list[Any]] = {role: [] for role in ("user", "item", "kind", "weight", "time")}
    latest = (time.time() / DAY_SECONDS if now is None else now) + _EARLY_DAYS
    for source in sources:
        for batch in batches(source, columns, take=[column.name for column in columns], separator=","):
            _add(gathered, batch, roles, options, latest)
    return _events(gathered, "time" in roles)


def _roles(sources: Sequence[Source], options: EventOptions) -> dict[str, tuple[str, Any]]:
    """Role -> (column, kind) of those that are there."""
    named = {role: getattr(options, role) for role in ("user", "item", "time", "kind", "weight")}
    if twice := [name for name in named.values() if list(named.values()).count(name) > 1]:
        raise ConfigError(f"the column {twice[0]!r} is to be two things", allowed="one column for each")
    there = set().union(*(set(source.columns()) for source in sources))
    for role, name in named.items():
        if name not in there and (role in ("user", "item") or role in options.model_fields_set):
            fix = nearest(name, there) or f"name the column: {role}=…"
            raise ConfigError(f"no source has a column {name!r}", allowed=", ".join(sorted(there)), fix=fix)
    taken = [name for name in named.values() if name in there]
    found = {column.name: column.kind for column in schema_of(sources, BuildOptions(columns=tuple(taken)))}
    roles = {role: (name, found[name]) for role, name in named.items() if name in found}
    allowed = {
        "user": ("integer", "word"), "item": ("integer", "word"), "kind": ("word",), "weight": ("integer", "real"),
        "time": ("time", "date", "integer", "real", "word"),
    }  # fmt: skip
    for role, (name, kind) in roles.items():
        if kind not in allowed[role]:
            raise DataError(f"the {role} column {name} is of kind {kind}", allowed=" or ".join(allowed[role]))
    return roles


def _add(
    gathered: dict[str, list[Any]],
    batch: Batch,
    roles: Mapping[str, tuple[str, Any]],
    options: EventOptions,
    latest: float,
) -> None:
    """Raises DataError for the first row that is no event."""
    for role in ("user", "item", "kind"):
        if role not in roles:
            gathered[role].append(pa.array([""] * batch.rows, pa.large_string()))
            continue
        array = batch.arrays[roles[role][0]]
        if role == "kind":
            array = pc.fill_null(array, "")
        _refuse(batch, pc.is_null(array).to_numpy(zero_copy_only=False), f"no {role}", "give it one, or leave it out")
        gathered[role].append(array)
    weights = np.ones(batch.rows, np.float32)
    if "weight" in roles:
        weights = pc.fill_null(batch.arrays[roles["weight"][0]].cast(pa.float64()), np.nan).to_numpy(
            zero_copy_only=False
        )
        fix = "give it a number above 0; what was taken back or disliked is a kind of its own, counted 0"
        _refuse(batch, ~((weights > 0) & (weights < np.inf)), "a weight that is no number above 0", fix)
    gathered["weight"].append(weights.astype(np.float32))
    if "time" in roles:
        gathered["time"].append(_days(batch, *roles["time"], options.time_unit, latest))


def _refuse(batch: Batch, wrong: Array, what: str, fix: str) -> None:
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0]) + 1
        raise DataError(f"{batch.where}: row {at} of them has {what} ({int(wrong.sum()):,} such rows)", fix=fix)


def _days(batch: Batch, name: str, kind: str, unit: TimeUnit, latest: float) -> Array:
    array = batch.arrays[name]
    if kind == "word":
        try:
            array = array.cast(pa.timestamp("us"))
        except pa.ArrowInvalid as error:
            seen = f"{batch.where}: column {name} is no time: {str(error).splitlines()[0][:200]}"
            raise DataError(
                seen, allowed="2024-02-29 18:30:00", fix="write times so, or as numbers since 1970"
            ) from error
    elif kind == "date":
        array = array.cast(pa.int32())
    if pa.types.is_timestamp(array.type):
        array, a_day = array.cast(pa.int64()), DAY_SECONDS * 10**6
    else:
        a_day = 1 if kind == "date" else DAY_SECONDS * _A_SECOND[unit]
    days = pc.fill_null(array.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False) / a_day
    _refuse(batch, ~np.isfinite(days), "no time", "give it one, or leave the column out: rows then follow in order")
    fix = "mend it; of numbers, time_unit says what they count: s, ms or us"
    _refuse(batch, days > latest, "a time that is still to come", fix)
    return np.asarray(days, np.float64)


def _events(gathered: Mapping[str, list[Any]], is_timed: bool) -> Events:
    users, user_names = coded(pa.chunked_array(gathered["user"] or [pa.array([], pa.int64())]))
    items, item_names = coded(pa.chunked_array(gathered["item"] or [pa.array([], pa.int64())]))
    kinds, kind_names = coded(pa.chunked_array(gathered["kind"] or [pa.array([], pa.large_string())]))
    if len(kind_names) > MOST_KINDS:
        raise DataError(
            f"{len(kind_names):,} kinds of events", allowed=f"{MOST_KINDS}", fix="name another column of kinds"
        )
    weights = np.concatenate([np.empty(0, np.float32), *gathered["weight"]])
    times = np.concatenate([np.empty(0), *gathered["time"]]) if is_timed else np.arange(len(users), dtype=np.float64)
    names = tuple(str(one) for one in kind_names.ids(np.arange(len(kind_names))))
    made = Events(users, items, kinds.astype(np.uint8), weights, times, user_names, item_names, names, is_timed)
    if not is_timed or not len(made):
        return made
    order = np.lexsort((made.weights, made.kinds, made.items, made.users, made.times))
    same = np.ones(len(order) - 1, np.bool_)
    for one in (users, items, made.kinds, weights, times):
        same &= one[order][1:] == one[order][:-1]
    kept = np.ones(len(made), np.bool_)
    kept[order[1:][same]] = False  # lexsort is stable: the first of those that are the same stays
    return replace(made.only(kept), duplicates=int(same.sum()))
