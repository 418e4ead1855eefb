"""The form of an answer that may think, call tools or hold to a schema, as one grammar for llguidance.

Text is free until a call begins; from then on names are those of the tools, and arguments fit their schemas. A model's
own marks are single tokens where its tokenizer has them, and llguidance wants those named by number. White space of a
template may be less or more by a little, save around values that are text themselves.

Knows forms (callforms.py); knows no template and no request.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.generate.scores.grammar import Form
from danlu.generate.scores.schemas import pointed, settled
from danlu.serve.calls.callforms import NUMBER, CallForm, Notation, Tagged
from danlu.serve.calls.reasoning import Marks, Thinking
from danlu.serve.wire.messages import Function, ToolUse

BLANKS = r"[ \n\t]{0,16}"
_NUMBER = r"[A-Za-z0-9_.:-]{1,40}"
# Arguments without a schema.
_ANY_OBJECT = {"type": "object"}
_KEY = r"[A-Za-z0-9_.\-]{1,64}"
# A schema is followed so deep; what lies deeper is any value.
_DEEPEST = 8


@dataclass(frozen=True)
class AnswerForm(Form):
    """One answer: perhaps reasoning, then text or calls.

    Attributes:
        marks: around reasoning; None: the model does not think.
        thinking: whether the answer may begin with reasoning, or is in the middle of it already.
        calls: how calls are written; None without tools.
        use: which there may be.
        schema: the form of the text, where JSON is asked for; or an expression.
    """

    marks: Marks | None = None
    thinking: Thinking = "no"
    calls: CallForm | None = None
    use: ToolUse | None = None
    schema: Mapping[str, Any] | None = None
    regex: str | None = None

    @property
    def knob(self) -> str:
        return "tools" if self.use else "json_schema" if self.schema is not None else "regex"

    @property
    def key(self) -> str:
        tools = [[tool.plain, tool.function.strict] for tool in self.use.callable] if self.use else []
        rest = (self.marks, self.thinking, self.calls, self.use and (self.use.must_call, self.use.parallel), self.regex)
        return json.dumps([tools, str(rest), self.schema])

    @property
    def shown(self) -> tuple[str, ...]:
        of_marks = (self.marks.begin, self.marks.end) if self.marks else ()
        return (*of_marks, *(self.calls.marks if self.calls else ()))

    @property
    def is_constrained(self) -> bool:
        thinks_first = self.thinking != "no" and (self.schema is not None or self.regex is not None)
        return self.use is not None or thinks_first

    def lark(self, special: Mapping[str, int], control: frozenset[int], fits: Callable[[str], bool]) -> str:
        return _Writer(self, special, control, fits).text()


class _Writer:
    """Rules, one after another.

    Args:
        special: text -> id of tokens that llguidance wants by number.
        control: those that no free text holds.
        fits: whether a grammar can be followed.
    """

    def __init__(
        self, form: AnswerForm, special: Mapping[str, int], control: frozenset[int], fits: Callable[[str], bool]
    ) -> None:
        self._form, self._special, self._control, self._fits = form, special, control, fits
        self._rules: list[str] = []
        self._numbers = itertools.count()

    def text(self) -> str:
        form = self._form
        body = self._body()
        start = body
        if form.marks is not None and form.thinking != "no":
            ended = f"{self._until(form.marks.end)} /[ \\n\\t]+/?"
            thought = self.rule(f"{self._opening(form.marks.begin)} {ended}")  # some think again
            first = self.rule(ended) if form.thinking == "must" else thought
            start = f"{first} {thought}* ({body})" + ("" if form.thinking == "must" else f" | {body}")
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules])

    def rule(self, body: str, attributes: str = "") -> str:
        name = f"r{next(self._numbers)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    # -- text

    def literal(self, text: str, *, exact: bool = False) -> str:
        """A form's text: marks by number, the rest as expressions."""
        parts = []
        for piece in self._pieces(text):
            if piece in self._special:
                parts.append(f"<[{self._special[piece]}]>")
            else:
                pattern = _escaped(piece) if exact else loosely(piece)
                parts.append(_regex(pattern) + ("" if piece.strip() or exact else "?"))
        return " ".join(parts)

    def _pieces(self, text: str) -> list[str]:
        if not self._special:
            return [text] if text else []
        longest_first = sorted(self._special, key=len, reverse=True)
        marks = "|".join(re.escape(mark) for mark in longest_first if mark in text)
        return [piece for piece in re.split(f"({marks})", text) if piece] if marks else [text] if text else []

    def _opening(self, text: str) -> str:
        """A form's text where an answer may begin with it: white space before it is one lexeme with it, since of
        several that match, llguidance takes the longest."""
        first = self._pieces(text)[0]
        if first in self._special:
            return f"{_regex(BLANKS)}? {self.literal(text)}"
        return f"{_regex(BLANKS + loosely(first))} {self.literal(text[len(first) :])}"

    def _free(self, without: Sequence[str], *, first: str = "") -> str:
        """Text without these, of any length.

        Args:
            first: an expression that the text does not begin with.
        """
        words = self._words(without)
        begin = self._words(without, first) if first else words
        marks = self._other_marks(without)
        return self.rule(f"{begin}? ({marks} {words}?)*") if marks else self.rule(f"{begin}?")

    def _words(self, without: Sequence[str], first: str = "") -> str:
        name = f"T{next(self._numbers)}"
        bans = "".join(f" & ~/(?s:.*){_slashed(_escaped(one))}(?s:.*)/" for one in without if one)
        bans += f" & ~/{_slashed(first)}(?s:.*)/" if first else ""
        self._rules.append(f"{name}: /(?s:.+)/{bans}")
        return name

    def _other_marks(self, without: Sequence[str]) -> str:
        """Tokens of the tokenizer's own that a text may hold."""
        free = {i for text, i in self._special.items() if not any(text in one for one in without)} - self._control
        return f"<[{','.join(map(str, sorted(free)))}]>" if free else ""

    def _until(self, mark: str, *, first: str = "") -> str:
        """Any text up to and with a mark; `first` as in _free."""
        pieces = self._pieces(mark.strip())
        token = next((piece for piece in pieces if piece in self._special), None)
        if token is not None:
            rest = mark.strip().partition(token)[2]
            return f"{self._free([token], first=first)} <[{self._special[token]}]> {self.literal(rest)}"
        ending = f"/(?s:.*){_slashed(_escaped(mark.strip()))}/"
        tail, marks = self.rule(ending, "[lazy]"), self._other_marks([mark])
        begin = self.rule(f"{ending} & ~/{_slashed(first)}(?s:.*)/", "[lazy]") if first else tail
        if not marks:
            return begin
        return self.rule(f"{begin} | {self._words([mark], first)}? {marks} (/(?s:.+)/? {marks})* {tail}")

    # -- the answer

    def _body(self) -> str:
        form = self._form
        said = self._said()
        if form.use is None or form.calls is None or not form.use.callable:
            return said
        calls, trigger = form.calls, form.calls.trigger
        begun = self._calls(calls, form.use, calls.begin.lstrip().removeprefix(trigger))
        if form.use.must_call:
            return f"{self._opening(trigger)} {begun}"
        if form.schema is not None or form.regex is not None or calls.at_start:
            return f"{said} | {self._opening(trigger)} {begun}"
        return f"{said} | {self._until(trigger, first=self._thought_begins)} {begun}"

    @property
    def _thought_begins(self) -> str:
        """An expression for the mark that an answer may begin with, where that mark is text."""
        form = self._form
        if form.marks is None or form.thinking == "no" or self._pieces(form.marks.begin)[0] in self._special:
            return ""
        return rf"\s*{loosely(form.marks.begin)}"

    def _said(self) -> str:
        """What an answer says that calls nothing."""
        form = self._form
        if form.schema is not None:  # sentencepiece puts a space of its own before an answer
            return f'" "? %json {json.dumps(settled(dict(form.schema)))}'
        if form.regex is not None:
            return f'" "? {_regex(form.regex)}'
        if form.calls is None:
            return self._free([], first=self._thought_begins)
        if not form.calls.at_start:
            return self._free([form.calls.trigger], first=self._thought_begins)
        begins = [rf"\s*{loosely(form.calls.trigger)}", self._thought_begins]
        return self._free([], first=f"({'|'.join(filter(None, begins))})")

    def _calls(self, form: CallForm, use: ToolUse, begin: str) -> str:
        """All calls, from after the trigger."""
        one = self.rule(" | ".join(self._call(form, tool.function) for tool in use.callable))
        more = ""
        if use.parallel and form.between is not None:
            joint = f"{form.end}\n{form.begin.lstrip()}" if form.repeats else form.between
            more = f"({self.literal(joint)} {one})*"
        return f"{self.literal(begin)} {one} {more} {self.literal(form.end)} {_regex(BLANKS)}?"

    def _call(self, form: CallForm, function: Function) -> str:
        schema = function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
        if isinstance(form.arguments, Tagged):
            arguments = self._tagged(form.arguments, schema, function.strict)
        elif isinstance(form.arguments, Notation):
            arguments = self._object(form.arguments.quote, schema, schema, _DEEPEST)
        else:
            arguments = self._json(schema, function.strict)
        return f"{json.dumps(function.name, ensure_ascii=False)} {self.literal(form.middle)} {arguments}"

    def _json(self, schema: Mapping[str, Any], strict: bool | None, shared: Mapping[str, Any] | None = None) -> str:
        """JSON that fits; without `strict`, parts of a schema that cannot be held are passed over."""
        whole = settled(
            {**{key: (shared or {})[key] for key in ("$defs", "definitions") if key in (shared or {})}, **schema}
        )
        if not strict and not self._fits(f"start: %json {json.dumps(whole)}"):
            whole = {**whole, "x-guidance": {**whole["x-guidance"], "lenient": True}}
            if not self._fits(f"start: %json {json.dumps(whole)}"):
                whole = settled(dict(_ANY_OBJECT))
        return self.rule(f"%json {json.dumps(whole)}")

    # -- arguments one by one

    def _tagged(self, form: Tagged, schema: Mapping[str, Any], strict: bool | None) -> str:
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        if not properties:
            if not schema.get("additionalProperties"):
                return self.rule('""')
            return self.rule(f"({self._argument(form, _regex(_KEY), {}, schema, strict)})*")
        parts = []
        for key, part in properties.items():
            one = self._argument(form, json.dumps(key, ensure_ascii=False), part, schema, strict)
            parts.append(self.rule(one) + ("" if key in required else "?"))
        return self.rule(" ".join(parts))

    def _argument(self, form: Tagged, key: str, schema: Any, root: Mapping[str, Any], strict: bool | None) -> str:
        before = f"{self.literal(form.opening)} {key} {self.literal(form.middle, exact=True)}"
        resolved = resolve(schema, root)
        if (words := _words_of(resolved)) is not None:
            said = " | ".join(json.dumps(word, ensure_ascii=False) if word else '""' for word in words)
            return f"{before} ({said}) {self.literal(form.close, exact=True)}"
        if may_be_text(resolved):
            return f"{before} {self._text_until(form.close)}"
        return f"{before} {self._json(resolved, strict, root)} {self.literal(form.close, exact=True)}"

    def _text_until(self, close: str) -> str:
        pieces = self._pieces(close)
        first = next((piece for piece in pieces if piece in self._special), None)
        if first is None:
            return self.rule(f"/(?s:.*){_slashed(_escaped(close))}/", "[lazy]")
        rest = close.partition(first)[2]
        return f"{self._free([first])} <[{self._special[first]}]> {self.literal(rest, exact=True)}"

    # -- a notation of the template's own

    def _object(self, quote: str, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        if not properties:
            pair = f'{_regex(_KEY)} ":" {self._value(quote, {}, root, depth - 1)}'
            return self.rule(f'"{{" ({pair} ("," {pair})*)? "}}"') if depth else self.rule('"{" "}"')
        names = sorted(properties)  # as the templates write them
        pairs = {
            name: self.rule(
                f'{json.dumps(name, ensure_ascii=False)} ":" {self._value(quote, properties[name], root, depth - 1)}'
            )
            for name in names
        }
        return self.rule(f'"{{" {self._listed([(pairs[name], name in required) for name in names])} "}}"')

    def _listed(self, items: Sequence[tuple[str, bool]]) -> str:
        """Items in their order with commas between them; those that are not needed may be missing."""
        first = later = self.rule('""')  # what may follow nothing, and an item
        for item, is_needed in reversed(items):
            follow = later
            first = self.rule(f"{item} {follow}" + ("" if is_needed else f" | {first}"))
            later = self.rule(f'"," {item} {follow}' + ("" if is_needed else f" | {later}"))
        return first

    def _value(self, quote: str, schema: Any, root: Mapping[str, Any], depth: int) -> str:
        schema = resolve(schema, root)
        if depth <= 0:
            return self.rule(f"{self._quoted(quote)} | {_SCALAR}")
        if (words := _words_of(schema)) is not None:
            mark = self.literal(quote, exact=True)
            return self.rule(" | ".join(f"{mark} {json.dumps(word, ensure_ascii=False)} {mark}" for word in words))
        kinds = _kinds(schema)
        forms: list[str] = []
        for kind in kinds:
            if kind == "string":
                forms.append(self._quoted(quote))
            elif kind == "array":
                item = self._value(quote, schema.get("items", {}), root, depth - 1)
                forms.append(f'"[" ({item} ("," {item})*)? "]"')
            elif kind == "object":
                forms.append(self._object(quote, schema, root, depth))
            else:
                forms.append(
                    {"boolean": '"true" | "false"', "null": '"null"', "integer": "/-?[0-9]{1,19}/"}.get(kind, _FLOAT)
                )
        return self.rule(" | ".join(forms))

    def _quoted(self, quote: str) -> str:
        first = self._pieces(quote)[0]
        if first in self._special:
            mark = f"<[{self._special[first]}]>"
            return f"{mark} {self._free([first])} {mark}"
        return f"{self.literal(quote, exact=True)} {self._text_until(quote)}"


_FLOAT = r"/-?[0-9]{1,19}(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?/"
_SCALAR = f'{_FLOAT} | "true" | "false" | "null"'
_ALL_KINDS = ("string", "number", "boolean", "null", "array", "object")


def _kinds(schema: Mapping[str, Any]) -> Iterable[str]:
    kinds = schema.get("type", _ALL_KINDS)
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def resolve(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without a reference at its top; true is any value."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping):
            return {}
        place = schema.get("$ref")
        if not isinstance(place, str) or not place.startswith("#/"):
            return dict(schema)
        schema = pointed(root, place)
    return {}


def _words_of(schema: Mapping[str, Any]) -> list[str] | None:
    """The words of a value that is one of a few."""
    given = [schema["const"]] if "const" in schema else schema.get("enum")
    return list(given) if given and all(isinstance(one, str) for one in given) else None


def may_be_text(schema: Mapping[str, Any]) -> bool:
    """Whether a value may be text, which stands as it is where all else is JSON."""
    if "type" in schema:
        return "string" in _kinds(schema)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return any(isinstance(one, Mapping) and may_be_text(one) for one in options)
    return "properties" not in schema and "items" not in schema


def loosely(text: str) -> str:
    """An expression for a form's text, in both Rust's words and Python's: a little more or less white space."""
    pieces = re.split(r"(\s+|\x00)", text)
    return "".join(_NUMBER if one == NUMBER else BLANKS if one.isspace() else _escaped(one) for one in pieces if one)


def _escaped(text: str) -> str:
    return re.sub(r"([][\\.^$|?*+(){}/])", r"\\\1", text)


def _regex(pattern: str) -> str:
    return f"/{_slashed(pattern)}/"


def _slashed(pattern: str) -> str:
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern).replace("\n", r"\n").replace("\t", r"\t")
