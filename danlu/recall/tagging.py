"""Named audiences, and rules that tag: an audience whose name is a tag of every row that it is for, and of no other.

A rule holds for rows that are there, and for those that come later: their tags are settled before they are written. It
asks for no column that rules write, so that none depends on what another has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Protocol

import numpy as np

from danlu.errors import ConfigError, nearest
from danlu.recall.columns import encoding
from danlu.recall.columns.asked import OneOf
from danlu.recall.columns.base import Column as StoredColumn
from danlu.recall.columns.forms import Index
from danlu.recall.columns.ids import IdColumn, Ids
from danlu.recall.columns.lists import TagLists
from danlu.recall.manifest import Audience, Column, Manifest
from danlu.recall.planning import question
from danlu.recall.rows.bits import Bits, member
from danlu.recall.rows.kernels import answered, kernels
from danlu.recall.rows.tree import And, Not, Tree
from danlu.recall.segment import wanted_ids
from danlu.recall.where import NOTHING, Atom, Clause, parse


@dataclass(frozen=True)
class Rule:
    """Rows that pass the clause have the tag in the column at this place, others have it not."""

    column: int
    tag: str
    clause: Clause


def rules_of(columns: Sequence[Column], id_column: str, audiences: Mapping[str, Audience]) -> list[Rule]:
    """Raises ConfigError for a column that holds no tags, and a clause that asks for what rules write."""
    texts = {name: audience.where for name, audience in audiences.items()}
    places = {column.name: at for at, column in enumerate(columns)}
    made = []
    for name, audience in audiences.items():
        if audience.tags is None:
            continue
        if audience.tags not in places or columns[places[audience.tags]].kind != "tags":
            known = [column.name for column in columns if column.kind == "tags"]
            seen = f"audience {name!r}: {audience.tags!r} is no column of tags"
            raise ConfigError(seen, allowed=", ".join(known) or "(there is none)", fix=nearest(audience.tags, known))
        made.append(Rule(places[audience.tags], name, parse(audience.where, columns, id_column, texts)))
    written = {rule.column for rule in made}
    for rule in made:
        for atom in _atoms(rule.clause):
            if atom.column in written:
                seen = f"audience {rule.tag!r} asks for {columns[atom.column].name}, into which audiences are written"
                raise ConfigError(seen, fix="write them into a column that no such audience asks for")
    return made


class Opened(Protocol):
    """What is asked of a collection here."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def columns(self) -> list[Column]: ...

    @property
    def id_column(self) -> str: ...

    def count(self, text: str) -> int: ...


def named(opened: Opened, name: str, where: str | None, tags: str | None) -> tuple[dict[str, Audience], list[Rule]]:
    """(the audiences after one was named, or its name taken away for None; the rules that then hold).

    Raises ConfigError for a clause that is wrong, and for taking away a name that another audience is made of.
    """
    if not name.strip():
        raise ConfigError("an audience without a name")
    before = opened.manifest.audiences
    audiences = {key: one for key, one in before.items() if key != name}
    if where is None:
        if name not in before:
            raise ConfigError(f"there is no audience {name!r}", fix=nearest(name, before))
    else:
        made = Audience(where=where, rows=0, number=0, made="", tags=tags)
        _check({**audiences, name: made}, opened)
        counted = {"rows": opened.count(where), "number": opened.manifest.number, "made": date.today().isoformat()}
        audiences[name] = made.model_copy(update=counted)
    _check(audiences, opened)
    rules = rules_of(opened.columns, opened.id_column, audiences)
    earlier = before[name].tags if name in before else None
    if earlier != tags:  # the tag goes from where it stood
        gone = [Rule(at, name, NOTHING) for at, column in enumerate(opened.columns) if column.name == earlier]
        rules = [*gone, *rules]
    return audiences, rules


def _check(audiences: Mapping[str, Audience], opened: Opened) -> None:
    texts = {name: audience.where for name, audience in audiences.items()}
    for name in texts:
        quoted = name.replace("'", "''")
        parse(f"audience('{quoted}')", opened.columns, opened.id_column, texts)


def retagged(
    columns: Sequence[StoredColumn], rules: Sequence[Rule], rows: Bits, passing: Callable[[Atom], Tree]
) -> Iterator[tuple[int, TagLists]]:
    """(place, column) of those that the rules change.

    Args:
        columns: of one segment. rows: those that may have a tag.
    """
    asked = [question(rule.clause, rows, passing) for rule in rules]
    changed: dict[int, TagLists] = {}
    for rule, chosen in zip(rules, answered(asked), strict=True):
        before = changed.get(rule.column) or columns[rule.column]
        assert isinstance(before, TagLists)
        after = _with_tag(before, rule.tag, chosen)
        if after is not None:
            changed[rule.column] = after
    yield from changed.items()


def passing_in_memory(columns: Sequence[StoredColumn], id_place: int, atom: Atom) -> Tree:
    """The rows that pass a test, of columns that are to be written."""
    column = columns[atom.column]
    if atom.column == id_place and isinstance(atom.test, OneOf):
        assert isinstance(column, IdColumn)
        found = Ids.of(column).find(wanted_ids(column, atom.test.values), column)
        some = Bits.of(column.known.rows, np.unique(found[found >= 0]))
        return And((column.known, Not(some))) if atom.negated else some
    column.use(partial(_scanned, column))
    return column.passing(atom.test, atom.negated)


def _scanned(column: StoredColumn) -> Index:
    """An index that takes no room."""
    made = column.made_index(0.0)
    assert made is not None
    return made


def _with_tag(column: TagLists, tag: str, rows: Bits) -> TagLists | None:
    """The column with the tag in these rows alone; None if it is so."""
    texts = [column.dictionary.texts.encoded(at) for at in range(len(column.dictionary))]
    encoded, count = tag.encode(), column.known.rows
    code = texts.index(encoded) + 1 if encoded in texts else len(texts) + 1
    owners = np.repeat(np.arange(count), np.diff(column.starts))
    places = kernels().places(rows, 0, len(rows.kinds), rows.rows).astype(np.int64)
    if np.array_equal(owners[column.codes == code], places):
        return None
    kept = column.codes != code
    together = np.concatenate([owners[kept], places])
    codes = np.concatenate([column.codes[kept], np.full(len(places), code, np.uint32)])
    order = np.argsort(together, kind="stable")
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(together, minlength=count))])
    mask = member(column.known, np.arange(count))
    mask[places] = True
    return encoding.tags(starts, codes[order], texts if code <= len(texts) else [*texts, encoded], mask)


def _atoms(clause: Clause) -> Iterator[Atom]:
    if isinstance(clause, Atom):
        yield clause
    else:
        for part in clause.parts:
            yield from _atoms(part)
