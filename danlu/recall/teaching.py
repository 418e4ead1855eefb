"""Events and attributes of a collection -> trained towers, kept with it. Importing it loads torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import Field

from danlu.config import PathText
from danlu.device import Device
from danlu.errors import ConfigError, nearest
from danlu.journal import Journal
from danlu.recall.acting import TOWERS
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.plain import Top
from danlu.recall.collection import Collection
from danlu.recall.files import ArrayWriter
from danlu.recall.learned.attributes import Attributes, Known
from danlu.recall.learned.options import TowerOptions
from danlu.recall.learned.train_options import TowerTrainOptions
from danlu.recall.learned.training import Learnt, learn
from danlu.recall.measure.measuring import Ask
from danlu.recall.rows.bits import Array
from danlu.recall.towering import OF_USERS, Sides, found, listed, of_ids, text_vectors

# Kinds of columns whose values tell rows apart.
_TELLING = ("word", "tags", "boolean", "integer", "real", "date", "time")


class LearnOptions(TowerOptions):
    """Towers of a collection: what is known of rows and users beside what was done."""

    attributes: tuple[str, ...] | None = Field(
        None, description="columns that the items' tower reads; without it all but texts, vectors and ids, [] for none"
    )
    text_vector: str | None = Field(
        None, description="a column of vectors that the items' tower reads too, as bio_vector of --embed bio"
    )
    users: PathText | None = Field(None, description="a collection whose ids are the users, for their attributes")
    user_attributes: tuple[str, ...] | None = Field(None, description="columns of that collection; without it as above")


def train_towers(
    collection: Collection,
    options: LearnOptions,
    how: TowerTrainOptions,
    journal: Journal,
    device: Device,
    *,
    seed: int = 0,
    resume: bool = False,
    how_to_resume: str = "run the same again with resume=True",
    on_step: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> Collection:
    """The next state, with towers trained on its events. Metrics and checkpoints go to the run directory.

    Raises DataError where there are no events, ConfigError for columns that are not there, and what training raises.
    """
    behaviour = collection.behaviour
    sides, of_items, of_users = _told(collection, options)
    what = Learnt(behaviour.histories, of_items, of_users)
    learned = learn(
        what, _towers(options), how, journal, device, seed=seed, resume=resume, how_to_resume=how_to_resume,
        on_step=on_step,
    )  # fmt: skip
    lists = listed(learned, behaviour.histories)
    taught = json.dumps([options.model_dump(mode="json"), how.model_dump(mode="json"), seed])

    def write(writer: ArrayWriter) -> None:
        learned.write(writer)
        writer.add("sides", np.frombuffer(sides.dumped(), np.uint8))
        writer.add("taught", np.frombuffer(taught.encode(), np.uint8))
        if lists is not None:
            lists.write(writer)

    with collection._newest_state() as (state, change):
        folder = change.write(write, len(behaviour.events))
        change.commit(learnt={**state.manifest.learnt, TOWERS: folder})
    return collection._again()


def taught_again(collection: Collection, users: Matrix, device: Device) -> Ask:
    """Towers trained as the collection's were, but on these histories alone; nothing of it is kept.

    Raises ConfigError where the collection has no towers, or they do not say how they were trained.
    """
    towers = collection.behaviour.towers
    if towers is None or towers.taught is None:
        seen = f"{collection.path} has no towers" if towers is None else "its towers do not say how they were trained"
        raise ConfigError(seen, fix=f"train some: danlu recall train {collection.path}")
    given, given_how, seed = json.loads(towers.taught)
    options, how = LearnOptions(**given), TowerTrainOptions(**given_how)
    _, of_items, of_users = _told(collection, options)
    with TemporaryDirectory(prefix="danlu-towers-") as name:
        learned = learn(
            Learnt(users, of_items, of_users), _towers(options), how, Journal(Path(name)), device, seed=seed, held_out=0
        )
    known = None if of_users is None else of_users.sums(learned.weights[OF_USERS])

    def ask(some: Array, n: int) -> Top:
        return learned.recommend(users.taken(some), n, known=None if known is None else known[some])

    return ask


def _towers(options: LearnOptions) -> TowerOptions:
    return TowerOptions(**{name: getattr(options, name) for name in TowerOptions.model_fields})


def _told(collection: Collection, options: LearnOptions) -> tuple[Sides, Known | None, Known | None]:
    """What is known of the items and of the users of a collection's events, beside what was done."""
    events = collection.behaviour.events
    what_for = events.item_names.ids(np.arange(len(events.item_names)))
    items = _known(collection, options.attributes, what_for)
    read = items[1] if items else None
    if options.text_vector is not None:
        texts = text_vectors(collection, options.text_vector, found(collection, what_for))
        none = Known(np.zeros(len(what_for) + 1, np.int64), np.empty(0, np.int32), 0)
        read = replace(read or none, texts=texts)
    people = None if options.users is None else Collection.open(options.users, say=collection._say)
    if options.user_attributes is not None and people is None:
        raise ConfigError(
            "user_attributes has no effect without users", fix="name a collection whose ids are the users"
        )
    who = events.user_names.ids(np.arange(len(events.user_names)))
    users = None if people is None else _known(people, options.user_attributes, who)
    sides = Sides(items[0] if items else None, users[0] if users else None, options.users, options.text_vector)
    return sides, read, users[1] if users else None


def _known(collection: Collection, names: Sequence[str] | None, ids: Sequence[Any]) -> tuple[Attributes, Known] | None:
    """Places of what the collection knows of all its rows, and what it knows of these ids; None for no columns."""
    columns = _telling(collection, names)
    if not columns:
        return None
    attributes = Attributes.of(collection.table(collection.everything(), columns))
    return attributes, attributes.known(of_ids(collection, columns, ids))


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
