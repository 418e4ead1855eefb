"""Rows of nothing but plain texts, nearly all there are, read at a glance.

The long way (data/formats.py) asks of each value all that it may be. Once a row has gone it, what the next row with the
same keys needs is known: that its texts are texts, with nothing in them that the long way would refuse, take apart or
note. Such a row's record is made here, the same as there; any other row is left to the long way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from danlu.data.records import Conversation, Message, Skipped
from danlu.data.row import PartialRow, Row
from danlu.data.shapes.messages import PLACEHOLDER, not_given
from danlu.data.shapes.reading import Reading
from danlu.data.shapes.shapes import KNOWN_COLUMNS, MEDIA_KEYS, Shape, plain_name
from danlu.data.shapes.speakers import SPEAKERS

_MEANT = {*KNOWN_COLUMNS, *MEDIA_KEYS, "role", "content", "from", "value"}  # keys that may mean something
_BEFORE = {"user": ("", "system", "assistant"), "assistant": ("user",), "system": ("",)}

KEPT_KINDS = 1_000  # kinds of rows by their keys

Turns = Callable[[Row], tuple[Message, ...] | None]


@dataclass(frozen=True, slots=True)
class _Known:
    """How rows with the same keys are read.

    Attributes:
        about: the key of what is asked about, "" where there is none; it has its own shape where it holds something.
        empty: keys that must hold "", lest they mean something.
        unread: keys that nothing reads, whatever they hold, and their names in a report.
    """

    turns: Turns
    about: str
    empty: tuple[str, ...]
    unread: dict[str, str]
    shape: str
    shape_with_about: str


class Glance:
    """Args:
    reading: one that says nothing of columns and roles; with another, no row is known.
    skipped: told what the long way would tell it.
    """

    def __init__(self, reading: Reading, skipped: Skipped) -> None:
        self._applies = not (reading.columns or reading.reader.speakers.own)
        self._skipped = skipped
        self._known: dict[tuple[str, ...], _Known] = {}

    def learn(self, row: Row, shape: Shape) -> None:
        """Rows with the keys of this one, which has gone the long way and has this shape, may be known from now on."""
        keys = tuple(row)
        if not self._applies or keys in self._known:
            return
        turns, read = _turns_for(shape, keys)
        others = {key: plain_name(key) for key in keys if key not in read}
        meant = [key for key, plain in others.items() if plain in _MEANT]
        if turns is None or not set(read) <= set(keys) or len({*read, *others.values()}) < len(keys):
            return
        if any(not_given(row[key]) for key in (*read, *meant)):  # this row has the shape of fewer keys
            return
        unread = {key: plain or "(no name)" for key, plain in others.items() if key not in meant}
        if len(self._known) >= KEPT_KINDS:
            self._known.clear()
        about = read[2] if len(read) > 2 else ""
        described = shape.describe(), shape.describe([(about, about)])
        self._known[keys] = _Known(turns, about, tuple(meant), unread, *described)

    def record(self, row: Any, place: str) -> Conversation | None:
        """The row's record; None for a row that has to go the long way."""
        known = self._known.get(tuple(row)) if type(row) in (dict, PartialRow) else None
        if known is None or any(row[key] != "" for key in known.empty):
            return None
        messages = known.turns(row)
        if messages is None:
            return None
        is_about = known.about and row[known.about] != ""
        self._skipped.shapes[known.shape_with_about if is_about else known.shape] += 1
        said = [name for key, name in known.unread.items() if row[key] not in ("", [], {}) and not not_given(row[key])]
        if type(row) is PartialRow:
            said += row.not_decoded
        if said:
            self._skipped.pass_over_keys(said)
        return Conversation(messages, place)


def _turns_for(shape: Shape, keys: tuple[str, ...]) -> tuple[Turns | None, tuple[str, ...]]:
    """(what makes the messages of such a row, the keys that it reads); None for a shape that is no chat."""
    columns = tuple(shape.columns)
    if shape.format in ("messages", "sharegpt"):
        return (lambda row: _of_list(row[columns[0]])), columns
    if shape.format in ("alpaca", "prompt_completion") and len(columns) == 2:
        asked, answered = columns
        about = "input" if "input" in keys and "input" not in columns else ""
        read = (*columns, about) if about else columns
        return (lambda row: _of_pair(row[asked], row[answered], row[about] if about else "")), read
    return None, ()


def _of_pair(asked: Any, answer: Any, about: Any) -> tuple[Message, ...] | None:
    if not (_is_plain(asked) and _is_plain(answer)) or _may_be_json(asked) or _may_be_json(answer):
        return None
    if about != "":
        if not _is_plain(about):
            return None
        asked = f"{asked}\n\n{about}"
    return {"role": "user", "content": asked}, {"role": "assistant", "content": answer}


def _of_list(items: Any) -> tuple[Message, ...] | None:
    """The messages of a list in which system, user and assistant speak in turn, the assistant last."""
    if type(items) is not list:
        return None
    messages, before = [], ""
    for item in items:
        if type(item) is not dict or len(item) != 2:
            return None
        speaker, content = item.get("role") or item.get("from"), item.get("content") or item.get("value")
        role = SPEAKERS.get(speaker) if type(speaker) is str else None
        if before not in _BEFORE.get(role or "", ()) or not _is_plain(content):
            return None
        messages.append({"role": role, "content": content})
        before = role or ""
    return tuple(messages) if before == "assistant" else None


def _may_be_json(text: str) -> bool:
    return text.lstrip()[0] in "[{"


def _is_plain(text: Any) -> bool:
    """A text that says something, and nothing that has to be looked at."""
    if type(text) is not str or not text or text.isspace() or "\0" in text:
        return False
    if "<" in text and PLACEHOLDER.search(text):
        return False
    if text.isascii():
        return True
    try:
        text.encode()  # half of a surrogate pair cannot be written
    except UnicodeEncodeError:
        return False
    return True
