"""Which records are held out: whole groups, never a group's part.

Groups are named by the data (`group`), else records with the same question form one. `split` takes them from records
in memory, `Aside` from a stream of them.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from danlu.data.formats import Conversation, Preference, Record


@dataclass(eq=False)
class Aside:
    """The records of the smallest digests so far; those named to be held out have none.

    Attributes:
        wanted: how many records are to be kept, about.
    """

    wanted: int
    seed: int
    named: dict[str, list[Record]] = field(default_factory=dict)
    chosen: dict[str, list[Record]] = field(default_factory=dict)
    largest: list[tuple[int, str]] = field(default_factory=list)  # a heap, of minus the digest
    kept: int = 0
    seen: int = 0
    left_out: int = 0

    def keep(self, record: Record) -> None:
        self.named.setdefault(question(record), []).append(record)

    def sort(self, record: Record) -> Iterator[Record]:
        """Those that are to be trained on, now that this one has come."""
        self.seen += 1
        if self.named:
            if question(record) in self.named:
                self.left_out += 1
            else:
                yield record
            return
        name = record.group or question(record)
        if name not in self.chosen:
            digest = hashlib.sha256(f"{self.seed} {name}".encode("utf-8", "replace")).digest()
            heapq.heappush(self.largest, (-int.from_bytes(digest[:8]), name))
            self.chosen[name] = []
        self.chosen[name].append(record)
        self.kept += 1
        yield from self._beyond(self.wanted)

    def surplus(self) -> Iterator[Record]:
        """Those that are more than a third of all."""
        yield from self._beyond(min(self.wanted, self.seen // 3))

    def records(self) -> Iterator[Record]:
        yield from chain.from_iterable((*self.named.values(), *self.chosen.values()))

    def _beyond(self, wanted: int) -> Iterator[Record]:
        while self.largest and self.kept - len(self.chosen[self.largest[0][1]]) >= wanted:
            _, name = heapq.heappop(self.largest)
            members = self.chosen.pop(name)
            self.kept -= len(members)
            yield from members


def split(records: list[Record], held_out: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Take whole groups, in random order, until about `held_out` records (at most a third) are aside."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group or question(record), []).append(record)
    order = list(groups)
    random.Random(seed).shuffle(order)
    wanted, taken = min(held_out, len(records) // 3), set[str]()
    aside = 0
    for name in order:
        if aside >= wanted:
            break
        # A huge group stays whole, in training.
        if aside + len(groups[name]) <= min(wanted * 1.2, len(records) / 3):
            taken.add(name)
            aside += len(groups[name])
    parts: tuple[list[Record], list[Record]] = ([], [])
    for name, members in groups.items():
        parts[name in taken].extend(members)
    return parts


def question(record: Record) -> str:
    """Digest of what comes before the first answer; of a text, all of it."""
    if isinstance(record, Conversation):
        first = next((at for at, m in enumerate(record.messages) if m["role"] == "assistant"), len(record.messages))
        text = repr([message.get("content") for message in record.messages[:first]])
    elif isinstance(record, Preference):
        text = repr([message.get("content") for message in record.prompt])
    else:
        text = record.text
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
