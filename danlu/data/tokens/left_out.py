"""What of a message a chat template did not write: an error, or a remark that is counted.

Compares words with rendered text. An answer that is learnt, and what was said to the model before it, must be there
whole; thoughts of earlier answers and names of speakers, which many templates leave out by design, are remarked on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from danlu.data.records import Conversation, Message
from danlu.errors import DataError

# Templates take an answer apart here, and may write its parts with other white space.
_BORDERS = re.compile(r"</?think(?:ing)?>|\n")

# A word of so many characters stands nowhere by chance.
LONG_WORD = 12

EARLIER_THOUGHTS = "the reasoning of an earlier answer"
A_NAME = "the name of a speaker"


def refuse_left_out_answer(record: Conversation, at: int, prompt: str, answer: str) -> None:
    """Raises DataError where the template leaves out a part of the learnt message `at`, or a tool."""
    message = record.messages[at]
    for tool in record.tools or ():
        if not names(prompt, tool["function"]["name"]):
            raise _left_out(record.place, f"the tool {tool['function']['name']!r}", "tools")
    refuse_left_out_calls(message, answer, record.place)
    if not stands_in(answer, message.get("reasoning_content") or ""):
        raise _left_out(record.place, "the reasoning of an answer", "reasoning_content")
    if not stands_in(answer, message.get("content") or ""):
        raise _left_out(record.place, f"words of message {at} (assistant)", "content")


def refuse_left_out_calls(message: Message, text: str, place: str) -> None:
    for call in message.get("tool_calls") or ():
        if not names(text, call["function"]["name"]):
            raise _left_out(place, f"a call of {call['function']['name']!r}", "tool_calls")
        if not all(names(text, word) for word in _words(call["function"].get("arguments"))):
            raise _left_out(place, f"arguments of a call of {call['function']['name']!r}", "tool_calls")


def refuse_left_out_context(messages: Sequence[Message], text: str, place: str = "") -> None:
    """Raises DataError where `text` lacks words that were said to the model: by system, user or tool."""
    for at, message in enumerate(messages):
        content = message.get("content")
        if message["role"] != "assistant" and isinstance(content, str) and not stands_in(text, content):
            raise _left_out(place, f"words of message {at} ({message['role']})", "content")


def remarks(messages: Sequence[Message], prompt: str) -> Iterator[str]:
    """What the template leaves out of the messages before an answer, though it may."""
    for message in messages:
        if message["role"] == "assistant":
            said = (message.get("reasoning_content"), message.get("content"))
            if not all(stands_in(prompt, words or "") for words in said):
                yield EARLIER_THOUGHTS
        if message.get("name") and not names(prompt, message["name"]):
            yield A_NAME


def stands_in(text: str, words: str) -> bool:
    """Whether `text` has these words: as they are, as JSON, or line by line with other white space or case."""
    words = words.strip()
    if words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text:
        return True
    text = text.casefold()
    return all(part.strip() in text for part in _BORDERS.split(words.casefold()))


def names(text: str, word: str) -> bool:
    """Whether `text` has this word by itself: "f" does not stand in <end_of_turn>. Of long ones, `stands_in`."""
    for spelt in {word.strip(), json.dumps(word.strip(), ensure_ascii=False)[1:-1]}:
        if not spelt or re.search(rf"(?<![A-Za-z0-9_]){re.escape(spelt)}(?![A-Za-z0-9_])", text):
            return True
    return len(word) >= LONG_WORD and stands_in(text, word)


def _words(value: Any) -> Iterator[str]:
    """All strings of a call's arguments, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)


def _left_out(place: str, what: str, key: str) -> DataError:
    seen = f"the chat template leaves out {what}"
    return DataError(
        f"{place}: {seen}" if place else seen,
        fix=f"use a template that writes {key} (data.chat_template), or {_instead(key, of_data=bool(place))}",
    )


def _instead(key: str, of_data: bool) -> str:
    """What to do where there is no other template. Rows of data may spell the key otherwise."""
    if key == "content":
        return "remove these words"
    if not of_data:
        return f"remove the key {key!r}"
    if key == "tools":
        return "do without them: data.columns={tools: null}"
    rows = "leave such rows out with data.on_error=skip"
    return rows if key == "tool_calls" else f"{rows}; a column of it is not read with data.columns={{{key}: null}}"
