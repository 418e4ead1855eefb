"""Collections: who did what with the rows, what is learnt of it, and how good each way of finding rows is."""

from __future__ import annotations

from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.table import Table

from danlu.commands.recalling import as_id
from danlu.commands.shared import OUT, Flat, GivenPath, Several, news, say
from danlu.errors import ConfigError, disk_faults
from danlu.flags import as_flags, from_flags
from danlu.recall.behaviour.events import EventOptions
from danlu.recall.behaviour.options import BehaviourOptions
from danlu.recall.collection import Collection
from danlu.recall.measure.measuring import Measured
from danlu.recall.query import Query
from danlu.words import words

if TYPE_CHECKING:
    EventFlags = EventOptions
    BehaviourFlags = BehaviourOptions
else:
    EventFlags, BehaviourFlags = map(as_flags, (EventOptions, BehaviourOptions))

# What a column is called, and of which figure it is.
_MEASURES = {
    "recall": "recall",
    "precision": "precision",
    "nDCG": "ndcg",
    "hit rate": "hit_rate",
    "MRR": "mrr",
    "coverage": "coverage",
}


def events(
    collection: GivenPath,
    /,
    *files: GivenPath,
    columns: Annotated[EventFlags, Flat] = EventFlags(),  # noqa: B008 - frozen
    how: Annotated[BehaviourFlags, Flat] = BehaviourFlags(),  # noqa: B008 - frozen
) -> None:
    """Store who did what with the rows of a collection, and learn from it whom to recommend what.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    files
        events: .parquet, .csv, .tsv, .jsonl, .arrow, or folders of them
    """
    if not files:
        raise ConfigError("no file is given", fix="danlu recall events COLLECTION FILE")
    opened = Collection.open(collection, say=news)
    learns = from_flags(BehaviourOptions, how) if how.model_fields_set else None
    made = opened.add_events(list(files), from_flags(EventOptions, columns), learns)
    behaviour, told = made.behaviour, made.behaviour.events
    known = int((behaviour.item_rows >= 0).sum())
    say(
        words()(
            "{path}: {events} events of {users} users with {items} items, {known} of them rows; {channels}",
            path=made.path,
            events=f"{len(told):,}",
            users=f"{len(told.user_names):,}",
            items=f"{len(told.item_names):,}",
            known=f"{known:,}",
            channels=", ".join(behaviour.options.channels),
        )
    )
    if told.duplicates:
        news(words()("{count} events stood there twice and count once", count=f"{told.duplicates:,}"))


def recommend(
    collection: GivenPath,
    user: str | None = None,
    /,
    *,
    items: Annotated[list[str] | None, Several] = None,
    where: str | None = None,
    traits: Annotated[list[str] | None, Several] = None,
    channels: Annotated[list[str] | None, Several] = None,
    columns: Annotated[list[str] | None, Several] = None,
    top: int = 10,
    seen: bool = False,
) -> None:
    """Rows for a user, by what was done; or rows that go with others. As JSON lines, with what found each.

    Parameters
    ----------
    collection
        a folder with events, stored by danlu recall events
    user
        who is asked for, by the id in the events
    items
        ids of rows, as if a user had done something with each; beside a user, after what the user did
    where
        a where-clause that results pass
    traits
        name=value of what is known of the user, for towers that were trained with attributes of users
    channels
        the channels to ask; without it all
    columns
        columns to show of each row; without it none
    top
        results at most
    seen
        give also what the user has met already
    """
    opened = Collection.open(collection, say=news)
    names = opened.behaviour.events.user_names
    query = Query(
        where=where,
        user=None if user is None else as_id(user, names.is_whole),
        items=tuple(as_id(one, opened.id_type is int) for one in items or ()),
        traits=dict(_trait(one) for one in traits) if traits else None,
        channels=tuple(channels) if channels else None,
        seen=seen,
        top=top,
    )
    found = opened.recall(query)
    shown = opened.table(found.rows, columns).to_pylist() if columns else [{} for _ in found]
    for one, more in zip(found, shown, strict=True):
        ranks = {name: place.rank for name, place in one.places.items()}
        row = {"id": one.id, "score": round(one.score, 6), "found_by": ranks, **more}
        say(dumps(row, ensure_ascii=False, default=str))


def _trait(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"--traits {word}", allowed="name=value")
    try:
        return name, loads(value)
    except ValueError:
        return name, value


def measure(
    collection: GivenPath,
    labels: GivenPath | None = None,
    /,
    *,
    k: Annotated[list[int] | None, Several] = None,
    channels: Annotated[list[str] | None, Several] = None,
    split: Literal["last", "time", "both"] | None = None,
    share: float | None = None,
    plot: GivenPath | None = None,
    json: bool = False,
) -> None:
    """How good and how fast every way of finding rows is: against labels, or events that are held out.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    labels
        a .jsonl file of queries and the ids that are right for them; without it events are held out
    k
        how many answers are looked at; 10 without it
    channels
        the channels to measure; without it all but towers, which are trained anew on the events that are not held out
    split
        which events are held out: the last of each user, the latest of all by time, or both in turn, as without it
    share
        of all events, those that are held out by time; 0.1 without it
    plot
        a .svg file for recall at 1, 2, …, which must not be there
    json
        print the figures as JSON
    """
    if labels is not None and (split is not None or share is not None):
        raise ConfigError("--split and --share have no effect beside labels", fix="leave out one or the other")
    if plot is not None and (plot.suffix != ".svg" or plot.exists()):
        raise ConfigError(f"--plot {plot}", allowed="a .svg file that is not there yet")
    opened = Collection.open(collection, say=news)
    ks = tuple(sorted(set(k or [10])))
    if labels is not None:
        found = {"labels": _of_labels(opened, labels, ks, channels)}
    else:
        from danlu.recall.labels import measure_events

        found = measure_events(opened, ks, channels, split or "both", share)
    if json:
        say(dumps({name: one.as_json() for name, one in found.items()}, ensure_ascii=False, indent=2))
    else:
        for name, one in found.items():
            _show(name, one)
    if plot is not None:
        _draw(plot, list(found.values())[-1])


def _of_labels(opened: Collection, path: Path, ks: tuple[int, ...], channels: list[str] | None) -> Measured:
    from danlu.recall.labels import measure_labels, read_labels

    found, missing = measure_labels(opened, read_labels(path), ks, channels)
    if missing:
        news(words()("{count} ids in the labels are no rows", count=f"{missing:,}"))
    return found


def _show(name: str, measured: Measured) -> None:
    said = words()
    title = said("{what}: {questions} questions", what=said(name), questions=f"{measured.questions:,}")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(said("channel"), overflow="fold")
    table.add_column("k", justify="right")
    for heading in (*_MEASURES, "alone", "p50 ms", "p99 ms"):
        table.add_column(said.if_known(heading), justify="right", no_wrap=True)
    for channel in measured.channels:
        for k, quality in channel.at.items():
            figures = [f"{getattr(quality, one):.4f}" for one in _MEASURES.values()]
            times = [f"{one:.2f}" for one in (channel.latency.p50, channel.latency.p99)]
            table.add_row(channel.name, str(k), *figures, f"{channel.alone[k]:.4f}", *times)
    OUT.print(table)


def _draw(path: Path, measured: Measured) -> None:
    from danlu.recall.measure.drawing import draw

    with disk_faults(path, "writing the picture"):
        path.write_text(draw(measured, words()), "utf-8")
    say(str(path))
