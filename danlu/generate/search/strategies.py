"""Scores -> which row goes on with which token. One class a strategy; the engine forks rows accordingly.

A strategy sees the processed scores of its own rows, (rows, vocabulary) float32, and answers with a `Step`:
for each row that goes on, its parent row and its token. Finished hypotheses are kept by the strategy. It
knows no keys, no model and no other request.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

FinishReason = Literal["stop", "length", "unsatisfied"]
EarlyStopping = Literal["never"] | bool

# The score of a row that stands for no hypothesis: at the start, all rows but one; later, rows for which there was
# no candidate. What grows from it is not an answer. No sum of numbers comes as low: scores may be of any size.
PLACEHOLDER = -math.inf

# Groups that draw do so as steps so far apart: with the draws of one step they would all find the same.
GROUPS_APART = 2**32


def is_real(total: float) -> bool:
    """Whether a sum of log p belongs to a hypothesis that is possible."""
    return total > PLACEHOLDER


@dataclass(frozen=True)
class Hypothesis:
    """One answer: new tokens (with the eos that ended it, if one did) and its score."""

    tokens: tuple[int, ...]
    score: float | None
    finish_reason: FinishReason


@dataclass(frozen=True)
class Step:
    """What goes on: row i continues row parents[i] with tokens[i]. Empty when the request is done."""

    parents: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class Row:
    """How one row stands between two steps.

    Attributes:
        group: of diverse beams, its group; of independent rows, the number of its answer; else 0.
        is_live: whether it stands for a hypothesis that may go on.
        total: of beams, the sum of log p; None where there is none.
        bank: of constrained beams, how many tokens of the constraints are satisfied.
    """

    group: int = 0
    is_live: bool = True
    total: float | None = None
    bank: int | None = None


@dataclass(frozen=True)
class Limits:
    """When a row ends.

    Attributes:
        max_new_tokens: a row has at most so many new tokens.
        eos: tokens that end a row.
        is_end: whether one of them ends a row (its number, as the last step left it), and is not text of it.
        stops: whether a row (its number, as the last step left it) ends with this token by a stop sequence.
    """

    max_new_tokens: int
    eos: frozenset[int]
    stops: Callable[[int, int], bool] = lambda _row, _token: False
    is_end: Callable[[int, int], bool] = lambda _row, _token: True


class Strategy(ABC):
    """Rows of one request. `sequences[i]` are the tokens that row i has made so far."""

    def __init__(self, rows: int, limits: Limits) -> None:
        self.max_new_tokens, self.eos = limits.max_new_tokens, limits.eos
        self.stops, self._is_end = limits.stops, limits.is_end
        self.sequences: list[tuple[int, ...]] = [()] * rows

    def ends(self, row: int, token: int) -> bool:
        """Whether `token` ends what row `row` has made."""
        return (token in self.eos and self._is_end(row, token)) or self.stops(row, token)

    def end_of(self, row: int, token: int) -> FinishReason | None:
        """Why row `row` ends with `token`; None when it goes on."""
        if self.ends(row, token):
            return "stop"
        return "length" if self.made + 1 >= self.max_new_tokens else None

    @property
    def made(self) -> int:
        """Tokens made by each live row."""
        return len(self.sequences[0])

    @abstractmethod
    def choose(self, scores: Tensor) -> Step:
        """The next step, given scores (rows, vocabulary) of the rows as the last step left them.

        On the first call every row is the prompt.
        """

    def see(self, at: int, scores: Tensor) -> None:
        """Of a request that only looks: scores (tokens, vocabulary), from the `at`-th of those that it looks at on."""
        raise NotImplementedError(f"{type(self).__name__} chooses")

    def progress(self) -> dict[int, tuple[int, ...]]:
        """Tokens so far by number of the answer; of beams, those of the leading row."""
        return {0: self.sequences[0]}

    @abstractmethod
    def results(self) -> list[Hypothesis]:
        """The answers, best first."""

    # -- for those who watch

    @abstractmethod
    def standing(self) -> list[Row]:
        """How each row stands."""

    @abstractmethod
    def finished(self) -> list[tuple[int, Hypothesis]]:
        """(group, hypothesis) of each finished hypothesis that is kept so far."""


class Independent(Strategy):
    """Greedy search and sampling: rows that do not know of each other.

    Args:
        pick: scores (rows, vocabulary), and the number of each row -> a token a row.
    """

    def __init__(self, rows: int, limits: Limits, pick: Callable[[Tensor, Sequence[int], int], list[int]]) -> None:
        super().__init__(rows, limits)
        self._pick = pick
        self._numbers = list(range(rows))
        self._done: dict[int, Hypothesis] = {}

    def choose(self, scores: Tensor) -> Step:
        return self.take(self._pick(scores, self._numbers, self.made))

    def take(self, tokens: Sequence[int]) -> Step:
        """The next step, given the token that each row takes."""
        parents, kept, sequences, numbers = [], [], [], []
        for row, token in enumerate(tokens):
            sequence = (*self.sequences[row], token)
            reason = self.end_of(row, token)
            if reason is None:
                parents.append(row)
                kept.append(token)
                sequences.append(sequence)
                numbers.append(self._numbers[row])
            else:
                self._done[self._numbers[row]] = Hypothesis(sequence, None, reason)
        if sequences:
            self.sequences, self._numbers = sequences, numbers
        return Step(parents, kept)

    def progress(self) -> dict[int, tuple[int, ...]]:
        done = {number: hypothesis.tokens for number, hypothesis in self._done.items()}
        return dict(zip(self._numbers, self.sequences, strict=True)) | done

    def results(self) -> list[Hypothesis]:
        return [self._done[number] for number in sorted(self._done)]

    def standing(self) -> list[Row]:
        return [Row(number) for number in self._numbers]

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return list(self._done.items())
