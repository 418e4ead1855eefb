"""The arguments of one call, as a model writes them -> JSON, as they come.

Knows the form of calls (callforms.py); knows no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from danlu.serve.calls.callforms import CallForm, Notation, Tagged
from danlu.serve.calls.callgrammar import loosely, may_be_text, resolve
from danlu.serve.wire.messages import Function


def overlap(text: str, mark: str) -> int:
    """The longest proper beginning of `mark` that `text` ends with."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(mark[:size])), 0)


class Arguments:
    """Arguments of one call as JSON."""

    def read(self, text: str) -> tuple[str, int, bool]:
        """(JSON that has become certain, characters of `text` used up, whether the arguments are over)."""
        raise NotImplementedError


def arguments_of(form: CallForm, function: Function) -> Arguments:
    """What reads the arguments of one call."""
    if isinstance(form.arguments, Tagged):
        return _TaggedArguments(form.arguments, function.parameters or {})
    if isinstance(form.arguments, Notation):
        return _NotedArguments(form.arguments.quote)
    return _JsonArguments()


class _JsonArguments(Arguments):
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


class _TaggedArguments(Arguments):
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
        sure = len(rest) - overlap(rest, close)
        return json.dumps(rest[:sure], ensure_ascii=False)[1:-1], sure, False


def _as_json(text: str, schema: Mapping[str, Any]) -> str:
    """A value as JSON. Where it may be text, what reads as another kind that is allowed too is that."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    words = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if (isinstance(value, str) and may_be_text(schema)) or text in words:
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


class _NotedArguments(Arguments):
    """`{key:value,…}` in a template's own notation; they come whole."""

    def __init__(self, quote: str) -> None:
        self._quote = quote

    def read(self, text: str) -> tuple[str, int, bool]:
        try:
            value, end = self._value(text, 0)
        except (IndexError, ValueError, RecursionError):
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
