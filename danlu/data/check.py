"""What a data file holds: faults, duplicates, lengths, shares; the figures of `danlu data check FILE`.

Reads on past faulty rows, so that one look shows them all. Knows no tokenizer (the caller brings `encode`)
and no terminal (the caller draws the report). Memory: about 40 bytes a record, however long the records are.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from danlu.data.formats import (
    Conversation,
    FormatName,
    Message,
    Preference,
    Record,
    Skipped,
    Text,
    format_of,
    read_records,
)
from danlu.errors import DataError

Encode = Callable[[Record], tuple[int, int]]
FAULTS_SHOWN = 20
BINS = 10
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the records are, in `unit`; every figure but `mean` is the length of some record.

    A preference counts as its prompt with the longer answer, which is what must fit.

    Attributes:
        edges: borders of the histogram's bins, one more than `counts`; bin i holds lengths from edges[i] up
            to, and without, edges[i + 1], and the last bin holds its right border too.
    """

    unit: Literal["tokens", "characters"]
    min: int
    p50: int
    p90: int
    p99: int
    max: int
    mean: float
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataReport:
    """The figures of one file or directory.

    Attributes:
        records: usable records; all figures below but the faults are about these.
        faults_total: rows that could not be used.
        faults: the first FAULTS_SHOWN of them, as (place, reason).
        duplicates: records whose whole content an earlier record has.
        duplicate_prompts: prompts that occur with two or more different answers.
        learnt_share: learnt length over whole length, 0 to 1.
        unlearnt: records of which nothing is learnt.
        turns_mean: user and assistant turns a conversation; None for plain text.
        roles: messages by role.
        groups: distinct groups; 0 when no record names one.
    """

    path: str
    format: FormatName
    records: int
    faults_total: int
    faults: tuple[tuple[str, str], ...]
    duplicates: int
    duplicate_prompts: int
    lengths: Lengths
    learnt_share: float
    unlearnt: int
    turns_mean: float | None
    roles: dict[str, int]
    groups: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def check(path: Path, *, format: FormatName | None = None, encode: Encode | None = None) -> DataReport:
    """Read all of `path` and report.

    Args:
        format: as for `read_records`.
        encode: a record -> (tokens, learnt tokens); its DataError counts as a fault of the record. Without
            it, lengths are in characters.

    Raises:
        DataError: the path cannot be read, or holds no usable record.
    """
    format = format or format_of(path)
    skipped, tally = Skipped(), _Tally()
    for record in read_records(path, format=format, on_error="skip", skipped=skipped):
        try:
            length, learnt = encode(record) if encode else _characters(record)
        except DataError as error:
            skipped.add(record.place, error.seen)
        else:
            tally.add(record, length, learnt)
    if not tally.lengths:
        place, reason = skipped.faults[0]
        raise DataError(f"{path}: no usable record; {skipped.count} faulty, the first: {place}: {reason}")
    return tally.report(path, format, skipped, "tokens" if encode else "characters")


@dataclass(slots=True)
class _Tally:
    """What is kept of the records read: numbers and digests, never their text."""

    lengths: array[int] = field(default_factory=lambda: array("Q"))
    learnt: int = 0
    unlearnt: int = 0
    contents: bytearray = field(default_factory=bytearray)
    prompts: bytearray = field(default_factory=bytearray)
    roles: Counter[str] = field(default_factory=Counter)
    groups: set[bytes] = field(default_factory=set)

    def add(self, record: Record, length: int, learnt: int) -> None:
        self.lengths.append(length)
        self.learnt += learnt
        self.unlearnt += learnt == 0
        prompt, answers = _parts(record)
        self.prompts += _digest(prompt)
        self.contents += _digest([prompt, answers])
        self.roles.update(message["role"] for message in _messages(record))
        if record.group is not None:
            self.groups.add(_digest(record.group))

    def report(
        self, path: Path, format: FormatName, skipped: Skipped, unit: Literal["tokens", "characters"]
    ) -> DataReport:
        records = len(self.lengths)
        duplicates, duplicate_prompts = self._duplicates()
        turns = self.roles["user"] + self.roles["assistant"]
        return DataReport(
            path=str(path),
            format=format,
            records=records,
            faults_total=skipped.count,
            faults=tuple(skipped.faults[:FAULTS_SHOWN]),
            duplicates=duplicates,
            duplicate_prompts=duplicate_prompts,
            lengths=_measure(np.frombuffer(self.lengths, dtype=np.uint64).astype(np.int64), unit),
            learnt_share=self.learnt / max(1, sum(self.lengths)),
            unlearnt=self.unlearnt,
            turns_mean=None if format == "text" else turns / records,
            roles=dict(self.roles.most_common()),
            groups=len(self.groups),
        )

    def _duplicates(self) -> tuple[int, int]:
        """(records that repeat an earlier one, prompts with two or more different answers)."""
        contents = np.frombuffer(bytes(self.contents), dtype=f"S{_DIGEST_BYTES}")
        prompts = np.frombuffer(bytes(self.prompts), dtype=f"S{_DIGEST_BYTES}")
        _, first = np.unique(contents, return_index=True)
        _, answers = np.unique(prompts[first], return_counts=True)
        return len(contents) - len(first), int((answers > 1).sum())


def _messages(record: Record) -> tuple[Message, ...]:
    """Every message of a record; of a preference, the prompt's and the chosen answer's."""
    if isinstance(record, Text):
        return ()
    return record.messages if isinstance(record, Conversation) else (*record.prompt, *record.chosen)


def _parts(record: Record) -> tuple[Any, Any]:
    """(what is asked, what is answered): a conversation is cut before its last assistant turn."""
    if isinstance(record, Text):
        return record.text, ""
    if isinstance(record, Preference):
        return record.prompt, (record.chosen, record.rejected)
    return (record.tools, record.messages[:-1]), record.messages[-1]


def _digest(content: Any) -> bytes:
    text = json.dumps(content, sort_keys=True)
    return blake2b(text.encode("ascii"), digest_size=_DIGEST_BYTES).digest()


def _characters(record: Record) -> tuple[int, int]:
    """(characters, learnt characters) of the contents and tool calls."""
    if isinstance(record, Text):
        return len(record.text), len(record.text)
    if isinstance(record, Preference):
        prompt = sum(map(_size, record.prompt))
        answer = max(sum(map(_size, answer)) for answer in (record.chosen, record.rejected))
        return prompt + answer, answer
    learnt = (m for m in record.messages if m["role"] == "assistant" and m.get("train", True))
    return sum(map(_size, record.messages)), sum(map(_size, learnt))


def _size(message: Message) -> int:
    calls = message.get("tool_calls")
    written = (message["content"], message.get("reasoning_content", ""))
    return sum(map(len, written)) + (len(json.dumps(calls, ensure_ascii=False)) if calls else 0)


def _measure(lengths: npt.NDArray[np.int64], unit: Literal["tokens", "characters"]) -> Lengths:
    low, p50, p90, p99, high = np.percentile(lengths, [0, 50, 90, 99, 100], method="inverted_cdf").tolist()
    edges = _edges(int(low), int(high))
    counts, _ = np.histogram(lengths, bins=edges)
    return Lengths(
        unit=unit,
        min=int(low),
        p50=int(p50),
        p90=int(p90),
        p99=int(p99),
        max=int(high),
        mean=float(lengths.mean()),
        edges=tuple(edges),
        counts=tuple(counts.tolist()),
    )


def _edges(low: int, high: int) -> list[int]:
    """Whole-numbered borders of about BINS bins: even steps, or even ratios when lengths span tenfold."""
    if low == high:
        return [low, low + 1]
    if high >= 10 * max(1, low):
        inner = np.geomspace(max(1, low), high, BINS + 1)
    else:
        inner = np.linspace(low, high, BINS + 1)
    return sorted({low, *np.rint(inner).astype(int).tolist(), high})
