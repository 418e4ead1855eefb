"""Collections: rows that qualify out of very many, who they are, and what lies on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from itertools import islice
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from danlu.commands.shared import ERRORS, OUT, Flat, GivenPath, Several, news, say
from danlu.config import Options
from danlu.errors import ConfigError, DataError, disk_faults, size_in_words
from danlu.flags import as_flags, from_flags
from danlu.recall.collection import Collection
from danlu.recall.options import BuildOptions
from danlu.recall.profile import Attribute, Share
from danlu.recall.rowset import RowSet
from danlu.words import words

if TYPE_CHECKING:
    BuildFlags = Options
else:
    BuildFlags = as_flags(BuildOptions)

_CHUNK_ROWS = 1 << 17


def build(
    *files: GivenPath,
    out: GivenPath,
    how: Annotated[BuildFlags, Flat] = BuildFlags(),  # noqa: B008 - frozen
) -> None:
    """Make a collection out of tables: rows of any number, in memory that does not grow with them.

    Parameters
    ----------
    files
        .parquet, .csv, .tsv, .jsonl, .arrow, or folders of them
    out
        the folder to make; it must not be there, or be empty
    """
    if not files:
        raise ConfigError("no file is given", fix="danlu recall build FILE --out FOLDER")
    options = from_flags(BuildOptions, how)
    with _progress() as progress:
        made = Collection.build(out, list(files), options, progress=progress, say=news)
    _tell(made)


def append(collection: GivenPath, /, *files: GivenPath, upsert: bool = False) -> None:
    """Add rows to a collection.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    files
        .parquet, .csv, .tsv, .jsonl, .arrow, or folders of them
    upsert
        rows whose id is there already take the place of the earlier ones; without it they are an error
    """
    if not files:
        raise ConfigError("no file is given", fix="danlu recall append COLLECTION FILE")
    before = Collection.open(collection, say=news)
    with _progress() as progress:
        made = (before.upsert if upsert else before.append)(list(files), progress=progress)
    _tell(made)


def query(
    collection: GivenPath,
    where: str,
    /,
    *,
    count: bool = False,
    columns: Annotated[list[str] | None, Several] = None,
    limit: int | None = None,
    out: GivenPath | None = None,
) -> None:
    """Rows that qualify, as JSON lines or into a file; or only how many.

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
    """
    if limit is not None and limit < 0:
        raise ConfigError(f"--limit {limit}", allowed="0 or more")
    if count:
        if given := [
            name for name, value in (("columns", columns), ("limit", limit), ("out", out)) if value is not None
        ]:
            raise ConfigError(f"--{given[0]} has no effect beside --count", fix="leave one of them out")
        say(str(Collection.open(collection, say=news).count(where)))
        return
    opened = Collection.open(collection, say=news)
    begun = perf_counter()
    rows = opened.where(where)
    milliseconds = 1000 * (perf_counter() - begun)
    told = words()(
        "{count} of {all} rows, in {time} ms",
        count=f"{len(rows):,}",
        all=f"{len(opened):,}",
        time=f"{milliseconds:,.1f}",
    )
    names = _shown_columns(opened, columns)
    if out is None:
        for row in opened.table(rows, names, 20 if limit is None else limit).to_pylist():
            say(dumps(row, ensure_ascii=False, default=_as_text))
    else:
        _write(opened, rows, names, limit, out)
    news(told)


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
        say(dumps([_figures(one) for one in attributes], ensure_ascii=False, indent=2, default=_as_text))
        return
    for attribute in attributes:
        _show(attribute, top)


def audience(
    collection: GivenPath, name: str | None = None, where: str | None = None, /, *, remove: bool = False
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
    remove
        take the name away
    """
    opened = Collection.open(collection, say=news)
    if name is not None:
        if (where is None) is not remove:
            raise ConfigError("an audience takes a where-clause, or --remove", fix="give one of them")
        opened = opened.name_audience(name, where)
    elif remove:
        raise ConfigError("--remove has no effect without a name", fix="name the audience")
    said, table = words(), Table()
    for heading in ("name", "where-clause"):
        table.add_column(said(heading), overflow="fold")
    for heading in ("rows", "when it was made", "on"):
        table.add_column(said(heading), justify="right", no_wrap=True)
    for key, kept in opened.manifest.audiences.items():
        quoted = key.replace("'", "''")
        now = opened.count(f"audience('{quoted}')")
        table.add_row(key, kept.where, f"{now:,}", f"{kept.rows:,}", kept.made)
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


def _shown_columns(opened: Collection, asked: list[str] | None) -> list[str]:
    if asked is not None:
        return [name for word in asked for name in word.split(",")]
    return [column.name for column in opened.columns if not column.name.startswith("_")]


def _write(opened: Collection, rows: RowSet, names: list[str], limit: int | None, out: Path) -> None:
    """All rows into a file, some at a time; the file is there when it is whole."""
    from danlu.recall.exporting import WRITERS

    if out.suffix not in WRITERS:
        raise ConfigError(f"--out {out}: no kind of file that is written", allowed=", ".join(WRITERS))
    if out.exists():
        raise ConfigError(f"--out {out} exists", fix="choose another name, or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}", fix="make it, or choose another")
    opened.table(rows, names, 0)  # names that are not there are said before anything is written
    with disk_faults(out, "writing the rows"):
        WRITERS[out.suffix](out, _tables(opened, rows, names, limit))
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


def _as_text(value: Any) -> str:
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
        return " – ".join(map(_as_text, share.value))
    return _as_text(share.value)
