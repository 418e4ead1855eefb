"""Collections: rows that qualify out of very many, who they are, and what lies on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from itertools import islice
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from danlu.commands.shared import ERRORS, OUT, Flat, GivenPath, Several, news, say
from danlu.config import Options
from danlu.errors import ConfigError, DataError, size_in_words
from danlu.flags import as_flags, from_flags
from danlu.recall.collection import Collection
from danlu.recall.options import BuildOptions
from danlu.recall.profile import Attribute, Share
from danlu.words import words

if TYPE_CHECKING:
    BuildFlags = Options
else:
    BuildFlags = as_flags(BuildOptions)


def build(
    *files: GivenPath,
    out: GivenPath,
    sql: str | None = None,
    how: Annotated[BuildFlags, Flat] = BuildFlags(),  # noqa: B008 - frozen
) -> None:
    """Make a collection out of tables: rows of any number, in memory that does not grow with them.

    Parameters
    ----------
    files
        .parquet, .csv, .tsv, .jsonl, .arrow, or folders of them; or a database of DuckDB or SQLite
    out
        the folder to make; it must not be there, or be empty
    sql
        a query of the database whose rows are taken; without it the only table
    """
    if not files:
        raise ConfigError("no file is given", fix="danlu recall build FILE --out FOLDER")
    options = from_flags(BuildOptions, how)
    with _progress() as progress:
        made = Collection.build(out, _given(files, sql), options, progress=progress, say=news)
    _tell(made)


def append(collection: GivenPath, /, *files: GivenPath, upsert: bool = False, sql: str | None = None) -> None:
    """Add rows to a collection.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    files
        .parquet, .csv, .tsv, .jsonl, .arrow, or folders of them; or a database of DuckDB or SQLite
    upsert
        rows whose id is there already take the place of the earlier ones; without it they are an error
    sql
        a query of the database whose rows are taken; without it the only table
    """
    if not files:
        raise ConfigError("no file is given", fix="danlu recall append COLLECTION FILE")
    before = Collection.open(collection, say=news)
    with _progress() as progress:
        made = (before.upsert if upsert else before.append)(_given(files, sql), progress=progress)
    _tell(made)


def _given(files: Sequence[Path], sql: str | None) -> list[Any]:
    """The files as sources; the query goes with those that are databases."""
    if sql is None:
        return list(files)
    from danlu.recall.databases import ENDINGS, Database, is_database

    if others := [file for file in files if not is_database(file)]:
        seen = f"--sql has no effect on {others[0]}"
        raise ConfigError(seen, allowed=f"databases of DuckDB and SQLite: {', '.join(ENDINGS)}")
    return [Database(file, sql) for file in files]


def delete(
    collection: GivenPath,
    where: str | None = None,
    /,
    *,
    ids: Annotated[list[str] | None, Several] = None,
    ids_from: GivenPath | None = None,
) -> None:
    """Delete rows from a collection, in one step: all of them or none.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    where
        a where-clause: the rows that pass it are deleted; danlu recall query shows them before
    ids
        the ids of the rows to delete; those that no row has are passed over, and counted
    ids_from
        a file with the column of ids, of any kind that danlu recall build reads
    """
    if sum(one is not None for one in (where, ids, ids_from)) != 1:
        raise ConfigError("rows are named by a where-clause, --ids or --ids_from", fix="give one of them")
    opened = Collection.open(collection, say=news)
    if where is not None:
        made, wanted = opened.delete(opened.where(where)), 0
    else:
        named = (
            _ids_of(opened, ids_from)
            if ids_from is not None
            else [as_id(one, opened.id_type is int) for one in ids or ()]
        )
        made, wanted = opened.delete(named), len(set(named))
    gone = len(opened) - len(made)
    news(words()("{count} rows deleted", count=f"{gone:,}"))
    if wanted > gone:
        news(words()("{count} ids that no row has were passed over", count=f"{wanted - gone:,}"))
    _tell(made)


def _ids_of(opened: Collection, path: Path) -> list[Any]:
    """Raises DataError for a file without the column of ids, or with other ones."""
    from danlu.recall.sources import Source, batches

    name = opened.id_column
    if name not in (there := Source(path).columns()):
        raise DataError(f"{path} has no column {name!r}", allowed=", ".join(there))
    some = batches(Source(path), opened.columns, take=[name], separator=",")
    return [one for batch in some for one in batch.arrays[name].to_pylist() if one is not None]


def as_id(word: str, is_whole: bool) -> Any:
    """An id as it is in the data. Raises ConfigError for a text where ids are numbers."""
    try:
        return int(word) if is_whole else word
    except ValueError:
        raise ConfigError(f"{word!r} is no id", allowed="a whole number") from None


def profile(collection: GivenPath, where: str, /, *, top: int = 10, json: bool = False) -> None:
    """Who the rows are: of every attribute, how its values are spread, and beside it among all.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    where
        a where-clause: sex = 'F' and age > 25 and interests in ('yoga', 'travel')
    top
        values shown of each attribute, those with most rows first
    json
        print the figures as JSON, whole
    """
    if top < 1:
        raise ConfigError(f"--top {top}", allowed="1 or more")
    opened = Collection.open(collection, say=news)
    attributes = opened.profile(opened.where(where))
    if json:
        say(dumps([_figures(one) for one in attributes], ensure_ascii=False, indent=2, default=as_text))
        return
    for attribute in attributes:
        _show(attribute, top)


def audience(
    collection: GivenPath,
    name: str | None = None,
    where: str | None = None,
    /,
    *,
    tags: str | None = None,
    remove: bool = False,
) -> None:
    """Keep a where-clause under a name, which others may use as audience('name'); without one, list them.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    name
        of the audience; without it all are listed
    where
        a where-clause, which may be made of other audiences
    tags
        a column of tags: rows of the audience have its name in it and no others do, also when rows are added
    remove
        take the name away, and its tag
    """
    opened = Collection.open(collection, say=news)
    if name is not None:
        if (where is None) is not remove:
            raise ConfigError("an audience takes a where-clause, or --remove", fix="give one of them")
        if remove and tags is not None:
            raise ConfigError("--tags has no effect beside --remove", fix="leave it out")
        opened = opened.name_audience(name, where, tags=tags)
    elif remove or tags is not None:
        flag = "remove" if remove else "tags"
        raise ConfigError(f"--{flag} has no effect without a name", fix="name the audience")
    said, table = words(), Table()
    for heading in ("name", "where-clause", "tag in"):
        table.add_column(said(heading), overflow="fold")
    for heading in ("rows", "when it was made", "on"):
        table.add_column(said(heading), justify="right", no_wrap=True)
    for key, kept in opened.manifest.audiences.items():
        quoted = key.replace("'", "''")
        now = opened.count(f"audience('{quoted}')")
        table.add_row(key, kept.where, kept.tags or "–", f"{now:,}", f"{kept.rows:,}", kept.made)
    OUT.print(table)


def check(collection: GivenPath, /) -> None:
    """Read every file of a collection and compare it with its checksums.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    """
    opened = Collection.open(collection, say=news)
    damage = opened.check()
    for one in damage:
        say(one)
    if damage:
        fix = "danlu recall compact writes damaged indexes anew; columns have to be brought back from a copy"
        raise DataError(f"{len(damage)} damaged file(s)", fix=fix)
    _tell(opened)


def compact(collection: GivenPath, /) -> None:
    """Merge small segments, let deleted rows go, and write damaged indexes anew.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    """
    opened = Collection.open(collection, say=news)
    with _progress() as progress:
        _tell(opened.compact(progress=progress))


def _tell(made: Collection) -> None:
    said = words()
    say(
        said(
            "{path}: {rows} rows, {columns} columns, {segments} segment(s), {size}",
            path=made.path,
            rows=f"{len(made):,}",
            columns=len(made.columns),
            segments=len(made.segments),
            size=size_in_words(made.size_bytes),
        )
    )


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Rows so far, in a terminal."""
    if not ERRORS.is_terminal:
        yield lambda rows: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=ERRORS) as bar:
        task = bar.add_task(words()("rows"), total=None)
        yield lambda rows: bar.update(task, completed=rows)


def as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, (date, datetime)) else str(value)


def _figures(attribute: Attribute) -> dict[str, Any]:
    shares = [
        {"value": share.value, "rows": share.rows, "of_all": share.of_all, "tgi": attribute.tgi(share)}
        for share in attribute.shares
    ]
    kept = ("name", "kind", "rows", "all_rows", "known", "known_of_all")
    return {**{key: getattr(attribute, key) for key in kept}, "shares": shares}


def _show(attribute: Attribute, top: int) -> None:
    said = words()
    known = said("{known} of {rows} known", known=f"{attribute.known:,}", rows=f"{attribute.rows:,}")
    table = Table(title=f"{attribute.name}: {known}", title_justify="left", title_style="bold")
    table.add_column(said("value"), overflow="fold")
    for heading in ("rows", "share", "share among all", "TGI"):
        table.add_column(said(heading), justify="right", no_wrap=True)
    for share in islice(attribute.shares, top):
        tgi = attribute.tgi(share)
        shares = (share.rows / max(attribute.known, 1), share.of_all / max(attribute.known_of_all, 1))
        percents = [f"{one:.1%}" for one in shares]
        table.add_row(_value(share), f"{share.rows:,}", *percents, "–" if tgi is None else f"{tgi:,.0f}")
    OUT.print(table)
    left = len(attribute.shares) - top
    if left > 0:
        say(said("and {count} more", count=f"{left:,}"))


def _value(share: Share) -> str:
    if isinstance(share.value, tuple):
        return " – ".join(map(as_text, share.value))
    return as_text(share.value)
