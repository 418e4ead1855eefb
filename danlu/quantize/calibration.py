"""The text that a method looks at: a data file's, or what is on every machine with Python, as rows of tokens.

Conversations are written as the model's template writes them, answers and all; documents as they are. They stand end
to end, in an order drawn once, and are cut into rows of one length. Knows no method.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from danlu.data.chat import Chat
from danlu.data.formats import read_records
from danlu.data.records import Conversation, Preference, Record, Text
from danlu.data.stdlib import docstring_texts
from danlu.errors import DataError
from danlu.fingerprint import of_value

SEED = 0
OWN = "Python's documentation, which is English; give texts of your own with calibration"


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


def read_calibration(path: Path | None, chat: Chat, *, tokens: int, length: int, at_least: int) -> Calibration:
    """Rows of `length` tokens, `tokens` in all where there are so many.

    Args:
        path: a data file; None is Python's documentation.
        at_least: how many tokens are needed.

    Raises DataError for a file that holds fewer, or cannot be read.
    """
    records: list[Record] = list(_own_records()) if path is None else list(read_records(path))
    random.Random(SEED).shuffle(records)
    ids: list[int] = []
    for one in records:
        if len(ids) >= tokens:
            break
        ids += _ids(one, chat)
    source = OWN if path is None else str(path)
    count = min(len(ids), tokens) // length
    if count * length < at_least or count == 0:
        raise DataError(
            f"{source}: {len(ids):,} tokens, which are {count} rows of {length}: too little to calibrate on",
            allowed=f"at least {at_least:,} tokens in whole rows: as many as the widest layer has inputs",
            fix="give more text, or shorter rows with calibration_length; or round without any: method=rtn",
        )
    rows = torch.tensor(ids[: count * length]).view(count, length)
    return Calibration(tuple(rows), source)


def _own_records() -> Iterator[Record]:
    return (Text(row["text"], row["group"]) for row in docstring_texts())


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
