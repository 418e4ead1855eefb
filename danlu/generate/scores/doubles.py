"""Items that their array has already: which tokens would complete one, where items must differ (uniqueItems).

llguidance follows all else of a schema. Here a JSON text is followed beside it, byte by byte: which arrays are open,
what stands in those whose items must differ, how far the next item has come. Two items are equal as JSON Schema has it:
1 is 1.0, an escape is the character, and the order of keys does not count. Of an array whose items are of a few known
values (unique.py) none is begun that could only become one that is there; for other items it is looked a few tokens
ahead whether they can become another. Knows no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from danlu.generate.scores.unique import Schemas, Uniques

_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_BLANKS, _ENDS_SCALAR = frozenset(b" \n\r\t"), frozenset(b" \n\r\t,]}")
_OPENS, _CLOSES = frozenset(b"[{"), frozenset(b"]}")

# A token that may hold a whole item, or more.
_WHOLE = re.compile(rb'[\[,].*[,\]}]|".*".*"', re.DOTALL)
_FIRST_QUOTE = re.compile(rb'.*?(?<!\\)"', re.DOTALL)

# What is left of JSON without the blanks between its parts.
_PARTS = re.compile(rb'"(?:[^"\\]|\\.)*"?\\?|[^\s"]+', re.DOTALL)

# To see whether an item can still become another, so many tokens are followed, one after the other.
_LOOKED_AHEAD = 8
_LONGEST_PIECE = 16


@dataclass(frozen=True)
class Frame:
    """One open array or object.

    Attributes:
        schemas: those that may hold for it.
        seen: of an array whose items must differ, those it has; None of others.
        values: of such an array, all that an item can be, where that is known.
        is_limited: its strings cannot go on as they like.
        count: items that are complete.
        start: where the item begins that is not complete; -1 between two.
        after_comma: an item has to follow.
        key: of an object, that of the value which comes; None where a key comes.
    """

    schemas: Schemas
    is_array: bool
    seen: frozenset[Any] | None = None
    values: tuple[str, ...] | None = None
    is_limited: bool = False
    count: int = 0
    start: int = -1
    after_comma: bool = False
    key: str | None = None


class Place:
    """Where one row's JSON stands. Copies are cheap.

    Attributes:
        is_twice: an array has an item twice that may not.
    """

    def __init__(self, uniques: Uniques) -> None:
        self._uniques = uniques
        self._frames: tuple[Frame, ...] = ()
        self._text, self._base = b"", 0  # what of the text is still needed, and where it begins
        self._mode: Literal["between", "string", "scalar"] = "between"
        self._escaped, self._is_key, self._string = False, False, 0
        self.is_twice = False

    def copy(self) -> Place:
        other = Place.__new__(Place)
        other.__dict__.update(self.__dict__)
        return other

    def feed(self, data: bytes) -> None:
        """Go on with more of the text."""
        begin = self._base + len(self._text)
        self._text += data
        for at, byte in enumerate(data, begin):
            self._take(byte, at)
        needed = [frame.start for frame in self._frames if frame.seen is not None and frame.start >= 0]
        if self._mode == "string" and self._is_key:
            needed.append(self._string)
        cut = min(needed, default=self._base + len(self._text))
        self._text, self._base = self._text[cut - self._base :], cut

    def _take(self, byte: int, at: int) -> None:
        if self._mode == "string":
            self._in_string(byte, at)
            return
        if self._mode == "scalar":
            if byte not in _ENDS_SCALAR:
                return
            self._mode = "between"
            self._completed(at)
        if byte in _BLANKS:
            return
        top = self._frames[-1] if self._frames else None
        if byte == _QUOTE:
            self._mode, self._string = "string", at
            self._is_key = top is not None and not top.is_array and top.key is None
            if not self._is_key:
                self._begun(at)
        elif byte in _OPENS:
            self._begun(at)
            self._open(byte)
        elif byte in _CLOSES:
            self._frames = self._frames[:-1]
            self._completed(at + 1)
        elif byte == _COMMA and top is not None:
            self._change(after_comma=True, key=None)
        elif byte != ord(":"):
            self._begun(at)
            self._mode = "scalar"

    def _in_string(self, byte: int, at: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == _BACKSLASH:
            self._escaped = True
        elif byte == _QUOTE:
            self._mode = "between"
            if self._is_key:
                self._change(key=json.loads(self._text[self._string - self._base : at + 1 - self._base]))
            else:
                self._completed(at + 1)

    def _open(self, byte: int) -> None:
        schemas = self._uniques.root
        if self._frames:
            top = self._frames[-1]
            schemas = self._uniques.children(top.schemas, top.count if top.is_array else str(top.key))
        frame = Frame(schemas, byte == ord("["))
        if frame.is_array and any(schema.get("uniqueItems") is True for schema in schemas):
            limited = self._uniques.limits_strings(schemas)
            frame = replace(frame, seen=frozenset(), values=self._uniques.values(schemas), is_limited=limited)
        self._frames = (*self._frames, frame)

    def _change(self, **changes: Any) -> None:
        *outer, top = self._frames
        self._frames = (*outer, replace(top, **changes))

    def _begun(self, at: int) -> None:
        if self._frames and self._frames[-1].is_array:
            self._change(start=at, after_comma=False)

    def _completed(self, end: int) -> None:
        if not self._frames or not self._frames[-1].is_array:
            return
        top = self._frames[-1]
        seen = top.seen
        if seen is not None:
            item = _canonical(self._text[top.start - self._base : end - self._base])
            self.is_twice = self.is_twice or item in seen
            seen = seen | {item}
        self._change(seen=seen, count=top.count + 1, start=-1)

    # -- what may follow

    @property
    def top(self) -> Frame | None:
        return self._frames[-1] if self._frames else None

    @property
    def is_watched(self) -> bool:
        """Whether an array is open whose items must differ."""
        return any(frame.seen is not None for frame in self._frames)

    @property
    def in_string(self) -> bool:
        return self._mode == "string"

    @property
    def is_escaped(self) -> bool:
        return self._escaped

    @property
    def may_go_on(self) -> bool:
        """Whether the item that is begun, or has to come, can become one that is not there yet."""
        return not self.is_twice and all(map(self._leaves_one, self._frames))

    def _leaves_one(self, frame: Frame) -> bool:
        if frame.values is None or (frame.start < 0 and not frame.after_comma):
            return True
        begun = b"" if frame.start < 0 else b"".join(_PARTS.findall(self._text[frame.start - self._base :]))
        seen = frame.seen or frozenset()
        return any(
            value.encode().startswith(begun) and _canonical(value.encode()) not in seen for value in frame.values
        )

    @property
    def has_known_values(self) -> bool:
        """Whether an array is open whose items are of a few known values."""
        return any(frame.values is not None for frame in self._frames)

    def ways_to_double(self) -> list[bytes]:
        """What would make the scalar that is begun, or has to come, one that is there: the rest of each such."""
        top = self.top
        if top is None or not top.seen or (top.start < 0 and not top.after_comma):
            return []
        if self._mode == "string" and not self._is_key:
            begun = _words_of(self._text[top.start - self._base :]) if top.is_limited else None
            texts = [item[1] for item in top.seen if item[0] == "string"]
        else:
            begun = "" if top.start < 0 else self._text[top.start - self._base :].decode("utf-8", "replace")
            texts = [f"{item[1]:f}" for item in top.seen if item[0] == "number" and abs(item[1].adjusted()) < 32]
        found = [] if begun is None else [text[len(begun) :].encode() for text in texts if text.startswith(begun)]
        return [*found, *(b" " + rest for rest in found if self._mode == "between")]

    @property
    def is_free(self) -> bool:
        """In a string that is an item: whether it has become another than every string that is there."""
        top = self.top
        words = None if top is None or top.seen is None else _words_of(self._text[top.start - self._base :])
        if top is None or top.seen is None or words is None:
            return False
        return not any(item[0] == "string" and item[1].startswith(words) for item in top.seen)


def _words_of(begun: bytes) -> str | None:
    """What a string says so far; None in the middle of a character."""
    try:
        return str(json.loads(begun + b'"'))
    except ValueError:
        return None


def has_double(uniques: Uniques, text: str) -> bool:
    """Whether an array of a JSON text has an item twice that may not."""
    place = Place(uniques)
    place.feed(text.encode())
    return place.is_twice


def _canonical(text: bytes) -> Any:
    """A hashable form of a value, the same for equal ones."""
    return _key(json.loads(text, parse_float=Decimal, parse_int=Decimal))


def _key(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return ("word", value)
    if isinstance(value, str):
        return ("string", value)
    if isinstance(value, list):
        return ("array", tuple(map(_key, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, _key(part)) for name, part in value.items()))
    return ("number", value)


# -- tokens


# Tokens -> which are allowed after them, (vocabulary,) bool.
Ahead = Callable[[Sequence[int]], np.ndarray]


class Endings:
    """The tokens of a vocabulary by what they may end.

    Args:
        pieces: the bytes of each token.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._whole = np.array([_WHOLE.search(piece) is not None for piece in pieces])
        self._ending = np.array([not _ENDS_SCALAR.isdisjoint(piece) or _QUOTE in piece for piece in pieces])
        self._quoting = np.array([_QUOTE in piece for piece in pieces])
        self._closing = self._quoting & np.array([not _CLOSES.isdisjoint(piece) for piece in pieces])
        self._by_piece = {piece: token for token, piece in enumerate(pieces)}
        self._by_head: dict[bytes, list[int]] = {}
        for token, piece in enumerate(pieces):
            if head := _FIRST_QUOTE.match(piece):
                self._by_head.setdefault(head[0], []).append(token)

    def banned(self, place: Place, allowed: np.ndarray, ahead: Ahead) -> list[int]:
        """Of the allowed tokens (vocabulary,), those after which an array has an item twice, or has to.

        Args:
            ahead: the tokens that are allowed after some more.
        """
        found = self._doubling(place, allowed)
        dead = [
            token
            for token in self._risky(place)
            if allowed[token] and token not in found and not self._goes_on(place, [token], ahead)
        ]
        return [*found, *dead]

    def _risky(self, place: Place) -> list[int]:
        """Tokens on the way to a scalar that is there."""
        pieces = {
            rest[:length] for rest in place.ways_to_double() for length in range(1, min(len(rest), _LONGEST_PIECE) + 1)
        }
        return [self._by_piece[piece] for piece in sorted(pieces) if piece in self._by_piece]

    def _goes_on(self, place: Place, tokens: list[int], ahead: Ahead) -> bool:
        """Whether the item can become another than those that are there, after these tokens."""
        if len(tokens) > _LOOKED_AHEAD:
            return True
        after = place.copy()
        for token in tokens:
            after.feed(self._pieces[token])
        allowed, risky = ahead(tokens), self._risky(after)
        allowed[self._doubling(after, allowed)] = False
        others = allowed.copy()
        others[risky] = False
        if others.any():
            return True
        return any(allowed[token] and self._goes_on(place, [*tokens, token], ahead) for token in risky)

    def _doubling(self, place: Place, allowed: np.ndarray) -> list[int]:
        if not place.is_watched:
            return self._tried(place, allowed & self._whole)
        top = place.top
        if place.has_known_values:
            return self._tried(place, allowed)
        if not place.in_string:
            return self._tried(place, allowed & self._ending)
        if place.is_escaped:
            return self._tried(place, allowed & self._quoting)
        if top is None or top.seen is None:
            return self._tried(place, allowed & self._closing)
        found = self._tried(place, allowed & self._whole)
        return found if place.is_free else [*found, *self._closing_twice(place, allowed)]

    def _closing_twice(self, place: Place, allowed: np.ndarray) -> Iterator[int]:
        """Tokens that end the string which is an item, by what stands before the quotation mark."""
        for head, tokens in self._by_head.items():
            may_come = [token for token in tokens if allowed[token]]
            after = place.copy()
            if may_come:
                after.feed(head)
            if after.is_twice:
                yield from may_come

    def _tried(self, place: Place, candidates: np.ndarray) -> list[int]:
        return [token for token in np.flatnonzero(candidates).tolist() if not self._fits(place, self._pieces[token])]

    @staticmethod
    def _fits(place: Place, piece: bytes) -> bool:
        after = place.copy()
        after.feed(piece)
        return after.may_go_on
