"""Rows -> records: messages, alpaca, sharegpt, prompt/completion, preference, plain text.

All rows of a path have one format: the one named by the caller, or else the one whose keys the first readable
row has. Everything streams. What kinds of file there are, `data/rows.py` says; what a message leaves here as,
`data/records.py` says. Knows no tokenizer and no chat template: `data/chat.py` turns records into ids and
decides what is learnt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

from danlu.data.messages import (
    clipped,
    from_json,
    list_of,
    message_of,
    messages_of,
    present,
    text_of,
    tools_of,
    turn,
    turns_of,
)
from danlu.data.records import Conversation, Message, Preference, Record, Skipped, Text
from danlu.data.rows import Cells, PlacedRow, Row, RowFault, placed_rows
from danlu.errors import DataError, nearest

# The records' types are part of this file's face: whoever reads records names them too.
__all__ = [
    "Conversation", "FormatName", "Message", "OnError", "Preference", "Record", "Skipped", "Text",
    "detect_format", "format_of", "read_records", "record_from_row",
]  # fmt: skip

FormatName = Literal["messages", "alpaca", "sharegpt", "prompt_completion", "preference", "text"]
OnError = Literal["raise", "skip"]

# What a row must hold to be of a format.
REQUIRED_KEYS: dict[FormatName, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "text": ("text",),
}
_SHAPES = {name: f"{name}: {', '.join(keys)}" for name, keys in REQUIRED_KEYS.items()}
_CHAT_KEYS = ("system", "tools", "group")
_READ_KEYS: dict[FormatName, frozenset[str]] = {
    "messages": frozenset(("messages", *_CHAT_KEYS)),
    "alpaca": frozenset(("instruction", "output", "input", "history", *_CHAT_KEYS)),
    "sharegpt": frozenset(("conversations", *_CHAT_KEYS)),
    "prompt_completion": frozenset(("prompt", "completion", *_CHAT_KEYS)),
    "preference": frozenset(("chosen", "rejected", "prompt", *_CHAT_KEYS)),
    "text": frozenset(("text", "group")),
}
_KNOWN_KEYS = {*chain(*REQUIRED_KEYS.values()), "input", "history", "system", "prompt", "tools", "group"}
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "system": "system",
}  # sharegpt's "from" -> role
ROWS_TO_RECOGNISE = 100  # a path none of whose first rows has a format is given up


def read_records(
    path: Path,
    *,
    format: FormatName | None = None,
    on_error: OnError = "raise",
    skipped: Skipped | None = None,
) -> Iterator[Record]:
    """The records of a file, or of a directory's files, one at a time.

    Args:
        path: see the head of data/rows.py for the kinds.
        format: how rows are read; None recognises it by the keys of the first readable row.
        on_error: "raise" stops at the first faulty row; "skip" passes over it.
        skipped: told of every row that was passed over.

    Raises:
        DataError: at once for a path that is no readable file; while reading for a faulty row (when
            on_error is "raise"), for a fault after which the file cannot be read on, and at the end
            when there was no usable row.
    """
    if format is not None:
        _check_name(format)
    rows = placed_rows(Path(path), _known_columns)
    return _records(Path(path), rows, format, on_error, Skipped() if skipped is None else skipped)


def format_of(path: Path) -> FormatName:
    """The format that `read_records` recognises in a path: that of the first row with a format's keys.

    Raises DataError when none of the first ROWS_TO_RECOGNISE has them, with the fault of the first row.
    """
    first: DataError | None = None
    for place, row in islice(placed_rows(Path(path), _known_columns), ROWS_TO_RECOGNISE):
        try:
            return _detect(_sound(row))
        except RowFault as fault:
            first = first or fault.at(place)
    raise first or DataError(f"{path}: holds no rows", fix="check that this is the file you meant")


def record_from_row(row: Mapping[str, Any], format: FormatName | None, place: str) -> Record:
    """One row as a record; `place` says in errors where the row came from.

    Raises DataError for a row that is not of this format or, where `format` is None, of any one.
    """
    if format is not None:
        _check_name(format)
    try:
        given = present(row)
        return _record(given, format or _detect(given), place)
    except RowFault as fault:
        raise fault.at(place) from None


def detect_format(row: Mapping[str, Any]) -> FormatName:
    """The one format whose keys this row has; a key that holds None counts as absent.

    Raises DataError when there is none (with the nearest names) or more than one.
    """
    try:
        return _detect(present(row))
    except RowFault as fault:
        raise DataError(fault.seen, allowed=fault.allowed, fix=fault.fix) from None


def _records(
    path: Path, rows: Iterable[PlacedRow], format: FormatName | None, on_error: OnError, skipped: Skipped
) -> Iterator[Record]:
    found, before, origin = False, skipped.count, ""
    for place, row in rows:
        try:
            sound = _sound(row)
            if format is None:
                format, origin = _detect(sound), place
            record = _record(sound, format, place, origin)
        except RowFault as fault:
            if on_error == "raise":
                raise fault.at(place) from None
            skipped.add(place, str(fault), fault.fix)
            if format is None and skipped.count - before == ROWS_TO_RECOGNISE:
                break
        else:
            found = True
            skipped.shapes[_SHAPES[format]] += 1
            skipped.unread.update(sound.keys() - _READ_KEYS[format])
            yield record
    if not found:
        raise _nothing_usable(path, skipped, before)


def _nothing_usable(path: Path, skipped: Skipped, before: int) -> DataError:
    faulty = skipped.count - before
    if not faulty:
        return DataError(f"{path}: holds no rows", fix="check that this is the file you meant")
    shown = [f"    {place}: {reason}" for place, reason in skipped.faults[before : before + 5]]
    return DataError("\n".join([f"{path}: no usable row; {faulty} faulty, the first:", *shown]))


def _check_name(format: str) -> None:
    if format not in REQUIRED_KEYS:
        hint = nearest(format, REQUIRED_KEYS)
        raise DataError(f"unknown format {format!r} {hint}".rstrip(), allowed=", ".join(REQUIRED_KEYS))


def _sound(row: Row | RowFault) -> Row:
    if isinstance(row, RowFault):
        raise row
    return present(_with_lists(row) if isinstance(row, Cells) else row)


_TURN_KEYS = ("prompt", "completion", "chosen", "rejected")
_MESSAGE_LIST = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]")


def _with_lists(row: Row) -> Row:
    """A message list in a table's cell is read as JSON, and never learnt as if it were the text."""
    lists = [key for key in _TURN_KEYS if _MESSAGE_LIST.match(row.get(key, ""))]
    return {**row, **{key: _json_list(row[key].strip(), key) for key in lists}}


def _json_list(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        fault = f"{key}: looks like a list of messages, but is not JSON"
        raise RowFault(fault, fix="write it as JSON") from None


def _known_columns(names: list[str]) -> list[str]:
    """Those of a table's columns that any format reads; RowFault when they make no format."""
    row: Row = dict.fromkeys(names)
    if not _formats_of(row):
        raise _no_format(row)
    return [name for name in names if name in _KNOWN_KEYS]


def _formats_of(row: Row) -> list[FormatName]:
    return [name for name, keys in REQUIRED_KEYS.items() if all(key in row for key in keys)]


def _detect(row: Row) -> FormatName:
    formats = _formats_of(row)
    if not formats:
        raise _no_format(row)
    if len(formats) > 1:
        raise _ambiguous(formats)
    return formats[0]


def _no_format(row: Row) -> RowFault:
    shown = ", ".join(key[:40] for key in islice(row, 12)) or "(none)"
    wanted = "; ".join(f"{name} ({', '.join(keys)})" for name, keys in REQUIRED_KEYS.items())
    return RowFault(f"the keys match no format: {shown}", allowed=wanted, fix=_near_miss(row))


def _near_miss(row: Row) -> str:
    """What to do about a row that has some keys of a format, or keys that are nearly one's."""
    for name, keys in REQUIRED_KEYS.items():
        missing = [key for key in keys if key not in row]
        if len(missing) < len(keys):
            return f"{name} also needs {missing[0]!r} {nearest(missing[0], islice(row, 12))}".rstrip()
    every = [key for keys in REQUIRED_KEYS.values() for key in keys]
    hints = [f"{key!r}: {hint}" for key in islice(row, 12) if (hint := nearest(key[:40], every))]
    return "; ".join(hints) or "rename the keys to those of one format"


def _ambiguous(formats: list[FormatName]) -> RowFault:
    return RowFault(
        f"the row has the keys of more than one format: {' and '.join(formats)}",
        allowed="the keys of one format, or the format named",
        fix=f"name the format, such as format={formats[0]}",
    )


def _record(row: Row, format: FormatName, place: str, origin: str = "") -> Record:
    """`origin` is the place of the row whose keys chose the format; "" when the user named it."""
    _check_format(row, format, origin)
    try:
        return _PARSERS[format](row, place)
    except RecursionError:
        raise RowFault("nested too deeply") from None


def _check_format(row: Row, format: FormatName, origin: str) -> None:
    formats = _formats_of(row)
    if format in formats:
        if len(formats) > 1 and origin:
            raise _ambiguous(formats)
        return
    if formats:
        since = f" since {origin}" if origin else ""
        raise RowFault(
            f"mixed formats: this row is {formats[0]}, but the data is read as {format}{since}",
            allowed="rows of one format",
            fix="part the formats into files of their own",
        )
    missing = next(key for key in REQUIRED_KEYS[format] if key not in row)
    known = {key for keys in REQUIRED_KEYS.values() for key in keys}
    meant = nearest(missing, [key for key in islice(row, 12) if key not in known])
    raise RowFault(f"{format} needs the key {missing!r}", fix=meant)


def _from_messages(row: Row, place: str) -> Conversation:
    return _conversation(row, messages_of(row["messages"], "messages"), place)


def _from_alpaca(row: Row, place: str) -> Conversation:
    turns: list[Message] = []
    for index, pair in enumerate(list_of(row.get("history") or [], "history")):
        where = f"history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowFault(f"{where}: not a pair", allowed="[user, assistant]")
        turns += [turn("user", pair[0], where), turn("assistant", pair[1], where)]
    parts = [text_of(row.get(key, ""), key) for key in ("instruction", "input")]
    question = "\n\n".join(part for part in parts if part.strip())
    turns += [turn("user", question, "instruction"), turn("assistant", row["output"], "output")]
    return _conversation(row, tuple(turns), place)


def _from_sharegpt(row: Row, place: str) -> Conversation:
    items = list_of(row["conversations"], "conversations")
    turns = (_sharegpt_turn(item, f"conversations[{index}]") for index, item in enumerate(items))
    return _conversation(row, tuple(turns), place)


def _sharegpt_turn(item: Any, where: str) -> Message:
    """{"from", "value"}, or with the same speakers {"role", "content"}, which many such files hold."""
    if not isinstance(item, Mapping):
        raise RowFault(f"{where}: {type(item).__name__} instead of a turn", allowed='{"from", "value"}')
    message = present(item)
    for theirs, ours in (("from", "role"), ("value", "content")):
        if theirs in message:
            message[ours] = message.pop(theirs)
        elif ours not in message:
            raise RowFault(f"{where}: no {theirs!r} {nearest(theirs, message)}".rstrip())
    speaker = message["role"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise RowFault(f"{where}: unknown speaker {clipped(speaker)}", allowed=", ".join(SPEAKERS))
    if speaker == "function_call":
        calls = from_json(message.pop("content"), where)
        message["tool_calls"] = calls if isinstance(calls, list) else [calls]
    return message_of({**message, "role": SPEAKERS[speaker]}, where)


def _from_prompt_completion(row: Row, place: str) -> Conversation:
    prompt = turns_of(row["prompt"], "prompt", "user")
    completion = turns_of(row["completion"], "completion", "assistant")
    _check_is_answer(completion, "completion")
    unlearnt = ({**message, "train": False} if message["role"] == "assistant" else message for message in prompt)
    return _conversation(row, (*unlearnt, *completion), place)


def _from_preference(row: Row, place: str) -> Preference:
    if row.get("tools"):
        raise RowFault("tools are not supported in preference rows", fix="leave the key out")
    chosen = turns_of(row["chosen"], "chosen", "assistant")
    rejected = turns_of(row["rejected"], "rejected", "assistant")
    prompt = turns_of(row["prompt"], "prompt", "user") if row.get("prompt") else ()
    shared = _shared_opening(chosen, rejected)
    # Many files give the prompt and repeat it at the head of both answers.
    if not prompt or prompt in (shared[: len(prompt)], shared[-len(prompt) :]):
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    if not prompt:
        raise RowFault(
            "no prompt: chosen and rejected open with different messages",
            allowed="a key 'prompt', or two message lists that open alike",
        )
    prompt = _with_system(row, prompt)
    _check_is_answer(chosen, "chosen")
    _check_is_answer(rejected, "rejected")
    if chosen == rejected:
        raise RowFault("chosen and rejected are the same")
    return Preference(prompt, chosen, rejected, place, _group(row))


def _shared_opening(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages that both lists begin with, leaving each at least its last."""
    length, most = 0, min(len(one), len(other)) - 1
    while length < most and one[length] == other[length]:
        length += 1
    return one[:length]


def _check_is_answer(messages: tuple[Message, ...], key: str) -> None:
    for message, does in ((messages[0], "opens"), (messages[-1], "ends")):
        if message["role"] != "assistant":
            raise RowFault(f"{key} {does} with a {message['role']} turn", allowed="an assistant turn")


def _from_text(row: Row, place: str) -> Text:
    if not isinstance(row["text"], str):
        raise RowFault(f"text is {type(row['text']).__name__}", allowed="text")
    text = text_of(row["text"], "text")
    if not text.strip():
        raise RowFault("text is empty")
    return Text(text, place, _group(row))


_PARSERS: dict[FormatName, Callable[[Row, str], Record]] = {
    "messages": _from_messages,
    "alpaca": _from_alpaca,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
    "text": _from_text,
}
assert set(_PARSERS) == set(REQUIRED_KEYS) == set(get_args(FormatName))


def _conversation(row: Row, messages: tuple[Message, ...], place: str) -> Conversation:
    if not messages:
        raise RowFault("the conversation is empty", allowed="at least one assistant turn")
    messages = _with_system(row, messages)
    if messages[-1]["role"] != "assistant":
        raise RowFault(f"the last turn is {messages[-1]['role']}", allowed="assistant: its answer is learnt")
    if not any(message["role"] == "assistant" and message.get("train", True) for message in messages):
        raise RowFault("nothing to learn: every assistant turn has train=false or weight=0")
    return Conversation(messages, place, _group(row), tools_of(row.get("tools")))


def _with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The row's own "system" goes first, in every chat format."""
    system = text_of(row.get("system", ""), "system")
    if not system.strip():
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise RowFault("two system prompts: the key 'system' and the first message", fix="keep one of them")
    return ({"role": "system", "content": system}, *messages)


def _group(row: Row) -> str | None:
    group = row.get("group", "")
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise RowFault(f"group is {type(group).__name__}", allowed="text or a whole number")
    return text_of(str(group), "group") or None
