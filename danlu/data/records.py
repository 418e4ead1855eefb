"""What data is once it is read: a conversation, a document, or a preference between two answers.

Knows no file, no format and no tokenizer; `data/formats.py` makes these, everything after it takes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FAULTS_KEPT = 100
FILES_SHOWN = 8
KEYS_SHOWN = 20
KEYS_KEPT = 1_000
FURTHER_KEYS = f"(keys after the first {KEYS_KEPT:,})"
_NAME_SHOWN = 100  # characters

# {"role", "content"} with content always text and, where the row has them, "tool_calls" (arguments as a mapping),
# "name", "tool_call_id", "reasoning_content". An assistant turn that is context only has "train": False; one that
# counts more or less than others has "weight", a number above 0 other than 1.
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to learn from: every assistant turn is learnt, save those that carry "train": False.

    Attributes:
        messages: at least one; the last is an assistant's, or asks, for a training that draws answers itself.
        place: where it was read, such as "train.jsonl:12".
        group: records of one group never part between training and held-out data.
        tools: function schemas offered to the model, each {"type": "function", "function": {...}}.
        label: whether the answer is wanted, in data for preference by label (KTO); None where rows do not say.
    """

    messages: tuple[Message, ...]
    place: str
    group: str | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A document to continue pre-training on; all of it is learnt."""

    text: str
    place: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a better and a worse answer; both answers open and end with an assistant turn.

    Attributes:
        margin: by how much the better one is better, where the row says so: a number, 0 or more.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    place: str
    group: str | None = None
    margin: float | None = None


Record = Conversation | Text | Preference


@dataclass(slots=True)
class Skipped:
    """What reading did not take as it stood: rows, keys, turns, files.

    Attributes:
        count: faulty rows that were passed over.
        faults: the first FAULTS_KEPT of them, as (place, reason).
        fixes: what to do next about each of these; "" where the reason says it.
        shapes: how rows were read ("alpaca: instruction, context -> input, response -> output") -> usable rows.
        unread: keys that nothing reads -> usable rows that have them; "messages[].id" is a key of a message. Of data
            whose every row brings new ones, the first KEYS_KEPT, and FURTHER_KEYS -> how often others were met.
        notes: what was changed on reading ("the last question, which nobody answers, is cut off") -> usable rows.
        files: files that are read, in order.
        passed_over: files and folders inside a named folder that are not -> why.
    """

    count: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    fixes: list[str] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, reason: str, fix: str = "") -> None:
        """Count one row."""
        self.count += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append((place, reason))
            self.fixes.append(fix)

    def pass_over_keys(self, keys: Iterable[str]) -> None:
        """Count the keys of one row that nothing reads."""
        for key in keys:
            name = key if len(key) <= _NAME_SHOWN else f"{key[:_NAME_SHOWN]}…"
            is_kept = name in self.unread or len(self.unread) < KEYS_KEPT
            self.unread[name if is_kept else FURTHER_KEYS] += 1

    def summary(self) -> str:
        """One line on all but the faulty rows; "" when everything was taken as it stood."""
        parts = [f"{note} ({rows} rows)" for note, rows in self.notes.most_common()]
        if self.unread:
            keys = ", ".join(f"{key} ({rows} rows)" for key, rows in self.unread.most_common(KEYS_SHOWN))
            more = f", and {len(self.unread) - KEYS_SHOWN} more" if len(self.unread) > KEYS_SHOWN else ""
            parts.append(f"keys not read: {keys}{more}")
        if listed := [f"{file} ({why})" for file, why in self.passed_over.items() if file not in self.files]:
            more = f", and {len(listed) - FILES_SHOWN} more" if len(listed) > FILES_SHOWN else ""
            parts.append(f"files not read: {', '.join(listed[:FILES_SHOWN])}{more}")
        return "; ".join(parts)
