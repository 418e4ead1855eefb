"""An answer's text as it grows -> reasoning, text, and calls with their arguments, each as soon as it is certain.

Knows a model's marks (callgrammar.py) and the form of its calls (callforms.py); the grammar has seen to it that what
follows a trigger is a call. What was cut off in the middle of a call's head is no call, and is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danlu.serve.callforms import NUMBER, CallForm, Notation, Tagged
from danlu.serve.callgrammar import loosely, may_be_text, resolve
from danlu.serve.messages import Function
from danlu.serve.reasoning import Marks, Thinking

Kind = Literal["reasoning", "content", "call", "arguments"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer that has become certain.

    Attributes:
        kind: of a call, its name comes first, then its arguments as JSON in pieces.
        text: what is added.
        index: of a call and its arguments: which call.
    """

    kind: Kind
    text: str
    index: int = 0


class AnswerReader:
    """Takes one answer apart.

    Args:
        marks: around reasoning; None: all is text.
        thinking: whether the answer may begin with reasoning, or is in the middle of it.
        form: how calls are written; None: there are none.
        functions: those that may be called.

    Attributes:
        reasoning_end: after how many characters of the answer its reasoning was over; 0 without reasoning.
    """

    def __init__(
        self,
        marks: Marks | None = None,
        thinking: Thinking = "no",
        form: CallForm | None = None,
        functions: Sequence[Function] = (),
    ) -> None:
        self._marks, self._form = marks, form
        self._functions = {function.name: function for function in functions}
        self._state: Callable[[bool], bool] = self._opening if thinking == "may" else self._body
        if thinking == "must":
            self._state = self._reasoning
        self._buffer, self._pieces = "", list[Piece]()
        self._read, self._calls = 0, 0
        self._said = False  # text or calls have come
        self._after_reasoning = thinking == "must"
        self._held = ""  # white space that belongs to the text only if more comes
        self.reasoning_end = 0
        self._arguments: _Arguments | None = None

    @property
    def calls(self) -> int:
        """How many have begun."""
        return self._calls

    @property
    def may_think(self) -> bool:
        return self._marks is not None

    def feed(self, text: str) -> list[Piece]:
        """What has become certain with more text."""
        self._buffer += text
        return self._go(last=False)

    def finish(self) -> list[Piece]:
        """The rest, when the answer has ended."""
        pieces = self._go(last=True)
        if self._state == self._reasoning:
            self.reasoning_end = self._read
        elif self._state == self._body and self._held and not self._calls:
            pieces = _joined([*pieces, Piece("content", self._held)])
        return pieces

    def _go(self, last: bool) -> list[Piece]:
        self._pieces = []
        while self._state(last):
            pass
        return _joined(self._pieces)

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self._read += count
        return taken

    # -- states: each returns whether to go on at once

    def _opening(self, last: bool) -> bool:
        """Whether reasoning begins is not known yet."""
        assert self._marks is not None
        begun, mark = self._buffer.lstrip(), self._marks.begin
        if begun.startswith(mark):
            self._take(len(self._buffer) - len(begun) + len(mark))
            self._state, self._after_reasoning = self._reasoning, True
            return True
        if mark.startswith(begun) and not last:
            return False
        self._state = self._body
        return True

    def _reasoning(self, last: bool) -> bool:
        assert self._marks is not None
        at = self._buffer.find(self._marks.end)
        if at < 0:
            self._say(
                "reasoning", self._take(len(self._buffer) - (0 if last else _overlap(self._buffer, self._marks.end)))
            )
            return False
        self._say("reasoning", self._take(at))
        self._take(len(self._marks.end))
        self.reasoning_end, self._held, self._said = self._read, "", False
        self._state = self._body
        return True

    def _body(self, last: bool) -> bool:
        """Text, until a call begins."""
        form = self._form
        if form is None:
            self._say("content", self._take(len(self._buffer)))
            return False
        if form.at_start:
            return self._body_at_start(form, last)
        at = self._buffer.find(form.trigger)
        if at < 0:
            self._say("content", self._take(len(self._buffer) - (0 if last else _overlap(self._buffer, form.trigger))))
            return False
        self._say("content", self._take(at))
        self._state, self._held = self._head, ""
        return True

    def _body_at_start(self, form: CallForm, last: bool) -> bool:
        """A call can only be at the beginning."""
        if not self._said and not self._calls:
            if re.match(rf"\s*{loosely(form.trigger)}", self._buffer):
                self._state = self._head
                return True
            begun = re.sub(r"\s+", "", self._buffer)
            if re.sub(r"\s+", "", form.trigger).startswith(begun) and not last:
                return False
        self._say("content", self._take(len(self._buffer)))
        return False

    def _head(self, _last: bool) -> bool:
        assert self._form is not None
        return self._named(loosely(self._form.begin.lstrip()))

    def _joint(self, last: bool) -> bool:
        """After a call's arguments: a further call, or the end of all."""
        assert self._form is not None
        form = self._form
        if form.between is not None and not form.repeats:
            if self._named(loosely(form.between)):
                return True
            if not last and _may_become(self._buffer, form.between):
                return False
        found = re.match(rf"\s*{loosely(form.end)}", self._buffer)
        if found is None or (not form.end and not self._buffer and not last):
            return False
        self._take(found.end())
        self._state, self._held = self._body, ""
        return bool(self._buffer)

    def _named(self, before: str) -> bool:
        assert self._form is not None
        names, middle = "|".join(map(re.escape, self._functions)), loosely(self._form.middle)
        border = "" if self._form.middle.strip() else r"(?=[\s<{])"
        found = re.match(rf"\s*{before}({names}){border}{middle}", self._buffer)
        if found is None or found.end() == len(self._buffer):  # white space may go on
            return False
        self._take(found.end())
        self._pieces.append(Piece("call", found[1], self._calls))
        self._calls += 1
        self._arguments = _arguments_of(self._form, self._functions[found[1]])
        self._state = self._in_arguments
        return True

    def _in_arguments(self, last: bool) -> bool:
        assert self._arguments is not None
        said, used, is_over = self._arguments.read(self._buffer)
        self._take(used)
        if said:
            self._pieces.append(Piece("arguments", said, self._calls - 1))
        if is_over:
            self._state = self._joint
        return is_over

    def _say(self, kind: Kind, text: str) -> None:
        """Without white space at the end, or at the beginning after reasoning."""
        is_first = not self._said
        if kind == "reasoning" or self._form is not None or self._after_reasoning:
            if is_first and (kind == "reasoning" or self._after_reasoning):
                text = text.lstrip()
            text = self._held + text
            kept = text.rstrip() if kind == "reasoning" or self._form is not None else text
            self._held, text = text[len(kept) :], kept
        if text:
            self._said = True
            self._pieces.append(Piece(kind, text))


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and piece.kind == joined[-1].kind != "call" and piece.index == joined[-1].index:
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text, piece.index)
        else:
            joined.append(piece)
    return joined


def _may_become(text: str, mark: str) -> bool:
    """Whether `text` is the beginning of `mark`, or goes on from it; white space aside."""
    here, wanted = "".join(text.split()), "".join(mark.split()).partition(NUMBER)[0]
    return wanted.startswith(here) or here.startswith(wanted)


def _overlap(text: str, mark: str) -> int:
    """The longest proper beginning of `mark` that `text` ends with."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(mark[:size])), 0)


# -- arguments


class _Arguments:
    """Arguments of one call as JSON."""

    def read(self, text: str) -> tuple[str, int, bool]:
        """(JSON that has become certain, characters of `text` used up, whether the arguments are over)."""
        raise NotImplementedError


def _arguments_of(form: CallForm, function: Function) -> _Arguments:
    if isinstance(form.arguments, Tagged):
        return _TaggedArguments(form.arguments, function.parameters or {})
    if isinstance(form.arguments, Notation):
        return _NotedArguments(form.arguments.quote)
    return _JsonArguments()


class _JsonArguments(_Arguments):
    """They are JSON already; what has to be found is their end."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False

    def read(self, text: str) -> tuple[str, int, bool]:
        for at, letter in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string = False
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return text[: at + 1], at + 1, True
        return text, len(text), False


class _TaggedArguments(_Arguments):
    """One after another: text becomes a JSON string as it grows, other values come whole."""

    def __init__(self, form: Tagged, schema: Mapping[str, Any]) -> None:
        self._form, self._schema = form, schema
        self._count = 0
        self._in_text = False

    def read(self, text: str) -> tuple[str, int, bool]:
        said, used = [], 0
        while True:
            rest = text[used:]
            if self._in_text:
                more, count, is_over = self._text(rest)
                said.append(more)
                used += count
                if not is_over:
                    return "".join(said), used, False
                continue
            begun = re.match(rf"{loosely(self._form.opening)}(.*?){re.escape(self._form.middle)}", rest, re.DOTALL)
            if begun is None:
                is_over = bool(rest) and not self._may_open(rest)
                if is_over:
                    said.append("}" if self._count else "{}")
                return "".join(said), used, is_over
            schema = resolve((self._schema.get("properties") or {}).get(begun[1], {}), self._schema)
            key = ("{" if not self._count else ", ") + json.dumps(begun[1], ensure_ascii=False) + ": "
            if schema.get("type") == "string":
                self._in_text = True
                said.append(key + '"')
                used += begun.end()
            else:
                end = rest.find(self._form.close, begun.end())
                if end < 0:
                    return "".join(said), used, False
                said.append(key + _as_json(rest[begun.end() : end], schema))
                used += end + len(self._form.close)
            self._count += 1

    def _may_open(self, rest: str) -> bool:
        """Whether a further argument begins here, as far as can be seen."""
        opening = self._form.opening
        return opening.startswith(rest[: len(opening)]) or re.match(loosely(opening), rest) is not None

    def _text(self, rest: str) -> tuple[str, int, bool]:
        close = self._form.close
        end = rest.find(close)
        if end >= 0:
            self._in_text = False
            return json.dumps(rest[:end], ensure_ascii=False)[1:-1] + '"', end + len(close), True
        sure = len(rest) - _overlap(rest, close)
        return json.dumps(rest[:sure], ensure_ascii=False)[1:-1], sure, False


def _as_json(text: str, schema: Mapping[str, Any]) -> str:
    """A value as JSON. Where it may be text, what reads as another kind that is allowed too is that."""
    try:
        value = json.loads(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    words = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if (isinstance(value, str) and may_be_text(schema)) or text in words:
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


class _NotedArguments(_Arguments):
    """`{key:value,…}` in a template's own notation; they come whole."""

    def __init__(self, quote: str) -> None:
        self._quote = quote

    def read(self, text: str) -> tuple[str, int, bool]:
        try:
            value, end = self._value(text, 0)
        except (IndexError, ValueError):
            return "", 0, False
        return json.dumps(value, ensure_ascii=False), end, True

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        """(value, where it ends). Raises IndexError or ValueError where the text ends first."""
        if text.startswith(self._quote, at):
            end = text.index(self._quote, at + len(self._quote))
            return text[at + len(self._quote) : end], end + len(self._quote)
        if text[at] == "{":
            return self._object(text, at + 1)
        if text[at] == "[":
            return self._array(text, at + 1)
        end = at
        while text[end] not in ",}]":
            end += 1
        return json.loads(text[at:end]), end

    def _object(self, text: str, at: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while text[at] != "}":
            colon = text.index(":", at)
            key = text[at:colon].strip().removeprefix(self._quote).removesuffix(self._quote)
            found[key], at = self._value(text, colon + 1)
            at += text[at] == ","
        return found, at + 1

    def _array(self, text: str, at: int) -> tuple[list[Any], int]:
        found = []
        while text[at] != "]":
            value, at = self._value(text, at)
            found.append(value)
            at += text[at] == ","
        return found, at + 1
