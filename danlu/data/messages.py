"""A row's values -> messages: checked, made uniform, or refused as the row's fault.

`where` and `key` say in a fault which part of the row it is. Knows neither formats of rows nor files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from danlu.data.records import Message
from danlu.data.rows import Row, RowFault
from danlu.errors import nearest

ROLES = ("system", "developer", "user", "assistant", "tool")


def present(row: Mapping[str, Any]) -> Row:
    """The keys of a row, or of a message, that hold something: a key that holds None counts as absent."""
    if not isinstance(row, Mapping):
        raise RowFault(f"{type(row).__name__} instead of a row", allowed="an object of keys and values")
    return {str(key): value for key, value in row.items() if value is not None}


def clipped(value: Any) -> str:
    """A value as a fault shows it."""
    return repr(value)[:60]


def turns_of(value: Any, key: str, role: str) -> tuple[Message, ...]:
    """Plain text is one turn of `role`; a list is messages."""
    if isinstance(value, str):
        return (turn(role, value, key),)
    if not isinstance(value, list | tuple):
        raise RowFault(f"{key} is {type(value).__name__}", allowed="text or a list of messages")
    return messages_of(value, key)


def messages_of(value: Any, key: str) -> tuple[Message, ...]:
    """A list of one message or more, or its JSON text."""
    items = list_of(value, key)
    if not items:
        raise RowFault(f"{key} is empty", allowed="at least one message")
    return tuple(message_of(item, f"{key}[{index}]") for index, item in enumerate(items))


def turn(role: str, content: Any, where: str) -> Message:
    """A message of nothing but a role and its content."""
    return message_of({"role": role, "content": content}, where)


def message_of(item: Any, where: str) -> Message:
    """{"role", "content", ...} checked and made uniform; keys that nobody reads are left out."""
    if not isinstance(item, Mapping):
        raise RowFault(f"{where}: {type(item).__name__} instead of a message", allowed='{"role", "content"}')
    given = present(item)
    if "role" not in given:
        raise RowFault(f"{where}: no 'role' {nearest('role', given)}".rstrip())
    role = given["role"]
    if role not in ROLES:
        raise RowFault(f"{where}: unknown role {clipped(role)}", allowed=", ".join(ROLES))
    message = {"role": role, "content": "", **_call_keys(given, role, where)}
    if "content" in given:
        message["content"] = text_of(given["content"], where)
    elif "tool_calls" not in message:
        raise RowFault(f"{where}: no 'content' {nearest('content', given)}".rstrip())
    if role in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in message:
        raise RowFault(f"{where}: the {role} turn is empty")
    if not _is_learnt(given, role, where):
        message["train"] = False
    return message


def _call_keys(given: Row, role: str, where: str) -> Message:
    """What a message holds beside role and content, checked."""
    if "function_call" in given:
        raise RowFault(f"{where}: 'function_call' is an old form", fix="write it as tool_calls")
    keys: Message = {
        key: text_of(given[key], f"{where}.{key}")
        for key in ("name", "tool_call_id", "reasoning_content")
        if key in given
    }
    if calls := given.get("tool_calls"):
        if role != "assistant":
            raise RowFault(f"{where}: tool_calls in a {role} turn", allowed="only in an assistant turn")
        listed = list_of(calls, f"{where}.tool_calls")
        keys["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(listed)]
    return keys


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """{"type", "function": {"name", "arguments"}} with arguments as a mapping, as chat templates want it."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowFault(f"{where}: no function name", allowed='{"function": {"name", "arguments"}}')
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = from_json(arguments, f"{where}.arguments")
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


def _is_learnt(given: Row, role: str, where: str) -> bool:
    """`train` (true, false) or OpenAI's `weight` (0, 1) of an assistant turn; True when neither is given."""
    train, weight = given.get("train"), given.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowFault(f"{where}: train is {clipped(train)}", allowed="true or false")
    if weight is not None and weight not in (0, 1):
        raise RowFault(f"{where}: weight is {clipped(weight)}", allowed="0 or 1")
    if role != "assistant":
        if train:
            raise RowFault(f"{where}: train=true in a {role} turn", allowed="only assistant turns are learnt")
        return True
    if train is not None and weight is not None and train != bool(weight):
        raise RowFault(f"{where}: train and weight disagree", fix="keep one of them")
    return train is not False and weight != 0


_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")


def text_of(value: Any, where: str) -> str:
    """Text, or OpenAI's list of text parts joined."""
    if isinstance(value, list | tuple):
        value = "".join(_part(part, f"{where}, part {index}") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise RowFault(f"{where}: {type(value).__name__} instead of text", allowed="text, or a list of text parts")
    if found := _UNUSABLE.search(value):
        name = "a NUL" if found[0] == "\0" else f"half of a surrogate pair, U+{ord(found[0]):04X},"
        raise RowFault(f"{where}: {name} at character {found.start()}", fix="remove it")
    return value


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


def from_json(value: Any, where: str) -> Any:
    """What a JSON text holds."""
    if not isinstance(value, str):
        raise RowFault(f"{where}: {type(value).__name__} instead of JSON text")
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowFault(f"{where}: not valid JSON: {error}") from None


def _check_plain(value: Any, where: str) -> None:
    """Calls and tools hold nothing but what JSON and UTF-8 can say."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RowFault(f"{where}: not plain JSON: {error}") from None
