"""A record as the model will see it: text with the learnt part marked, control characters made visible.

Text is decoded in stretches that are then parted, never token by token, so that no character is torn; of a long
example, only what is shown is decoded. Draws nothing.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danlu.data.records import Conversation, Message, Preference, Record, Text

SHOWN_CHARACTERS = 2_000

# A stretch that is decoded by itself may begin or end inside a character, or lose a space before its first word: as
# many characters at its border are decoded and not shown.
_MARGIN = 16

Kind = Literal["context", "learnt", "left out"]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text that is context or learnt, or a note of how much is left out between two stretches."""

    text: str
    kind: Kind


def spans_of(token_ids: Sequence[int], learnt: Sequence[bool], tokenizer: Any) -> list[Span]:
    """A whole example, from its token ids. A character whose tokens are parted goes with the last of them."""
    ids = list(token_ids)
    borders = [at for at in range(1, len(ids)) if learnt[at] != learnt[at - 1]]
    whole = _decoded(tokenizer, ids)
    cuts = [_characters_before(tokenizer, ids[:at], whole) for at in borders]
    kinds: list[Kind] = ["learnt" if learnt[at] else "context" for at in [0, *borders]]
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    return [Span(text, kind) for text, kind in zip(parts, kinds, strict=True) if text]


def spans_shown(
    token_ids: Sequence[int], learnt: Sequence[bool], tokenizer: Any, limit: int = SHOWN_CHARACTERS
) -> list[Span]:
    """An example, with the middle of what has more than `limit` characters left out, and its tokens counted."""
    size = _reaching(tokenizer, token_ids, limit + _MARGIN)
    first = spans_of(token_ids[:size], learnt[:size], tokenizer)
    if size == len(token_ids) and _length(first) <= limit:
        return first
    before, after = limit // 2, limit - limit // 2
    turned = _reaching(tokenizer, token_ids, after + _MARGIN, from_end=True)
    last = spans_of(token_ids[-turned:], learnt[-turned:], tokenizer)
    kept = [
        bisect_left(range(size), before, key=lambda count: len(_decoded(tokenizer, token_ids[:count]))),
        bisect_left(
            range(turned), after, key=lambda count: len(_decoded(tokenizer, token_ids[len(token_ids) - count :]))
        ),
    ]
    left = max(1, len(token_ids) - sum(kept))  # one may be shown in part
    return [*_first(first, before), Span(f"{left:,}", "left out"), *_last(last, after)]


def _reaching(tokenizer: Any, ids: Sequence[int], characters: int, *, from_end: bool = False) -> int:
    """So many tokens, from the beginning or the end, that make that many characters; else all."""
    size = characters
    while size < len(ids):
        if len(_decoded(tokenizer, ids[-size:] if from_end else ids[:size])) >= characters:
            return size
        size *= 2
    return len(ids)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _characters_before(tokenizer: Any, ids: Sequence[int], whole: str) -> int:
    """How much of `whole` the first tokens make: as far as both agree, which is where a torn character begins."""
    part = _decoded(tokenizer, ids)
    if whole.startswith(part):
        return len(part)
    return next(at for at, (one, other) in enumerate(zip(part + "\0", whole + "\1", strict=False)) if one != other)


def spans_of_record(record: Record) -> list[Span]:
    """A record without a template: each turn under its role."""
    if isinstance(record, Text):
        return [Span(record.text, "learnt")]
    turns = record.messages if isinstance(record, Conversation) else record.chosen
    before = () if isinstance(record, Conversation) else record.prompt
    return [*_turns(before, False), *_turns(turns, True)]


def _turns(messages: Iterable[Message], may_learn: bool) -> Iterator[Span]:
    for message in messages:
        is_learnt = may_learn and message["role"] == "assistant" and message.get("train", True)
        yield Span(f"{message['role']}: ", "context")
        calls = message.get("tool_calls")
        yield Span(message["content"] + (str(calls) if calls else ""), "learnt" if is_learnt else "context")
        yield Span("\n", "context")


def answers_of(record: Record) -> list[Conversation | Text]:
    """What is rendered for a record: itself, or a preference's prompt with its better and with its worse answer."""
    if not isinstance(record, Preference):
        return [record]
    prompt = [{**message, "train": False} for message in record.prompt]
    return [Conversation((*prompt, *answer), record.place, record.group) for answer in (record.chosen, record.rejected)]


def shortened(spans: Sequence[Span], limit: int = SHOWN_CHARACTERS) -> list[Span]:
    """The same, with the middle of what is longer than `limit` left out and counted."""
    length = _length(spans)
    if length <= limit:
        return list(spans)
    head, tail = _first(spans, limit // 2), _last(spans, limit - limit // 2)
    return [*head, Span(f"{length - limit:,}", "left out"), *tail]


def _length(spans: Iterable[Span]) -> int:
    return sum(len(span.text) for span in spans)


def _first(spans: Iterable[Span], room: int) -> list[Span]:
    kept = []
    for span in spans:
        if room <= 0:
            break
        kept.append(Span(span.text[:room], span.kind))
        room -= len(span.text)
    return kept


def _last(spans: Sequence[Span], room: int) -> list[Span]:
    kept: list[Span] = []
    for span in reversed(spans):
        if room <= 0:
            break
        kept.insert(0, Span(span.text[-room:], span.kind))
        room -= len(span.text)
    return kept


_NAMED = {"\n": "\\n\n", "\t": "\\t", "\r": "\\r"}


def visible(text: str) -> str:
    """Text with what has no shape of its own spelt out; a line still ends where it ends."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    # Cc and Cf: control and format characters; Zl and Zp: separators; Co: private use.
    if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Co") and character != "\u200d":
        number = ord(character)
        return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
    return character
