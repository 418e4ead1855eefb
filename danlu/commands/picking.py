"""Rows of a collection, picked as training examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from danlu.commands.shared import Flat, GivenPath, news, say
from danlu.config import Options
from danlu.errors import ConfigError
from danlu.flags import as_flags, from_flags
from danlu.recall.collection import Collection
from danlu.recall.exporting import check_new, write
from danlu.recall.picking import Picked, PickOptions, check_readable, tables, written_columns
from danlu.recall.picking import pick as picked_of
from danlu.words import words

if TYPE_CHECKING:
    PickFlags = Options
else:
    PickFlags = as_flags(PickOptions)


def pick(
    collection: GivenPath,
    /,
    *,
    out: GivenPath,
    how: Annotated[PickFlags, Flat] = PickFlags(),  # noqa: B008 - frozen
) -> None:
    """Pick training examples: rows that qualify, like some that are given, none of which says another again.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    out
        a .jsonl file to write, which must not be there; danlu train --data.path takes it
    """
    options = from_flags(PickOptions, how)
    check_new(out, [".jsonl"])
    opened = Collection.open(collection, say=news)
    written = written_columns(opened, options)
    found = picked_of(opened, options, news)
    if not len(found.rows):
        raise ConfigError(
            f"no row is left: of {found.among:,} that qualify, {found.looked_at:,} were compared; {found.empty:,} have "
            f"no text, {found.repeats:,} repeat another or an example",
            fix="ask for others with --where, give other examples, or keep repeats with --near null",
        )
    check_readable(opened, found, written)
    write(out, tables(opened, found, written))
    say(str(out))
    _tell(found)


def _tell(found: Picked) -> None:
    said = words()
    news(
        said(
            "{count} of {all} rows that qualify; of {looked} that were compared, {empty} have no text and {repeats} "
            "repeat another",
            count=f"{len(found.rows):,}",
            all=f"{found.among:,}",
            looked=f"{found.looked_at:,}",
            empty=f"{found.empty:,}",
            repeats=f"{found.repeats:,}",
        )
    )
    if found.examples:
        news(said("like {count} examples, taking turns", count=f"{found.examples:,}"))
