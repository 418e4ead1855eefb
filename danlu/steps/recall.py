"""A step that builds a collection, asks it, and measures how well it finds. It works on rows, and on no model."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from pydantic import Field, model_validator

from danlu.errors import disk_faults
from danlu.journal import Journal
from danlu.recall.behaviour.events import EventOptions
from danlu.recall.behaviour.options import BehaviourOptions
from danlu.recall.collection import Collection
from danlu.recall.embedding import columns_with
from danlu.recall.labels import SplitName, labels_of, measure_events, measure_labels
from danlu.recall.options import BuildOptions
from danlu.recall.profile import Attribute
from danlu.recall.sources import Source, schema_of
from danlu.steps.directory import opened
from danlu.steps.rows import RowsOptions
from danlu.steps.step import FilesStep, Kind, Place, Product, Show

COLLECTION = "collection"
# Of the report: values shown of an attribute, and how often a clause is asked for its time.
_VALUES, _TIMES = 8, 5


class StepEvents(RowsOptions):
    """Who did what with the rows, and what is learnt of it."""

    columns: EventOptions = Field(default_factory=EventOptions, description="which columns say who did what")
    learn: BehaviourOptions = Field(default_factory=BehaviourOptions, description="how channels learn")
    held_out: SplitName | None = Field(
        None,
        description="measure channels on events that they have not seen: the last of each user, the latest by time, "
        "or both",
    )


class RecallStep(RowsOptions, BuildOptions, FilesStep):
    """A collection, built of rows."""

    WORKS_ON = "rows"

    events: StepEvents | None = Field(None, description="who did what with the rows")
    labels: RowsOptions | None = Field(
        None, description="queries with the ids that are right for them; how well they are found is measured"
    )
    ks: tuple[int, ...] = Field((1, 10), min_length=1, description="how many answers are looked at when it is measured")
    queries: tuple[str, ...] = Field(
        (), description="where-clauses that are counted and timed; of the first, the report shows who passes it"
    )

    @model_validator(mode="after")
    def _ks_are_measured(self) -> Self:
        if self.ks != (1, 10) and self.labels is None and (self.events is None or self.events.held_out is None):
            raise ValueError("ks has no effect without labels, or events.held_out")
        if min(self.ks) < 1:
            raise ValueError("ks: allowed: 1 or more")
        return self

    @property
    def build(self) -> BuildOptions:
        return BuildOptions(**{name: getattr(self, name) for name in BuildOptions.model_fields})

    def _sections(self) -> dict[str, RowsOptions]:
        named: dict[str, RowsOptions | None] = {"": self, "events": self.events, "labels": self.labels}
        return {name: one for name, one in named.items() if one is not None}


def _inputs(options: RecallStep, place: Place) -> dict[str, str]:
    found = {}
    for name, section in options._sections().items():
        for key, digest in section.digests(place).items():
            found[f"{name}: {key}" if name and key not in place.files else key] = digest
    return found


def _leaves(options: RecallStep, place: Place, start: Product) -> Product:
    return Product("")


def _check(options: RecallStep, place: Place, start: Product, is_made: bool) -> None:
    if options.source is not None:
        columns_with(schema_of([Source(options.beginning())], options.build), options.build)
    elif place.is_there(*options.paths):
        columns_with(schema_of([Source(path) for path in options.paths], options.build), options.build)
    if options.labels is not None and place.is_there(*options.labels.paths):
        labels_of(options.labels.placed(), f"steps.{place.name}.labels")


def _run(options: RecallStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    with opened(place, options, show, go_on) as journal:
        path = journal.directory / COLLECTION
        with disk_faults(path, "building the collection"):
            shutil.rmtree(path, ignore_errors=True)  # what was begun is not gone on with
        made = _built(path, options, journal, show)
        if options.events is not None:
            made = _with_events(made, options.events, options.ks, journal, show)
        if options.labels is not None:
            labels = labels_of(options.labels.placed(), "labels")
            measured, missing = measure_labels(made, labels, options.ks)
            journal.result("found", {"labels": measured.as_json()})
            show.say(f"found: {_of_last(measured.as_json())}{f'; {missing:,} ids are no rows' if missing else ''}")
        if options.queries:
            _ask(made, options.queries, journal, show)


def _built(path: Path, options: RecallStep, journal: Journal, show: Show) -> Collection:
    begun = perf_counter()
    given: Any = list(options.paths) if options.source is None else options.table()
    show.say("building the collection")
    read = perf_counter() - begun
    made = Collection.build(path, given, options.build, say=show.say)
    seconds = perf_counter() - begun
    figures = {"rows": len(made), "columns": len(made.columns), "bytes": made.size_bytes, "seconds": seconds}
    journal.result("collection", {**figures, "seconds_to_read": read, "channels": list(made.channels)})
    journal.event("built", f"{len(made):,} rows, {made.size_bytes:,} bytes, in {seconds:.1f} s")
    show.say(f"{len(made):,} rows in {seconds:.1f} s")
    return made


def _with_events(
    made: Collection, options: StepEvents, ks: tuple[int, ...], journal: Journal, show: Show
) -> Collection:
    begun = perf_counter()
    given: Any = list(options.paths) if options.source is None else options.table()
    made = made.add_events(given, options.columns, options.learn)
    events = made.behaviour.events
    figures = {"events": len(events), "users": len(events.user_names), "items": len(events.item_names)}
    journal.result(
        "events", {**figures, "seconds": perf_counter() - begun, "channels": made.behaviour.options.channels}
    )
    show.say(f"{len(events):,} events of {len(events.user_names):,} users learnt in {perf_counter() - begun:.1f} s")
    if options.held_out is not None:
        measured = {name: one.as_json() for name, one in measure_events(made, ks, split=options.held_out).items()}
        journal.result("found", measured)
        for name, one in measured.items():
            show.say(f"{name}: {_of_last(one)}")
    return made


def _of_last(measured: Mapping[str, Any]) -> str:
    """What the last channel found, which is all of them together where there are several."""
    last = measured["channels"][-1]
    recalls = ", ".join(f"recall@{k} {one['recall']:.3f}" for k, one in last["at"].items())
    return f"{last['name']}: {recalls} over {measured['questions']:,} questions"


def _ask(made: Collection, queries: tuple[str, ...], journal: Journal, show: Show) -> None:
    asked = []
    for clause in queries:
        rows, taken = 0, []
        for _ in range(_TIMES):
            begun = perf_counter()
            rows = made.count(clause)
            taken.append(1000 * (perf_counter() - begun))
        asked.append({"where": clause, "rows": rows, "milliseconds": min(taken), "first_milliseconds": taken[0]})
        show.say(f"{rows:,} rows in {min(taken):.2f} ms: {clause}")
    journal.result("asked", asked)
    begun = perf_counter()
    profile = made.profile(made.where(queries[0]))
    figures = [_figures(one) for one in profile]
    journal.result("who", {"where": queries[0], "seconds": perf_counter() - begun, "attributes": figures})


def _figures(one: Attribute) -> dict[str, Any]:
    shares = [{**asdict(share), "value": _text(share.value), "tgi": one.tgi(share)} for share in one.shares[:_VALUES]]
    left = {"name": one.name, "kind": one.kind, "known": one.known, "known_of_all": one.known_of_all}
    return {**left, "shares": shares, "more": max(0, len(one.shares) - _VALUES)}


def _text(value: Any) -> str:
    return " – ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _uses(options: RecallStep, place: Place, start: Product) -> list[str]:
    path = shlex.quote(str(place.directory / COLLECTION))
    clause = _quoted(options.queries[0]) if options.queries else '"…"'
    uses = [f"danlu recall query {path} {clause} --count", f"danlu recall profile {path} {clause}"]
    return uses + ([f'danlu recall query {path} --like "…" --top 5'] if options.text or options.embed else [])


def _quoted(clause: str) -> str:
    """For a shell; in double quotes where they do, since clauses have single ones."""
    return shlex.quote(clause) if any(sign in clause for sign in '"$`\\!') else f'"{clause}"'


RECALL = Kind(
    RecallStep, needs_adapter=None, inputs=_inputs, leaves=_leaves, check=_check, run=_run, needs_model=False,
    files=lambda _options: (COLLECTION,), uses=_uses,
)  # fmt: skip
