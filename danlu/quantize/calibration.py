"""The text that a method looks at: a data file's, or what is on every machine with Python, as rows of tokens.

Conversations are written as the model's template writes them, answers and all; documents as they are. They stand end
to end, in an order drawn once, and are cut into rows of one length. A row begins where a text does, as everything does
that a model is asked: its first token is what all others attend to, and what a method fits to that token has to be
what it will be. Without texts of the user's own, a model with a template gets conversations by turns with documents,
and every model some Chinese: codes that were fitted to documents alone were measured to be no nearer than rounded ones
where it is talked with, and those that were fitted to English alone no nearer where Chinese is read.
Knows no method.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from danlu.data.chat import Chat
from danlu.data.formats import read_records
from danlu.data.records import Conversation, Preference, Record, Text
from danlu.data.stdlib import docstring_pairs, docstring_texts
from danlu.errors import DataError
from danlu.fingerprint import of_value

Kind = TypeVar("Kind")

SEED = 0
TALKS = 5  # after each document: about as many tokens
LETTERS = 250  # of Chinese after these: a quarter to a third of all tokens
OWN = "Python's documentation and Danlu's Chinese help; give texts of your own with calibration"


@dataclass(frozen=True)
class Calibration:
    """Rows of token ids, and what they are.

    Attributes:
        rows: each (length,).
        source: in words.
    """

    rows: tuple[Tensor, ...]
    source: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    @property
    def digest(self) -> str:
        return of_value([row.tolist() for row in self.rows])


class Texts(NamedTuple):
    """Token ids of each text, in an order drawn once, to be gone through once; and what they are, in words."""

    ids: Iterable[list[int]]
    source: str


def texts_of(path: str | None, chat: Chat) -> Texts:
    """The records of a data file; None is Python's documentation. Raises DataError for one that cannot be read."""
    records = _own_records(chat) if path is None else _shuffled(read_records(Path(path)))
    return Texts((_ids(one, chat) for one in records), OWN if path is None else path)


def in_rows(ids: Iterable[list[int]], source: str, *, tokens: int, length: int, at_least: int) -> Calibration:
    """Rows of `length` tokens, `tokens` in all where there are so many.

    Raises DataError for fewer than `at_least`.
    """
    rows, seen = _rows(ids, tokens // length, length)
    if not rows or len(rows) * length < at_least:
        raise DataError(
            f"{source}: {seen:,} tokens, which are {len(rows)} rows of {length}: too little to calibrate on",
            allowed=f"at least {at_least:,} tokens in whole rows: as many as the widest layer has inputs",
            fix="give more text, or shorter rows with calibration_length; or round without any: method=rtn",
        )
    return Calibration(tuple(map(torch.tensor, rows)), source)


def _shuffled(records: Iterable[Kind]) -> list[Kind]:
    found = list(records)
    random.Random(SEED).shuffle(found)
    return found


def _own_records(chat: Chat) -> list[Record]:
    """Python's documentation; by turns asked for and answered, where there is a template to write that; and Chinese."""
    texts = _shuffled(Text(row["text"], row["group"]) for row in docstring_texts())
    talks = iter(_shuffled(Conversation(tuple(row["messages"]), row["group"]) for row in docstring_pairs()))
    asked = TALKS if chat.has_template else 0
    chinese = iter(_chinese())
    found: list[Record] = []
    for text in texts:
        found += [text, *islice(talks, asked), *islice(chinese, 1)]
    return found


def _chinese() -> Iterator[Text]:
    """Danlu's help and its list of terms, in pieces, each some sentences of either."""
    own = resources.files("danlu")
    pairs = (own / "options.zh.txt").read_text("utf-8").split("\n\n")  # an English line, and what it is in Chinese
    terms = (own / "data" / "samples" / "terms.zh.md").read_text("utf-8")
    lines = [line for line in terms.splitlines() if line and not line.startswith("#")]
    lines += [line for pair in pairs for line in pair.splitlines()[1:2]]
    piece: list[str] = []
    for line in _shuffled(lines):
        piece.append(line)
        if sum(map(len, piece)) >= LETTERS:
            yield Text("\n".join(piece), "danlu")
            piece = []


def _rows(texts: Iterable[list[int]], most: int, length: int) -> tuple[list[list[int]], int]:
    """Rows, and how many tokens were looked through. What a row leaves of a text goes on if it fills the next one."""
    rows: list[list[int]] = []
    row: list[int] = []
    seen = 0
    for ids in texts:
        seen, row = seen + len(ids), [*row, *ids]
        while len(row) >= length:
            rows.append(row[:length])
            row = row[length:] if len(row) >= 2 * length else []
        if len(rows) >= most:
            break
    return rows[:most], seen


def _ids(record: Record, chat: Chat) -> list[int]:
    if isinstance(record, Text):
        return chat.text_prompt(record.text)
    if isinstance(record, Preference):
        return _conversation([*record.prompt, *record.chosen], chat)
    assert isinstance(record, Conversation)
    return _conversation(record.messages, chat)


def _conversation(messages: Iterable[dict[str, object]], chat: Chat) -> list[int]:
    """As the template writes it; without one, what is said, line by line."""
    turns = list(messages)
    if chat.has_template:
        return chat.whole(turns)
    return chat.text_prompt("\n".join(str(turn["content"]) for turn in turns if turn.get("content")))
