"""What happened while one prompt was answered: the data behind pictures of decoding.

Plain frozen values that go to JSON and back. Every number is one that the engine used, kept while it ran
(recorder.py); a step's scores are those of one forward pass. Draws nothing and knows no engine.

Scores and probabilities: `score` is the number that the engine went on with, at first the model's logit, or log p
where there are beams; None stands for minus infinity. `p` is softmax over the row's scores at that point, which is
what a draw from the row sees; beams add up scores, which stages leave as they are, without making them sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from danlu.config import describe_faults
from danlu.errors import DataError
from danlu.generate.params import Strategy
from danlu.generate.search.strategies import FinishReason

VERSION = 1


@dataclass(frozen=True)
class Token:
    """A token and its text; bytes that are no whole character are written \\xNN."""

    id: int
    text: str


@dataclass(frozen=True)
class After:
    """A candidate after one stage."""

    score: float | None
    p: float


@dataclass(frozen=True)
class Candidate:
    """A token that a row could have gone on with.

    Attributes:
        rank: its place by the model's own scores, from 1.
        score: before any stage: the model's logit; where there are beams, log p.
        p: softmax of the model's logits.
        after: what each stage of the row made of it, in their order.
        dropped_by: the knob that took it out; None if it was still there at the end.
        is_chosen: whether a row goes on, or an answer ends, with it.
    """

    token: Token
    rank: int
    score: float | None
    p: float
    after: tuple[After, ...]
    dropped_by: str | None
    is_chosen: bool


@dataclass(frozen=True)
class Dropped:
    """A token that a stage took out, and its p before that."""

    token: Token
    p: float


@dataclass(frozen=True)
class Stage:
    """One knob at work on the scores of a row.

    Attributes:
        knob: its name.
        has_changed: whether it changed any score in this step.
        left: tokens that may be chosen after it.
        dropped: tokens that it took out.
        likeliest_dropped: the likeliest of them.
    """

    knob: str
    has_changed: bool
    left: int
    dropped: int
    likeliest_dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Choice:
    """What one row chose from in one step.

    Attributes:
        row: its number in this step.
        group: of diverse beams, its group; of greedy search and sampling, the number of its answer; else 0.
        u: of sampling without beams, the number in [0, 1) that was drawn.
        stages: the knobs at work, in their order.
        candidates: the likeliest tokens, before or after any stage, and all that were chosen; by rank.
    """

    row: int
    group: int
    u: float | None
    stages: tuple[Stage, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Branch:
    """A row that goes on: row `row` of the next step is row `parent` of this one with `token` added.

    Attributes:
        is_live: false for a row that only fills its place: a group that is done, or no candidate left.
        total: of beams, the sum of its scores; None of other rows.
        bank: of constrained beams, how many tokens of the constraints are satisfied.
    """

    row: int
    parent: int
    token: Token
    group: int
    is_live: bool
    total: float | None
    bank: int | None


@dataclass(frozen=True)
class Finished:
    """An answer that ended: row `parent` with `token`.

    Attributes:
        score: of beams, sum of scores / length ** length_penalty.
        is_kept: whether it was among the best of its group to the end.
        answer: its place among the answers that came back, from 0; None if it did not.
    """

    parent: int
    token: Token
    group: int
    score: float | None
    finish_reason: FinishReason
    is_kept: bool
    answer: int | None


@dataclass(frozen=True)
class Step:
    """One step of all rows: what they chose from, which rows go on, and which answers ended."""

    choices: tuple[Choice, ...]
    branches: tuple[Branch, ...]
    finished: tuple[Finished, ...]

    def choice_of(self, row: int) -> Choice:
        return next(choice for choice in self.choices if choice.row == row)


@dataclass(frozen=True)
class TracedAnswer:
    """An answer that came back.

    Attributes:
        path: for each of its tokens, the row that chose it, in the numbering of that step.
    """

    tokens: tuple[Token, ...]
    text: str
    score: float | None
    finish_reason: FinishReason
    path: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """How one prompt was answered.

    Attributes:
        version: of this layout; it grows when a field changes its meaning or goes.
        strategy: the search that ran.
        knobs: those that differ from their defaults.
        seed: of the draws, chosen or given; None without draws.
        steps: as many as the longest row has tokens.
        answers: best first.
    """

    version: Literal[1]
    strategy: Strategy
    knobs: dict[str, Any]
    seed: int | None
    prompt: tuple[Token, ...]
    steps: tuple[Step, ...]
    answers: tuple[TracedAnswer, ...]

    @property
    def has_beams(self) -> bool:
        return self.strategy not in ("greedy", "sample")

    def to_json(self) -> str:
        """The trace as one JSON object: the fields above by name, tuples as lists, None as null."""
        return _ADAPTER.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """What `to_json` wrote. Raises DataError for anything else."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise DataError(f"no trace: {describe_faults(error)[0]}", allowed=f"version {VERSION}") from None

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of `to_json`."""
        return _ADAPTER.json_schema()

    def choices_of(self, answer: int) -> Iterator[Choice]:
        """What an answer's tokens were chosen from, token by token."""
        for step, row in zip(self.steps, self.answers[answer].path, strict=False):
            yield step.choice_of(row)


_ADAPTER = TypeAdapter(Trace)
