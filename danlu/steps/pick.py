"""A step that picks rows of a collection as training examples, and writes them as a file for later steps."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from danlu.config import PathText
from danlu.errors import ConfigError
from danlu.recall.collection import Collection
from danlu.recall.exporting import write
from danlu.recall.picking import PickOptions, check_readable, pick, tables, written_columns
from danlu.steps.directory import opened
from danlu.steps.recall import COLLECTION
from danlu.steps.step import FilesStep, Kind, Place, Product, Show

ROWS = "rows.jsonl"


class PickStep(PickOptions, FilesStep):
    """Rows of a collection, picked as training examples."""

    WORKS_ON = "a collection"

    collection: PathText | None = Field(
        None, description="the collection; of the last step of kind recall if none is named"
    )


def _collection(options: PickStep, place: Place) -> str:
    return options.collection or place.latest(COLLECTION, "collection")


def _inputs(options: PickStep, place: Place) -> dict[str, str]:
    return place.read(_collection(options, place), None if options.like is None else str(options.like))


def _leaves(options: PickStep, place: Place, start: Product) -> Product:
    return Product("")


def _check(options: PickStep, place: Place, start: Product, is_made: bool) -> None:
    path = _collection(options, place)
    if place.is_there(path):
        opened_one = Collection.open(path)
        written_columns(opened_one, options)
        for clause in (options.where, options.like_where):
            if clause is not None:
                opened_one.where(clause)


def _run(options: PickStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    source = Collection.open(_collection(options, place), say=show.say)
    with opened(place, options, show, go_on) as journal:
        written = written_columns(source, options)
        found = pick(source, options, show.say)
        if not len(found.rows):
            seen = f"steps.{place.name}: no row is left of {found.among:,} that qualify"
            raise ConfigError(
                seen, fix="ask for others with where, give other examples, or keep repeats with near=null"
            )
        check_readable(source, found, written)
        path = journal.directory / ROWS
        path.unlink(missing_ok=True)
        write(path, tables(source, found, written))
        left_out = {"empty": found.empty, "repeats": found.repeats, "examples": found.examples}
        figures = {"rows": len(found.rows), "among": found.among, "looked_at": found.looked_at, **left_out}
        journal.result("picked", figures)
        said = f"{len(found.rows):,} of {found.among:,} rows that qualify; {found.repeats:,} repeat another"
        journal.event("picked", said, **figures)
        show.say(said)


def _uses(options: PickStep, place: Place, start: Product) -> list[str]:
    return [f"danlu data check {Path(place.directory / ROWS)}"]


PICK = Kind(
    PickStep, needs_adapter=None, inputs=_inputs, leaves=_leaves, check=_check, run=_run, needs_model=False,
    files=lambda _options: (ROWS,), uses=_uses,
)  # fmt: skip
