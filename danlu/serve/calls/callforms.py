"""How a model writes a call of a tool: read off its chat template, by rendering a call and looking at what it wrote.

A template that knows tools writes an earlier answer's call in the form that its model was trained on. A probe
conversation with known names and values shows that form: what stands before the function's name, between it and the
arguments, between two calls and after the last. So no list of models is needed. Where a template knows no tools, or
writes calls in a form that is not understood here, GENERIC is used, and the tools are explained in words.

Knows no grammar and no answer.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from danlu.data.chat import Chat
from danlu.data.records import Message
from danlu.errors import DanluError
from danlu.serve.calls.reasoning import Marks

Ids = Literal["any", "nine", "numbered"]

# Stands in a form's text for the name or the number of a call, which some templates write.
NUMBER = "\x00"

_FIRST, _SECOND, _RESULT = "fire_phoenix", "ice_dragon", "topaz_tower"
_ARGUMENTS: dict[str, Any] = {"amber": "opal", "jade": 7}
_MARK = re.compile(r"<[^<>\n]+>|\[[A-Z_]+\]")


@dataclass(frozen=True)
class Tagged:
    """Arguments written one by one: opening, key, middle, value, close. Text stands as it is, all else as JSON."""

    opening: str
    middle: str
    close: str


@dataclass(frozen=True)
class Notation:
    """Arguments as `{key:value,…}`, text between two quotes of the template's own."""

    quote: str


@dataclass(frozen=True)
class CallForm:
    """What surrounds the parts of calls.

    Attributes:
        begin: before the first function's name.
        middle: between a name and its arguments.
        between: between the arguments of one call and the name of the next; None: an answer calls once.
        end: after the last arguments.
        trigger: the beginning of `begin` that says that a call has begun.
        at_start: it says so only where an answer begins: it is no mark of its own.
        arguments: how they are written; None is JSON.
        native: the template writes calls and their results; else both are put into words.
        tells: it writes which tools there are; else that is put into words.
        ids: what the template asks of the names of calls.
        null_content: it takes the missing words of an answer that calls as none, others as no letters.
    """

    begin: str
    middle: str
    between: str | None
    end: str
    trigger: str
    at_start: bool = False
    arguments: Tagged | Notation | None = None
    native: bool = True
    tells: bool = True
    ids: Ids = "any"
    null_content: bool = False

    @property
    def repeats(self) -> bool:
        """Whether a further call is one that begins anew, and not an item of a list."""
        joint = re.escape(self.end.rstrip()) + r"\s*" + re.escape(self.begin.lstrip())
        return self.between is not None and re.fullmatch(joint, self.between) is not None

    @property
    def marks(self) -> tuple[str, ...]:
        """All text of the form, which an answer's text has to show."""
        extra: tuple[str, ...] = ()
        if isinstance(self.arguments, Tagged):
            extra = (self.arguments.opening, self.arguments.middle, self.arguments.close)
        elif isinstance(self.arguments, Notation):
            extra = (self.arguments.quote,)
        return (self.begin, self.middle, self.between or "", self.end, *extra)

    def history(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with their calls as the template takes them."""
        renamed: dict[str, str] = {}
        called: dict[str, str] = {}
        changed = []
        for message in messages:
            if calls := message.get("tool_calls"):
                message = {**message, "tool_calls": [self._call(call, len(renamed), renamed) for call in calls]}
                if self.null_content and not message["content"]:
                    message["content"] = None
                called |= {call["id"]: call["function"]["name"] for call in calls}
            elif message["role"] == "tool":
                asked = message.get("tool_call_id", "")
                name = message.get("name") or called.get(asked)
                message = message | {"tool_call_id": renamed.get(asked, asked)} | ({"name": name} if name else {})
            changed.append(message)
        return changed

    def _call(self, call: Mapping[str, Any], number: int, renamed: dict[str, str]) -> dict[str, Any]:
        function, identifier = call["function"], call["id"]
        if self.ids == "nine":
            identifier = f"{number:09d}"
        elif self.ids == "numbered":
            identifier = f"functions.{function['name']}:{number}"
        renamed[call["id"]] = identifier
        return {"id": identifier, "type": "function", "function": dict(function)}


GENERIC = CallForm(
    begin='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    end="}\n</tool_call>",
    trigger="<tool_call>",
    native=False,
    tells=False,
)

_SHAPES = [
    replace(GENERIC, ids=ids, null_content=null) for null in (False, True) for ids in ("any", "nine", "numbered")
]


def call_form(chat: Chat, marks: Marks | None) -> CallForm:
    """The form of a model's calls.

    Args:
        marks: around its reasoning, of which templates may write none at all before a call.
    """
    for shape in _SHAPES:
        if (found := _Probe(chat, shape, marks).form()) is not None:
            return found
    return GENERIC


def _tool(name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "a probe", "parameters": parameters}}


_TOOLS = [
    _tool(
        _FIRST, {"amber": {"type": "string", "description": "one"}, "jade": {"type": "integer", "description": "two"}}
    ),
    _tool(
        _SECOND, {"amber": {"type": "string", "description": "one"}, "jade": {"type": "integer", "description": "two"}}
    ),
]


class _Probe:
    """One way of handing a call to a template.

    Args:
        shape: says in which; nothing else of it is used.
    """

    def __init__(self, chat: Chat, shape: CallForm, marks: Marks | None) -> None:
        self._chat, self._shape, self._marks = chat, shape, marks

    def form(self) -> CallForm | None:
        """The form, where the template takes calls in this way and writes them in a form that is understood."""
        result = {"role": "tool", "tool_call_id": "call_0", "content": _RESULT}
        try:
            tells = _FIRST in self._text(opening=True)
            if _RESULT not in self._text(self._calls(_FIRST), result):
                return None
            answer = self._answer(_FIRST)
        except DanluError:
            return None
        found = None if answer is None else self._read(answer)
        if (
            found is None
            or found.trigger in self._text({"role": "assistant", "content": _RESULT}).rpartition(_RESULT)[2]
        ):
            return None
        try:
            both = self._answer(_FIRST, _SECOND)
        except DanluError:
            both = None
        return replace(self._with_several(found, both or ""), tells=tells)

    def _text(self, *turns: Message, opening: bool = False) -> str:
        messages = self._shape.history([{"role": "user", "content": "?"}, *turns])
        return self._chat.prompt_text(messages, _TOOLS, add_generation_prompt=opening)

    def _calls(self, *names: str) -> Message:
        calls = [
            {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": _ARGUMENTS}}
            for at, name in enumerate(names)
        ]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    def _answer(self, *names: str) -> str | None:
        """What the template writes of an answer that calls, from its first character to its last."""
        text, said = self._text(self._calls(*names)), self._text({"role": "assistant", "content": _RESULT})
        header = _whole_marks(_shared(text, said))
        if _RESULT in header:  # the call was left out
            return None
        answer, ending = text[len(header) :], said.rpartition(_RESULT)[2]
        stops = [str(name) for name in self._chat.tokenizer.convert_ids_to_tokens(sorted(self._chat.stop_ids))]
        places = [at for stop in stops if (at := answer.find(stop)) >= 0]
        if places:
            answer = answer[: min(places)]
        answer = answer.removesuffix(ending)
        if self._marks is not None and answer.lstrip().startswith(self._marks.begin):
            answer = answer.partition(self._marks.end)[2]
        for identifier in self._identifiers(*names):
            answer = answer.replace(identifier, NUMBER)
        return answer

    def _identifiers(self, *names: str) -> list[str]:
        calls = self._shape.history([self._calls(*names)])[0]["tool_calls"]
        return [call["id"] for call in calls] if self._shape.ids != "numbered" else []

    def _read(self, answer: str) -> CallForm | None:
        begin, name, rest = answer.partition(_FIRST)
        if not name:
            return None
        if (arguments := _json_place(rest)) is not None:
            form = replace(GENERIC, begin=begin, middle=rest[: arguments[0]], end=rest[arguments[1] :].rstrip())
        elif (tagged := _tagged(rest)) is not None:
            middle, kind, end = tagged
            form = replace(GENERIC, begin=begin, middle=middle, end=end.rstrip(), arguments=kind)
        else:
            return None
        mark = _MARK.match(begin.lstrip())
        return replace(
            form,
            trigger=mark[0] if mark else begin.strip(),
            at_start=mark is None and not begin.lstrip().startswith("<"),
            between=None,
            native=True,
            ids=self._shape.ids,
            null_content=self._shape.null_content,
        ) if begin.strip() else None  # fmt: skip

    def _with_several(self, form: CallForm, both: str) -> CallForm:
        """The form with what stands between two calls; as it is where the template takes one alone."""
        before, name, after = both.rpartition(_SECOND)
        if not name or (between := self._after_arguments(form, before.partition(_FIRST)[2])) is None:
            return form
        if form.arguments is None:
            place = _json_place(after)
            middle = after[: place[0]] if place else ""
            numbered = re.sub(r"\d", NUMBER, middle)
            if middle != form.middle:
                if numbered != re.sub(r"\d", NUMBER, form.middle):
                    return form
                form = replace(form, middle=numbered)
        return replace(form, between=between)

    @staticmethod
    def _after_arguments(form: CallForm, rest: str) -> str | None:
        if form.arguments is None:
            place = _json_place(rest)
            return None if place is None else rest[place[1] :]
        value = str(_ARGUMENTS["jade"])
        after = rest[rest.rfind(value) + len(value) :]
        return after.removeprefix(form.arguments.close if isinstance(form.arguments, Tagged) else "}")


def _shared(one: str, other: str) -> str:
    """The beginning that two texts share."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in pairs)


def _whole_marks(text: str) -> str:
    """`text` without the beginning of a mark at its end."""
    return text[: text.rfind("<")] if text.rfind("<") > text.rfind(">") else text


def _json_place(text: str) -> tuple[int, int] | None:
    """Where the probe's arguments stand as JSON."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, found.start())
        except ValueError:
            continue
        if value == _ARGUMENTS:
            return found.start(), end
    return None


def _tagged(text: str) -> tuple[str, Tagged | Notation, str] | None:
    """(what stands before the arguments, how they are written, what stands after them)."""
    parts = re.fullmatch(r"(.*?)amber(.*?)opal(.*?)jade(.*?)7(.*)", text, re.DOTALL)
    if parts is None:
        return None
    before, first, joint, second, after = parts.groups()
    if first == second and first:
        close = _whole_marks(_shared(joint, after))
        opening = joint[len(close) :]
        if close.strip() and opening and before.endswith(opening):
            return before[: len(before) - len(opening)], Tagged(opening, first, close), after[len(close) :]
    quote = first[1:]
    if second == ":" and first == f":{quote}" and quote and joint == f"{quote}," and before.endswith("{"):
        return before[:-1], Notation(quote), after.removeprefix("}")
    return None
