"""The figures of a data check: what `check` finds out, `danlu data check` draws and `--json` prints. Only values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from danlu.data.formats import FormatName
from danlu.data.look.duplicates import BYTES_A_TEXT, THRESHOLD
from danlu.data.look.shown import Span


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
class Fault:
    """A row that could not be used: where it is, why, and what to do next ("" where the reason says it)."""

    place: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Near:
    """Near-duplicates (data/look/duplicates.py) among the first records, each content taken once.

    Attributes:
        looked_at: records that were compared; others came after the limit, or repeat one word for word.
        left_out: records after the limit.
        count: records that nearly repeat an earlier one.
        pairs: the first few, as (place, place of the earlier one, similarity).
    """

    looked_at: int
    left_out: int
    count: int
    pairs: tuple[tuple[str, str, float], ...]
    threshold: float = THRESHOLD
    bytes_a_record: int = BYTES_A_TEXT


@dataclass(frozen=True, slots=True)
class TooLong:
    """What a limit on the tokens of an example would do.

    Attributes:
        examples: those that are longer.
        tokens_cut: tokens that cutting them would lose.
        windows: pieces of at most `max_length` tokens, laid end to end, that they would make.
    """

    max_length: int
    examples: int
    tokens_cut: int
    windows: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Held-out records that the checked data also holds: whole, or their question."""

    path: str
    records: int
    same_content: int
    same_question: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """The figures of one file or directory.

    Attributes:
        shapes: how rows were read, which columns as what, with the usable rows of each.
        unread: keys that nothing reads, with the usable rows that have them.
        notes: what was changed on reading, with the usable rows concerned.
        files: the files that were read, with the usable records of each.
        passed_over: files and folders inside a named folder that were not read -> why.
        records: usable records; all figures below but the faults are about these.
        faults_total: rows that could not be used.
        faults: the first FAULTS_SHOWN of them.
        duplicates: records whose whole content an earlier record has.
        duplicate_prompts: prompts that occur with two or more different answers.
        near: None when near-duplicates were not looked for.
        learnt_share: learnt length over whole length, 0 to 1.
        unlearnt: records of which nothing is learnt.
        turns_mean: user and assistant turns a conversation; None for plain text.
        roles: messages by role; of a preference, the prompt's and the better answer's.
        learnt_turns: of them, those that are learnt.
        groups: distinct groups; 0 when no record names one.
        too_long: None without a limit.
        held_out: None without held-out data to compare with.
        example: the first record, as the model will see it; of a preference, both answers.
        rendered: `example` was rendered with the model's template; else it is the messages as they were read.
    """

    path: str
    format: FormatName
    shapes: dict[str, int]
    unread: dict[str, int]
    notes: dict[str, int]
    files: dict[str, int]
    passed_over: dict[str, str]
    records: int
    faults_total: int
    faults: tuple[Fault, ...]
    duplicates: int
    duplicate_prompts: int
    near: Near | None
    lengths: Lengths
    learnt_share: float
    unlearnt: int
    turns_mean: float | None
    roles: dict[str, int]
    learnt_turns: dict[str, int]
    groups: int
    too_long: TooLong | None
    held_out: Overlap | None
    example: tuple[tuple[Span, ...], ...]
    rendered: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)
