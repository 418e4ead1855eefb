"""A row's values -> messages: checked, made uniform, or refused as the row's fault.

`where` and `key` say in a fault which part of the row it is. Knows neither formats of rows nor files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.data.records import Message
from danlu.data.row import Row, RowFault
from danlu.data.shapes.learnt import LEARNT_KEYS, learnt_keys
from danlu.data.shapes.speakers import Speakers
from danlu.errors import nearest

# Other names of a message's keys; the first that holds something is read.
_NAMES = {
    "role": ("role", "from", "speaker"),
    "content": ("content", "value", "text"),
    "reasoning_content": ("reasoning_content", "reasoning", "thinking", "think"),
}
# Two texts of one item that are a question and its answer.
PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("prompt", "response"),
         ("question", "answer"), ("instruction", "output"))  # fmt: skip
_READ = {*(name for names in _NAMES.values() for name in names), *LEARNT_KEYS,
         "name", "tool_call_id", "tool_calls", "function_call"}  # fmt: skip


@dataclass(slots=True)
class Reader:
    """How the values of one row are read, and what was found on the way.

    Attributes:
        placeholders_are_text: <image>, <video> and <audio> are words, and not where a picture was.
        may_be_unanswered: a row may ask alone.
        notes, unread: what was changed, and keys of messages that nothing reads; the row's own.
    """

    speakers: Speakers = field(default_factory=Speakers)
    placeholders_are_text: bool = False
    may_be_unanswered: bool = False
    notes: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)


_AN_OBJECT = "if the object itself is meant, write it as text: json.dumps"


def not_given(value: Any) -> bool:
    """None, or the NaN that tables hold where a cell is empty."""
    return value is None or (isinstance(value, float) and value != value)


def present(row: Mapping[str, Any]) -> Row:
    """The keys of a row, or of a message, that hold something: one that holds None or NaN counts as absent."""
    if not isinstance(row, Mapping):
        raise RowFault(f"{type(row).__name__} instead of a row", allowed="an object of keys and values")
    return {str(key): value for key, value in row.items() if not not_given(value)}


def clipped(value: Any) -> str:
    """A value as a fault shows it."""
    return repr(value)[:60]


def turns_of(value: Any, key: str, role: str, reader: Reader) -> tuple[Message, ...]:
    """Plain text is one turn of `role`; an object is one message, a list is messages."""
    value = _as_list(value, key)
    if isinstance(value, Mapping) and not _is_struct_of_lists(value):
        return (message_of(value, key, reader),)
    if isinstance(value, Mapping) or (isinstance(value, list | tuple) and not _are_texts(value)):
        return messages_of(value, key, reader)
    return (turn(role, value, key, reader),)


def _are_texts(value: list[Any] | tuple[Any, ...]) -> bool:
    return bool(value) and all(isinstance(part, str) for part in value)


_MESSAGE_LIST = re.compile(r"\s*(\[\s*)?\{\s*(['\"])(role|content|from|value)\2")


def _as_list(value: Any, key: str) -> Any:
    """A message list in a cell is read as what it is, and never learnt as if it were the text."""
    if isinstance(value, str) and _MESSAGE_LIST.match(value):
        return from_json(value, key)
    return value


def messages_of(value: Any, key: str, reader: Reader) -> tuple[Message, ...]:
    """A list of one message or more, its JSON text, or a struct of lists."""
    if isinstance(value, str):
        value = from_json(value, key)
    items = _as_rows(value, key) if isinstance(value, Mapping) else list_of(value, key)
    if not items:
        raise RowFault(f"{key} is empty", allowed="at least one message")
    return tuple(
        message for at, item in enumerate(items) for message in _messages_of_item(item, f"{key}[{at}]", reader)
    )


def _messages_of_item(item: Any, where: str, reader: Reader) -> tuple[Message, ...]:
    if isinstance(item, Mapping) and not any(name in item for name in _NAMES["role"]):
        given = present(item)
        for asked, answered in PAIRS:
            if asked in given and answered in given:
                reader.unread.update(f"{_stem(where)}.{key}" for key in given if key not in (asked, answered, "system"))
                system = (turn("system", given["system"], where, reader),) if given.get("system") else ()
                pair = turn("user", given[asked], where, reader), turn("assistant", given[answered], where, reader)
                return (*system, *pair)
    return (message_of(item, where, reader),)


def _is_struct_of_lists(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(isinstance(column, list | tuple) for column in value.values())


def _as_rows(value: Mapping[str, Any], key: str) -> list[Any]:
    """{"role": [...], "content": [...]}, as tables hold a list of objects -> the objects."""
    if not _is_struct_of_lists(value) or len({len(column) for column in value.values()}) > 1:
        raise RowFault(f"{key} is {type(value).__name__}", allowed="a list of messages, or lists of equal length")
    return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]


def turn(role: str, content: Any, where: str, reader: Reader) -> Message:
    """A message of nothing but a role and its content."""
    return message_of({"role": role, "content": content}, where, reader)


def message_of(item: Any, where: str, reader: Reader) -> Message:
    """{"role", "content", ...} checked and made uniform; keys that nobody reads are left out and noted."""
    if not isinstance(item, Mapping):
        raise RowFault(f"{where}: {type(item).__name__} instead of a message", allowed='{"role", "content"}')
    given = present(item)
    speaker = _first(given, "role", where)
    if speaker is None:
        meant = "" if _first(given, "content", where) else _AN_OBJECT
        raise RowFault(f"{where}: no 'role' or 'from' {nearest('role', given)}".rstrip(), fix=meant)
    role = reader.speakers.role_of(speaker, where)
    given, content = _thoughts_apart(given, _first(given, "content", where), where)
    if role == "tool_call":
        given, role, content = {**given, "tool_calls": _called(content, where)}, "assistant", None
    message: Message = {"role": role, "content": "", **_call_keys(given, role, where)}
    if content is not None:
        message["content"] = text_of(content, where)
        _check_no_media(message["content"], where, reader)
    elif "tool_calls" not in message:
        raise RowFault(f"{where}: no 'content' or 'value' {nearest('content', given)}".rstrip())
    if role in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in message:
        raise RowFault(
            f"{where}: the {role} turn is empty", fix="leave the turn out, or the row with data.on_error=skip"
        )
    reader.unread.update(f"{_stem(where)}.{key}" for key in given if key not in _READ)
    return {**message, **learnt_keys(given, role, where)}


_THOUGHTS = ("thinking", "reasoning")


def _thoughts_apart(given: Row, content: Any, where: str) -> tuple[Row, Any]:
    """(the message, its content): parts that hold a reasoning, {"type": "thinking", "thinking": ...}, under its key."""
    parts = content if isinstance(content, list | tuple) else ()
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
    if not any(kind in _THOUGHTS for kind in kinds):
        return given, content
    if _first(given, "reasoning_content", where) is not None:
        raise RowFault(f"{where}: two reasonings: a key's and a part's", fix="keep one of them")
    said = [part.get(kind, part.get("text")) for part, kind in zip(parts, kinds, strict=True) if kind in _THOUGHTS]
    others = [part for part, kind in zip(parts, kinds, strict=True) if kind not in _THOUGHTS]
    thoughts = "\n".join(text_of(text, f"{where}: reasoning") for text in said)
    return {**given, "reasoning_content": thoughts}, others


def _stem(where: str) -> str:
    return re.sub(r"\[\d+\]", "[]", where)


def _first(given: Row, key: str, where: str) -> Any:
    """The value under the first name of `key`; RowFault where another name says something else."""
    named = [name for name in _NAMES[key] if name in given]
    if any(given[name] != given[named[0]] for name in named if given[name] != ""):
        raise RowFault(f"{where}: {' and '.join(map(repr, named))} say different things", fix="keep one of them")
    return given[named[0]] if named else None


PLACEHOLDER = re.compile(r"<(image|video|audio)>")


def _check_no_media(text: str, where: str, reader: Reader) -> None:
    """A placeholder stands where a picture was; a tag that is closed is HTML."""
    if reader.placeholders_are_text or "<" not in text:
        return
    for found in PLACEHOLDER.finditer(text):
        if f"</{found[1]}>" not in text:
            raise RowFault(
                f"{where}: {found[0]} stands for content that is not text, and Danlu trains on text",
                fix="leave such rows out with data.on_error=skip; if it is a word, set data.placeholders=text",
            )


def _called(content: Any, where: str) -> list[Any]:
    """The calls that a turn of a speaker such as "function_call" holds."""
    calls = from_json(content, where) if isinstance(content, str) else content
    if not calls:
        raise RowFault(f"{where}: the call is empty", allowed='{"name", "arguments"}')
    return calls if isinstance(calls, list) else [calls]


def _call_keys(given: Row, role: str, where: str) -> Message:
    """What a message holds beside role and content, checked."""
    keys: Message = {key: text_of(given[key], f"{where}.{key}") for key in ("name", "tool_call_id") if key in given}
    reasoning = _first(given, "reasoning_content", where)
    if reasoning is not None:
        keys["reasoning_content"] = text_of(reasoning, f"{where}: reasoning")
    calls = given.get("tool_calls") or ([given["function_call"]] if given.get("function_call") else None)
    if calls:
        if role != "assistant":
            raise RowFault(f"{where}: tool_calls in a {role} turn", allowed="only in an assistant turn")
        listed = list_of(calls, f"{where}.tool_calls")
        if listed:
            keys["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(listed)]
    return keys


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """{"type", "function": {"name", "arguments"}} with arguments as a mapping, as chat templates want it."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowFault(f"{where}: no function name", allowed='{"function": {"name", "arguments"}}')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = from_json(arguments, f"{where}.arguments")
    if arguments in (None, "") or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RowFault(f"{where}.arguments is {type(arguments).__name__}", allowed="an object, or its JSON text")
    normal: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    if isinstance(call.get("id"), str):
        normal = {"id": call["id"], **normal}
    _check_plain(normal, where)
    return normal


def tools_of(value: Any) -> tuple[dict[str, Any], ...] | None:
    """The function schemas offered to the model; None when there are none."""
    tools = []
    for index, tool in enumerate(list_of(value or [], "tools")):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowFault(f"tools[{index}]: no function name", allowed='{"type", "function": {"name", ...}}')
        tools.append({"type": "function", "function": dict(function)})
        _check_plain(tools[-1], f"tools[{index}]")
    return tuple(tools) or None


_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")


def text_of(value: Any, where: str) -> str:
    """Text, a number's or a truth value's text, or OpenAI's list of text parts joined."""
    if isinstance(value, list | tuple):
        value = _joined_parts(value, where)
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    if not isinstance(value, str):
        fix = _AN_OBJECT if isinstance(value, Mapping) else ""
        raise RowFault(
            f"{where}: {type(value).__name__} instead of text", allowed="text, or a list of text parts", fix=fix
        )
    if found := _UNUSABLE.search(value):
        name = "a NUL" if found[0] == "\0" else f"half of a surrogate pair, U+{ord(found[0]):04X},"
        raise RowFault(f"{where}: {name} at character {found.start()}", fix="remove it")
    return value


def _joined_parts(parts: list[Any] | tuple[Any, ...], where: str) -> str:
    if _are_texts(parts):
        if len(parts) > 1:
            raise RowFault(
                f"{where}: a list of {len(parts)} texts where one is due", fix="write a row for each, or keep one"
            )
        return str(parts[0])
    return "".join(_part(part, f"{where}, part {index}") for index, part in enumerate(parts))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise RowFault(
            f"{where}: {clipped(kind)} content", allowed='{"type": "text", "text": ...}; Danlu trains on text'
        )
    return text


def list_of(value: Any, key: str) -> list[Any]:
    """A list, or the JSON text of one, as tables hold it."""
    if isinstance(value, str):
        value = from_json(value, key)
    if not isinstance(value, list | tuple):
        raise RowFault(f"{key} is {type(value).__name__}", allowed="a list")
    return list(value)


_PYTHON = re.compile(r"\s*[\[{(][\s\[{(]*('|None|True|False)")


def is_python(text: str) -> bool:
    """Whether a text that is no JSON looks like what Python's str() writes."""
    return _PYTHON.match(text) is not None


def from_json(value: Any, where: str) -> Any:
    """What a JSON text holds."""
    if not isinstance(value, str):
        raise RowFault(f"{where}: {type(value).__name__} instead of JSON text")
    try:
        return json.loads(value)
    except RecursionError:
        raise RowFault(f"{where}: nested too deeply") from None
    except ValueError as error:
        if is_python(value):
            raise RowFault(
                f"{where}: looks like a Python object written with str(), and is not JSON",
                allowed="JSON: double quotes, true, false, null",
                fix="write the column with json.dumps",
            ) from None
        raise RowFault(f"{where}: not valid JSON: {error}") from None


def _check_plain(value: Any, where: str) -> None:
    """Calls and tools hold nothing but what JSON and UTF-8 can say."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RowFault(f"{where}: not plain JSON: {error}") from None
