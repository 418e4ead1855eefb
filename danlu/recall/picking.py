"""Training examples out of a collection: rows that qualify, like some that are given, none of which says another again.

Examples take turns: the row that is most like the first, the one most like the second, and so on, then the second of
each. A row goes that nearly repeats an earlier one, or an example, by MinHash of runs of five characters
(data/look/duplicates.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from danlu.config import Options
from danlu.data.formats import record_from_row
from danlu.data.look.duplicates import Signatures, near_duplicates, signatures
from danlu.errors import ConfigError, DataError, nearest
from danlu.recall.candidates import asked_all
from danlu.recall.collection import Collection
from danlu.recall.embedding import with_vectors
from danlu.recall.fusing import ranks
from danlu.recall.query import Query
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet
from danlu.recall.sources import Source, batches

_CHUNK_ROWS = 1 << 14
_MOST_EXAMPLES = 100_000


class PickOptions(Options):
    """Which rows become training examples."""

    where: str | None = Field(None, description="a where-clause that the rows pass; without it all rows are looked at")
    like: Path | None = Field(
        None,
        description="a file of examples, with a column of the collection or one that is written; rows like them are "
        "picked, and the examples take turns",
    )
    like_where: str | None = Field(
        None, description="a where-clause: these rows are the examples, and are not picked themselves"
    )
    columns: tuple[str, ...] | None = Field(
        None,
        description="what is written of each row: COLUMN, or COLUMN=NAME where the training's name is another, as in "
        "bio=text; without it the columns of text, the only one as text",
    )
    top: int | None = Field(
        None, ge=1, description="rows at most; without it all that pass, which examples do not allow"
    )
    near: float | None = Field(
        0.8,
        ge=0.7,
        le=1,
        description="a row whose text is as like an earlier one's is passed over: the share of their runs of five "
        "characters that both have; null keeps them all",
    )
    seed: int = Field(
        0, ge=0, description="of the draw, where more rows pass than are wanted and there are no examples"
    )
    channels: tuple[str, ...] | None = Field(
        None, description="what rows are like the examples by, as in words:bio; without it all that have an answer"
    )

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> PickOptions:
        if self.like is not None and self.like_where is not None:
            raise ValueError("like and like_where: examples come from a file or are rows; give one of them")
        has_examples = self.like is not None or self.like_where is not None
        if has_examples and self.top is None:
            raise ValueError("top is needed beside examples: every row is like them to some degree")
        if self.channels is not None and not has_examples:
            raise ValueError("channels has no effect without examples: like, or like_where")
        if has_examples and self.seed:
            raise ValueError("seed has no effect beside examples, which decide what is picked")
        return self


@dataclass(frozen=True)
class Picked:
    """Attributes:
    rows: int64 row numbers, in the order in which they were picked; without examples in the collection's.
    among: how many rows qualified. looked_at: of how many the texts were compared.
    empty, repeats: of these, rows without text, and rows that nearly repeat an earlier one or an example.
    examples: how many there were.
    """

    rows: Array
    among: int
    looked_at: int
    empty: int
    repeats: int
    examples: int


@dataclass(frozen=True)
class _Example:
    text: str
    vectors: dict[str, Any]


def pick(opened: Collection, options: PickOptions, say: Callable[[str], None]) -> Picked:
    """Rows for a training. Raises ConfigError and DataError for what cannot be picked so."""
    written = written_columns(opened, options)
    texts = _compared(opened, written)
    rows = opened.everything() if options.where is None else opened.where(options.where)
    own = None if options.like_where is None else opened.where(options.like_where)
    rows = rows if own is None else rows - own
    examples = _examples(opened, options, written, own, say)
    if own is not None or options.like is not None:
        ranked = _by_examples(opened, rows, [_query(one, options) for one in examples])
    else:
        ranked = _drawn(rows, options)
    wanted = len(rows) if options.top is None else options.top
    number = wanted if options.near is None else min(2 * wanted, max(len(rows), 1))
    while True:
        order, is_all = ranked(number)
        kept, empty, repeats = _unrepeated(opened, order, texts, [one.text for one in examples], options.near)
        if len(kept) >= wanted or is_all:
            break
        number *= 4
    chosen = kept[:wanted]
    return Picked(chosen if examples else np.sort(chosen), len(rows), len(order), empty, repeats, len(examples))


def written_columns(opened: Collection, options: PickOptions) -> dict[str, str]:
    """Column -> what it is called in the file. Raises ConfigError for one that is not there, and names that meet."""
    known = [column.name for column in opened.columns]
    if options.columns is None:
        texts = [column.name for column in opened.columns if column.kind == "text"]
        if not texts:
            raise ConfigError("the collection has no column of text", allowed=", ".join(known), fix="name the columns")
        return {texts[0]: "text"} if len(texts) == 1 else {name: name for name in texts}
    made: dict[str, str] = {}
    for word in options.columns:
        column, _, name = (word, "", "") if word in known else word.rpartition("=")
        if column not in known:
            raise ConfigError(f"there is no column {column!r}", allowed=", ".join(known), fix=nearest(column, known))
        made[column] = name or column
    twice = sorted({name for name in made.values() if list(made.values()).count(name) > 1})
    if twice:
        raise ConfigError(f"two columns would be written as {twice[0]!r}", fix="give them two names")
    return made


def tables(opened: Collection, picked: Picked, written: dict[str, str]) -> Iterator[pa.Table]:
    """The rows as they are written, some at a time; the first table has none, and says the names."""
    for start in (*range(0, len(picked.rows), _CHUNK_ROWS), len(picked.rows)):
        some = picked.rows[start : start + _CHUNK_ROWS]
        yield opened.table(some, list(written)).rename_columns(list(written.values()))


def check_readable(opened: Collection, found: Picked, written: dict[str, str]) -> None:
    """Raises DataError, with what may be done, for columns of which no training knows what they are."""
    first = opened.table(found.rows[:1], list(written)).rename_columns(list(written.values())).to_pylist()[0]
    try:
        record_from_row(first, None, "the first row")
    except DataError as error:
        name = next(iter(written))
        fix = f"name columns as training does: --columns {name}=text, or question=instruction answer=output"
        raise DataError(error.seen, allowed=error.allowed, fix=fix) from error


# -- examples ---------------------------------------------------------------------------------------------


def _compared(opened: Collection, written: dict[str, str]) -> list[str]:
    """The written columns whose texts say whether a row repeats another."""
    kinds = {column.name: column.kind for column in opened.columns}
    for kind in ("text", "word"):
        if found := [name for name in written if kinds[name] == kind]:
            return found
    raise ConfigError(f"no column of text is written: {', '.join(written)}", fix="name one of kind text or word")


def _examples(
    opened: Collection, options: PickOptions, written: dict[str, str], own: RowSet | None, say: Callable[[str], None]
) -> list[_Example]:
    """Those that have a text or a vector. Raises DataError where there are none."""
    names = [column.name for column in opened.columns if column.kind in ("text", "vector")]
    if own is not None:
        if len(own) > _MOST_EXAMPLES:
            raise ConfigError(f"{len(own):,} examples", allowed=f"{_MOST_EXAMPLES:,}", fix="narrow like_where")
        table, where = opened.table(own, names), f"like_where {options.like_where}"
    elif options.like is not None:
        table, where = _read(opened, options.like, names, written, say), str(options.like)
    else:
        return []
    kinds = {column.name: column.kind for column in opened.columns}
    found = []
    for row in table.to_pylist():
        text = "\n".join(value for name, value in row.items() if kinds[name] == "text" and value and value.strip())
        vectors = {name: value for name, value in row.items() if kinds[name] == "vector" and value is not None}
        if text or vectors:
            found.append(_Example(text, vectors))
    if not found:
        raise DataError(f"{where}: no example", fix="give some rows with a text or a vector")
    return found


def _read(
    opened: Collection, path: Path, names: Sequence[str], written: dict[str, str], say: Callable[[str], None]
) -> pa.Table:
    """The columns of a file that the collection has, under their names there or those that are written."""
    there = Source(path).columns()
    others = {name: column for column, name in written.items() if name in there and column not in there}
    source = Source(path, others)
    taken = [name for name in source.columns() if name in names]
    if not taken:
        allowed = ", ".join(dict.fromkeys([*names, *written.values()]))
        raise DataError(f"{path} has {', '.join(there)}: nothing to compare by", allowed=allowed)
    made = with_vectors(batches(source, opened.columns, take=taken, separator=","), opened.columns, say)
    parts = [pa.table({name: batch.arrays[name] for name in names}) for batch in made]
    table = pa.concat_tables(parts)
    if table.num_rows > _MOST_EXAMPLES:
        raise ConfigError(
            f"{path}: {table.num_rows:,} examples", allowed=f"{_MOST_EXAMPLES:,}", fix="take a part of it"
        )
    return table


def _query(example: _Example, options: PickOptions) -> Query:
    return Query(like=example.text or None, vector=example.vectors or None, channels=options.channels)


# -- candidates -------------------------------------------------------------------------------------------

# About so many rows, the best first -> (row numbers, whether these are all there are).
_Ranked = Callable[[int], tuple[Array, bool]]


def _drawn(rows: RowSet, options: PickOptions) -> _Ranked:
    if options.top is None:
        return lambda number: (rows.rows(), True)
    order = np.random.default_rng(options.seed).permutation(rows.rows())
    return lambda number: (order[:number], number >= len(order))


def _by_examples(opened: Collection, rows: RowSet, queries: Sequence[Query]) -> _Ranked:
    def ranked(number: int) -> tuple[Array, bool]:
        depth = -(-number // len(queries))
        found = asked_all(opened, queries, rows, depth)
        lists = [ranks(one, query.fuse, depth)[0] for one, query in zip(found, queries, strict=True)]
        turns = np.concatenate([np.arange(len(one)) for one in lists])
        together = np.concatenate(lists)[np.argsort(turns, kind="stable")]
        _, first = np.unique(together, return_index=True)
        return together[np.sort(first)], all(len(one) < depth for one in lists)

    return ranked


def _unrepeated(
    opened: Collection, order: Array, columns: Sequence[str], examples: Sequence[str], near: float | None
) -> tuple[Array, int, int]:
    """(rows that have a text and repeat none before it, how many have none, how many repeat one)."""
    kept, signed = [np.empty(0, np.int64)], [signatures(examples)]
    for start in range(0, len(order), _CHUNK_ROWS):
        some = order[start : start + _CHUNK_ROWS]
        listed = opened.table(some, list(columns)).to_pylist()
        texts = ["\n".join(value for value in row.values() if value) for row in listed]
        there = np.array([bool(text.strip()) for text in texts], np.bool_)
        kept.append(some[there])
        if near is not None:
            signed.append(signatures([text for text, is_there in zip(texts, there.tolist(), strict=True) if is_there]))
    rows = np.concatenate(kept)
    if near is None:
        return rows, len(order) - len(rows), 0
    left = _first_of_each(np.concatenate(signed), near)
    chosen = left[left >= len(examples)] - len(examples)
    return rows[chosen], len(order) - len(rows), len(rows) - len(chosen)


def _first_of_each(signed: Signatures, near: float) -> Array:
    """Places of the texts that nearly repeat none that is left before them.

    What repeats a text that goes itself is looked at again without it: likeness is not handed on.
    """
    left = np.arange(len(signed))
    while pairs := near_duplicates(signed[left], near):
        repeats = {pair.later for pair in pairs}
        left = np.delete(left, [pair.later for pair in pairs if pair.earlier not in repeats])
    return left
