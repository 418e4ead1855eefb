"""Rows of a collection that qualify, and the best of them for what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table

from danlu.commands.recalling import as_text
from danlu.commands.shared import OUT, Flat, GivenPath, Several, news, say
from danlu.config import Options
from danlu.errors import ConfigError
from danlu.flags import as_flags, from_flags
from danlu.recall.candidates import Candidate, Candidates
from danlu.recall.collection import Collection
from danlu.recall.query import Bm25, Fuse, Query
from danlu.recall.rowset import RowSet
from danlu.words import words as language

if TYPE_CHECKING:
    FuseFlags = Options
    Bm25Flags = Options
else:
    FuseFlags, Bm25Flags = map(as_flags, (Fuse, Bm25))

_CHUNK_ROWS = 1 << 17
_SHOWN_ROWS, _SHOWN_TOP = 20, 10
# Characters of a value that a table shows.
_SHOWN = 60


def query(
    collection: GivenPath,
    where: str | None = None,
    /,
    *,
    count: bool = False,
    columns: Annotated[list[str] | None, Several] = None,
    limit: int | None = None,
    out: GivenPath | None = None,
    like: str | None = None,
    words: str | None = None,
    top: int | None = None,
    channels: Annotated[list[str] | None, Several] = None,
    explain: bool = False,
    fuse: Annotated[FuseFlags, Flat] = FuseFlags(),  # noqa: B008 - frozen
    bm25: Annotated[Bm25Flags, Flat] = Bm25Flags(),  # noqa: B008 - frozen
    ids_to: GivenPath | None = None,
) -> None:
    """Rows that qualify, as JSON lines or into a file; or only how many; or the best of them for a text.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    where
        a where-clause: sex = 'F' and age > 25 and interests in ('yoga', 'travel')
    count
        print how many rows there are, and nothing else
    columns
        the columns to show; without it all that came from files
    limit
        rows at most; without it 20, and into a file all
    out
        a .parquet, .csv or .jsonl file to write, which must not be there
    like
        a text: the rows that are most like it, by their words and by the vectors that were made of texts
    words
        the rows that have these words, the best first
    top
        of --like and --words, rows at most; without it 10
    channels
        the channels to ask, as in words:bio and vector:bio_vector; without it all that have an answer
    explain
        a table of which channel has found each row, at which rank and with which score
    ids_to
        write the ids of all rows that qualify into this .parquet, .roaring or .roaring64 file, and show none
    """
    how = {"like": like, "words": words, "top": top, "channels": channels, "explain": explain or None}
    flags = [*fuse.model_fields_set, *bm25.model_fields_set]
    if like is None and words is None:
        _refuse([name for name, value in how.items() if value is not None] + flags, "without --like or --words")
        if where is None:
            raise ConfigError("nothing is asked for", fix="give a where-clause, or a text with --like")
        rest = [n for n, v in (("columns", columns), ("limit", limit), ("out", out)) if v is not None]
        if count:
            _refuse(rest + ["ids_to"] * (ids_to is not None), "beside --count")
            say(str(Collection.open(collection, say=news).count(where)))
        elif ids_to is not None:
            _refuse(rest, "beside --ids_to")
            _ids(Collection.open(collection, say=news), where, ids_to)
        else:
            _qualifying(Collection.open(collection, say=news), where, columns, limit, out)
        return
    vain = {"count": count, "limit": limit is not None, "ids_to": ids_to is not None}
    _refuse([name for name, given in vain.items() if given], "beside --like and --words")
    asked = Query(
        where=where, like=like, text=words, top=_SHOWN_TOP if top is None else top,
        channels=None if channels is None else tuple(name for word in channels for name in word.split(",")),
        fuse=from_flags(Fuse, fuse), bm25=from_flags(Bm25, bm25),
    )  # fmt: skip
    _best(Collection.open(collection, say=news), asked, columns, out, explain)


def _refuse(flags: list[str], why: str) -> None:
    if flags:
        raise ConfigError(f"--{flags[0]} has no effect {why}", fix="leave one of them out")


def _ids(opened: Collection, where: str, path: Path) -> None:
    from danlu.recall.exporting import check_new
    from danlu.recall.ids_out import ID_WRITERS, write_ids

    check_new(path, list(ID_WRITERS), "--ids_to")
    rows = opened.where(where)
    write_ids(opened, rows, path)
    say(str(path))
    news(language()("{count} ids", count=f"{len(rows):,}"))


def _qualifying(opened: Collection, where: str, columns: list[str] | None, limit: int | None, out: Path | None) -> None:
    if limit is not None and limit < 0:
        raise ConfigError(f"--limit {limit}", allowed="0 or more")
    begun = perf_counter()
    rows = opened.where(where)
    milliseconds = 1000 * (perf_counter() - begun)
    told = language()(
        "{count} of {all} rows, in {time} ms",
        count=f"{len(rows):,}",
        all=f"{len(opened):,}",
        time=f"{milliseconds:,.1f}",
    )
    names = _shown_columns(opened, columns)
    if out is None:
        for row in opened.table(rows, names, _SHOWN_ROWS if limit is None else limit).to_pylist():
            say(dumps(row, ensure_ascii=False, default=as_text))
    else:
        _write(opened, names, out, _tables(opened, rows, names, limit))
    news(told)


# -- the best of them -------------------------------------------------------------------------------------


def _best(opened: Collection, asked: Query, columns: list[str] | None, out: Path | None, explain: bool) -> None:
    names = _shown_columns(opened, columns)
    opened.table(opened.everything(), names, 0)  # names that are not there are said before anything is asked
    found = opened.recall(asked)
    if out is not None:
        _write(opened, names, out, iter([_scored(opened, found, names)]))
    if explain:
        _explain(opened, found, names)
    elif out is None:
        for row in _scored(opened, found, names).to_pylist():
            say(dumps(row, ensure_ascii=False, default=as_text))
    said = language()
    for name, seconds in found.seconds.items():
        rows = sum(name in one.places for one in found)
        news(
            said(
                "{channel}: {rows} of the rows found, in {time} ms",
                channel=name,
                rows=rows,
                time=f"{1000 * seconds:,.1f}",
            )
        )
    news(said("{count} of {all} rows that qualify", count=f"{len(found):,}", all=f"{found.among:,}"))


def _scored(opened: Collection, found: Candidates, names: list[str]) -> Any:
    import pyarrow as pa

    return opened.table(found.rows, names).append_column("_score", pa.array([one.score for one in found], pa.float64()))


def _explain(opened: Collection, found: Candidates, names: list[str]) -> None:
    said, table = language(), Table()
    table.add_column(said("rank"), justify="right", no_wrap=True)
    shown = [opened.id_column, *(name for name in names if name != opened.id_column)]
    for name in shown:
        table.add_column(name, overflow="fold")
    for heading in (said("score"), *found.seconds):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = opened.table(found.rows, shown).to_pylist()
    for at, (one, row) in enumerate(zip(found, rows, strict=True), 1):
        values = [as_text(row[name])[:_SHOWN] if row[name] is not None else "–" for name in shown]
        table.add_row(str(at), *values, f"{one.score:.4f}", *(_place(one, name) for name in found.seconds))
    OUT.print(table)


def _place(one: Candidate, channel: str) -> str:
    place = one.places.get(channel)
    return "–" if place is None else f"{place.rank} ({place.score:.3f})"


# -- what is shown and written ----------------------------------------------------------------------------


def _shown_columns(opened: Collection, asked: list[str] | None) -> list[str]:
    if asked is not None:
        return [name for word in asked for name in word.split(",")]
    return [column.name for column in opened.columns if not column.name.startswith("_") and column.of is None]


def _write(opened: Collection, names: list[str], out: Path, tables: Iterator[Any]) -> None:
    """Tables into a file, one after the other; the file is there when it is whole."""
    from danlu.recall.exporting import WRITERS, check_new, write

    check_new(out, list(WRITERS))
    opened.table(opened.everything(), names, 0)  # names that are not there are said before anything is written
    write(out, tables)
    say(str(out))


def _tables(opened: Collection, rows: RowSet, names: list[str], limit: int | None) -> Iterator[Any]:
    left = len(rows) if limit is None else limit
    yield opened.table(rows, names, 0)
    for chunk in rows.chunks():
        for start in range(0, len(chunk), _CHUNK_ROWS):
            if left <= 0:
                return
            some = chunk[start : start + min(_CHUNK_ROWS, left)]
            left -= len(some)
            yield opened.table(some, names)
