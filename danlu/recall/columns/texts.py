"""Texts in two arrays: where each begins, and all their bytes (UTF-8). A dictionary has them in their bytes' order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from danlu.recall.columns.asked import Like
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import Array


@dataclass(frozen=True)
class Texts:
    """Attributes:
    starts: int64, one more than there are texts. data: uint8.
    """

    starts: Array
    data: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    def encoded(self, at: int) -> bytes:
        return self.data[self.starts[at] : self.starts[at + 1]].tobytes()

    def __getitem__(self, at: int) -> str:
        return self.encoded(at).decode("utf-8", "replace")

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> Texts:
        listed = list(texts)
        starts = np.cumsum([0, *map(len, listed)], dtype=np.int64)
        return cls(starts, np.frombuffer(b"".join(listed), np.uint8))

    def write(self, writer: ArrayWriter) -> None:
        writer.add("starts", self.starts)
        writer.add("bytes", self.data)

    @classmethod
    def read(cls, file: ArrayFile) -> Texts:
        """Raises Damaged if the places do not lie within the bytes."""
        starts, data = file["starts"], file["bytes"]
        if len(starts) == 0 or starts[0] != 0 or starts[-1] != len(data):
            raise Damaged(f"{file.name}: its texts do not fit together")
        return cls(starts, data)

    def taken(self, rows: Array) -> Texts:
        """The texts of these places, in this order."""
        begins, lengths = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        inside = np.arange(starts[-1]) + np.repeat(begins - starts[:-1], lengths)
        return Texts(starts, self.data[inside])


class Dictionary:
    """Different texts in the order of their bytes, which is that of their characters; the first has code 1."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def first_from(self, text: bytes) -> int:
        """The code of the first that is `text` or after it; one past the last code if none is."""
        return bisect_left(range(len(self)), text, key=self.texts.encoded) + 1

    def code(self, text: str) -> int:
        """0 if it is not there."""
        wanted = text.encode("utf-8", "surrogatepass")
        at = self.first_from(wanted)
        return at if at <= len(self) and self.texts.encoded(at - 1) == wanted else 0

    def beginning_with(self, prefix: str) -> tuple[int, int]:
        """Codes of the texts with this beginning, from the first to the last; first > last if there are none."""
        start = prefix.encode("utf-8", "surrogatepass")
        after = _next_prefix(start)
        last = self.first_from(after) - 1 if after else len(self)
        return self.first_from(start), last

    def decoded(self) -> list[str]:
        return [self.texts[at] for at in range(len(self))]


def _next_prefix(prefix: bytes) -> bytes:
    """The least text after all that begin so; empty if there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b""


def like_codes(dictionary: Dictionary, test: Like) -> list[tuple[int, int]]:
    """Codes of the texts that fit a pattern: a range for a beginning, else every text is looked at."""
    prefix = _plain_prefix(test.pattern)
    if prefix is not None and not test.ignore_case:
        return [dictionary.beginning_with(prefix)]
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = dictionary.texts
    listed = pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(texts.starts), pa.py_buffer(texts.data))
    fits = pc.match_like(listed, test.pattern, ignore_case=test.ignore_case).to_numpy(zero_copy_only=False)
    return [(at, at) for at in (np.flatnonzero(fits) + 1).tolist()]


def _plain_prefix(pattern: str) -> str | None:
    """What stands before a single % at the end."""
    start = pattern[:-1]
    return start if pattern.endswith("%") and not any(mark in start for mark in "%_\\") else None
