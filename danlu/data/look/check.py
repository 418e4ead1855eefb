"""What a data file holds: how it was read, faults, duplicates, lengths, shares; the figures of `danlu data check FILE`.

Reads on past faulty rows, so that one look shows them all. Draws nothing (terminal.py does). Memory does not grow with
the file: for near-duplicates, about 350 bytes for each of the first so many records; of all others, numbers that are
counted and digests in temporary files (data/look/digests.py).
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from danlu.data.batches.encoding import Encoder
from danlu.data.chat import Chat
from danlu.data.formats import (
    Conversation,
    FormatName,
    Message,
    Preference,
    Reading,
    Record,
    Skipped,
    Text,
    format_of,
    read_records,
)
from danlu.data.look.digests import Digests, digest
from danlu.data.look.duplicates import Signatures, near_duplicates, signatures
from danlu.data.look.figures import DataReport, Fault, Lengths, Near, Overlap, TooLong
from danlu.data.look.shown import Span, answers_of, shortened, spans_of_record, spans_shown
from danlu.data.source import unwanted
from danlu.errors import DataError

FAULTS_SHOWN = 20
PAIRS_SHOWN = 5
NEAR_RECORDS = 200_000
BINS = 10
_SIGNED_AT_ONCE = 256
_LONG = 2**16  # characters; a text that is longer waits for no others
_ORDERS_KEPT = 10_000


def check(
    path: Path,
    *,
    format: FormatName | None = None,
    reading: Reading | None = None,
    chat: Chat | None = None,
    max_length: int | None = None,
    near_records: int = NEAR_RECORDS,
    held_out: Path | None = None,
) -> DataReport:
    """Read all of `path` and report.

    Args:
        format: as for `read_records`.
        reading: instead of it, with columns, speakers and an encoding; the held-out data is read by it too.
        chat: renders and counts tokens; what it refuses counts as a fault of the record. Without it, lengths are in
            characters.
        max_length: tokens of one example at most; what is longer is counted. Needs `chat`.
        near_records: near-duplicates are looked for among so many records; 0 leaves it out.
        held_out: data to be kept apart from `path`; what both hold is counted.

    Raises:
        DataError: a path cannot be read, or holds no usable record.
    """
    reading = reading or Reading(format)
    format = reading.format or format_of(path, reading)
    skipped, tally = Skipped(), _Tally(near_records, max_length)
    for record, examples in _encoded(read_records(path, reading=reading, on_error="skip", skipped=skipped), chat):
        if isinstance(examples, DataError):
            skipped.add(record.place, examples.seen.removeprefix(f"{record.place}: "), examples.fix)
        else:
            tally.add(record, examples, chat)
            if unwanted(record):
                skipped.notes["labelled false: for preference by label, an error where answers are imitated"] += 1
    if not tally.lengths:
        place, reason = skipped.faults[0]
        seen = f"{path}: no usable record; {skipped.count} faulty, the first: {place}: {reason}"
        raise DataError(seen, fix=skipped.fixes[0])
    overlap = None if held_out is None else _overlap(tally, held_out, reading)
    reading.check_used()
    return tally.report(path, format, skipped, overlap, "tokens" if chat else "characters")


_Sizes = list[list[tuple[int, int]]]  # for each answer that is rendered, its examples' (tokens, learnt tokens)


def _encoded(records: Iterable[Record], chat: Chat | None) -> Iterator[tuple[Record, _Sizes | DataError]]:
    """Each record with the examples of its answers, or with its fault; without a chat, there are none."""
    if chat is None:
        yield from ((record, []) for record in records)
        return
    owners: deque[Record] = deque()

    def rendered() -> Iterator[Record]:
        for record in records:
            answers = answers_of(record)
            owners.extend([record] * len(answers))
            yield from answers

    outcomes = iter(Encoder(chat).sizes(rendered()))
    for _, outcome in outcomes:
        record = owners.popleft()
        both = [outcome]
        if isinstance(record, Preference):
            both.append(next(outcomes)[1])
            owners.popleft()
        faults = [each for each in both if isinstance(each, DataError)]
        yield record, faults[0] if faults else [each for each in both if not isinstance(each, DataError)]


@dataclass(slots=True)
class _Tally:
    """What is kept of the records read: numbers, digests and signatures, never their text."""

    near_records: int
    max_length: int | None
    lengths: Counter[int] = field(default_factory=Counter)  # length -> records
    learnt: int = 0
    unlearnt: int = 0
    digests: Digests = field(default_factory=Digests)
    contents: bytearray = field(default_factory=bytearray)  # digests of the records that are signed
    roles: Counter[str] = field(default_factory=Counter)
    learnt_turns: Counter[str] = field(default_factory=Counter)
    orders: Counter[tuple[tuple[str, bool], ...]] = field(default_factory=Counter)  # turns not counted one by one yet
    groups: Digests = field(default_factory=Digests)
    files: Counter[str] = field(default_factory=Counter)
    over: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    unsigned: list[str] = field(default_factory=list)
    signed: list[Signatures] = field(default_factory=list)
    example: tuple[tuple[Span, ...], ...] = ()

    def add(self, record: Record, answers: _Sizes, chat: Chat | None) -> None:
        if not self.lengths:
            self.example = _shown(record, chat)
        length, learnt = _longest(answers) if answers else _characters(record)
        self.lengths[length] += 1
        self.learnt += learnt
        self.unlearnt += learnt == 0
        self.files[record.place.rpartition(":")[0]] += 1
        self._add_digests(record)
        self._add_turns(record)
        if len(self.places) < self.near_records:
            self._sign(record)
        if self.max_length is not None:
            self._add_over(answers, self.max_length)
        if record.group is not None:
            group = digest(record.group.encode("utf-8", "surrogatepass"))
            self.groups.add(group, group)

    def _add_digests(self, record: Record) -> None:
        asked, answered = map(_canonical, _parts(record))
        prompt = digest(asked)
        whole = digest(prompt + answered)
        self.digests.add(prompt, whole)
        if len(self.places) < self.near_records:
            self.contents += whole

    def _add_turns(self, record: Record) -> None:
        """Orders of roles are counted, since nearly all records have one of a few."""
        turns = [(message["role"], message.get("train", True)) for message in _messages(record)]
        if isinstance(record, Preference):
            turns[: len(record.prompt)] = [(message["role"], False) for message in record.prompt]
        self.orders[tuple(turns)] += 1
        if len(self.orders) == _ORDERS_KEPT:
            self._count_turns()

    def _count_turns(self) -> None:
        for order, records in self.orders.items():
            for role, train in order:
                self.roles[role] += records
                self.learnt_turns["assistant"] += records * (role == "assistant" and train)
        self.orders.clear()

    def _sign(self, record: Record) -> None:
        self.places.append(record.place)
        self.unsigned.append(_said(record))
        if len(self.unsigned) == _SIGNED_AT_ONCE or len(self.unsigned[-1]) > _LONG:
            self._sign_all()

    def _sign_all(self) -> None:
        self.signed.append(signatures(self.unsigned))
        self.unsigned = []

    def _add_over(self, answers: _Sizes, limit: int) -> None:
        for examples in answers:
            for size, _ in examples:
                if size > limit:
                    self.over.update(examples=1, tokens_cut=size - limit, windows=-(-size // limit))

    def report(
        self,
        path: Path,
        format: FormatName,
        skipped: Skipped,
        overlap: Overlap | None,
        unit: Literal["tokens", "characters"],
    ) -> DataReport:
        self._count_turns()
        records = len(self.digests)
        duplicates, duplicate_prompts = self.digests.repeats()
        turns = self.roles["user"] + self.roles["assistant"]
        shown = zip(skipped.faults[:FAULTS_SHOWN], skipped.fixes, strict=False)
        over = (
            None
            if self.max_length is None
            else TooLong(self.max_length, self.over["examples"], self.over["tokens_cut"], self.over["windows"])
        )
        return DataReport(
            path=str(path),
            format=format,
            shapes=dict(skipped.shapes.most_common()),
            unread=dict(skipped.unread.most_common()),
            notes=dict(skipped.notes.most_common()),
            files=dict(self.files),
            passed_over=skipped.passed_over,
            records=records,
            faults_total=skipped.count,
            faults=tuple(Fault(place, reason, fix) for (place, reason), fix in shown),
            duplicates=duplicates,
            duplicate_prompts=duplicate_prompts,
            near=self._near() if self.near_records else None,
            lengths=_measure(self.lengths, unit),
            learnt_share=self.learnt / max(1, sum(length * count for length, count in self.lengths.items())),
            unlearnt=self.unlearnt,
            turns_mean=None if format == "text" else turns / records,
            roles=dict(self.roles.most_common()),
            learnt_turns={role: self.learnt_turns[role] for role in self.roles},
            groups=self.groups.distinct(),
            too_long=over,
            held_out=overlap,
            example=self.example,
            rendered=unit == "tokens",
        )

    def _near(self) -> Near:
        self._sign_all()
        kept = np.concatenate(self.signed)
        _, first = np.unique(np.frombuffer(bytes(self.contents), dtype="S16"), return_index=True)
        first.sort()
        pairs = near_duplicates(kept[first])
        shown = tuple(
            (self.places[first[pair.later]], self.places[first[pair.earlier]], round(pair.similarity, 2))
            for pair in pairs[:PAIRS_SHOWN]
        )
        return Near(len(first), len(self.digests) - len(kept), len(pairs), shown)


def _overlap(tally: _Tally, path: Path, reading: Reading) -> Overlap:
    held_out = _Tally(0, None)
    for record in read_records(path, reading=reading, on_error="skip", part="held out"):
        held_out.add(record, [], None)
    return Overlap(str(path), len(held_out.digests), *held_out.digests.found_in(tally.digests))


def _shown(record: Record, chat: Chat | None) -> tuple[tuple[Span, ...], ...]:
    """Each answer shortened; of a record whose answers each make an example of their own, the last."""
    if chat is None:
        return (tuple(shortened(spans_of_record(record))),)
    last = [chat.examples(answer)[-1] for answer in answers_of(record)]
    return tuple(tuple(spans_shown(each.token_ids, each.learnt, chat.tokenizer)) for each in last)


def _longest(answers: _Sizes) -> tuple[int, int]:
    """(tokens, learnt tokens) of the longer answer."""
    first = answers[0]
    return first[0] if len(first) == len(answers) == 1 else max(map(_sum, answers))


def _sum(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(tokens for tokens, _ in sizes), sum(learnt for _, learnt in sizes)


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
    asked = record.messages[:-1]
    return (record.tools, asked) if record.tools else asked, record.messages[-1:]


def _said(record: Record) -> str:
    """The words by which near-duplicates are known: system prompts are alike in all rows."""
    if isinstance(record, Text):
        return record.text
    rejected = record.rejected if isinstance(record, Preference) else ()
    return "\n".join(m["content"] for m in (*_messages(record), *rejected) if m["role"] not in ("system", "developer"))


def _canonical(part: Any) -> bytes:
    """Bytes that are the same for the same content. Messages of nothing but text, nearly all, are only joined."""
    if isinstance(part, tuple) and {*map(type, part)} <= {dict} and {*map(len, part)} <= {2}:
        return "\0".join([text for each in part for text in (each["role"], each["content"])]).encode()
    return json.dumps(part, sort_keys=True).encode("ascii")


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


def _measure(lengths: Mapping[int, int], unit: Literal["tokens", "characters"]) -> Lengths:
    """Args: length -> records."""
    each, counts = (np.array(column, dtype=np.int64) for column in zip(*sorted(lengths.items()), strict=True))
    so_far = np.cumsum(counts)
    records = int(so_far[-1])
    # Of a share, the least length that so many records do not exceed.
    p50, p90, p99 = (int(each[np.searchsorted(so_far, -(-records * share // 100))]) for share in (50, 90, 99))
    low, high = int(each[0]), int(each[-1])
    edges = _edges(low, high)
    binned, _ = np.histogram(each, bins=edges, weights=counts)
    return Lengths(
        unit=unit,
        min=low,
        p50=p50,
        p90=p90,
        p99=p99,
        max=high,
        mean=float((each * counts).sum() / records),
        edges=tuple(edges),
        counts=tuple(binned.astype(np.int64).tolist()),
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
