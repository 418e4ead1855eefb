"""Scores -> which row goes on with which token. One class a strategy; the engine forks rows accordingly.

A strategy sees the processed scores of its own rows, (rows, vocabulary) float32, and answers with a `Step`:
for each row that goes on, its parent row and its token. Finished hypotheses are kept by the strategy. It
knows no keys, no model and no other request.

Beam search is Hugging Face's, token for token (formulae in docs/generation.md):

    candidates  K = max(2, 1 + eos tokens) * num_beams of the best running + log p, over all rows
    finished    a candidate among the best num_beams ends with eos, or the length is reached
    score       sum of log p / (generated tokens, eos included) ** length_penalty
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from danlu.errors import AllBanned

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
        stops: whether a row (its number, as the last step left it) ends with this token by a stop sequence.
    """

    max_new_tokens: int
    eos: frozenset[int]
    stops: Callable[[int, int], bool] = lambda _row, _token: False


class Strategy(ABC):
    """Rows of one request. `sequences[i]` are the tokens that row i has made so far."""

    def __init__(self, rows: int, limits: Limits) -> None:
        self.max_new_tokens, self.eos, self.stops = limits.max_new_tokens, limits.eos, limits.stops
        self.sequences: list[tuple[int, ...]] = [()] * rows

    def ends(self, row: int, token: int) -> bool:
        """Whether `token` ends what row `row` has made."""
        return token in self.eos or self.stops(row, token)

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


@dataclass
class BeamOptions:
    """How beams are ranked and when they stop."""

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1


# (totals (rows, vocabulary), how many, tokens made so far) -> values and flat places of candidates, in rank order
Draw = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


def highest_candidates(total: Tensor, count: int, _made: int = 0) -> tuple[Tensor, Tensor]:
    """The `count` best of totals (rows, vocabulary): their values and flat places, best first."""
    vocabulary = total.shape[1]
    best = total.topk(min(count, vocabulary))  # of each row first: rows are searched side by side
    values, at = best.values.view(-1).topk(count)
    return values, best.indices.view(-1)[at] + at // best.values.shape[1] * vocabulary


class Beam(Strategy):
    """Beam search.

    Args:
        draw: finds the candidates; the best ones by default, a draw without replacement to sample.
    """

    def __init__(self, options: BeamOptions, limits: Limits, draw: Draw = highest_candidates) -> None:
        super().__init__(options.num_beams, limits)
        self.options, self._draw = options, draw
        self.running = torch.full((options.num_beams,), PLACEHOLDER)
        self.running[0] = 0.0
        self._finished: list[Hypothesis] = []
        self._improvable = True

    def choose(self, scores: Tensor) -> Step:
        beams, vocabulary = self.options.num_beams, scores.shape[1]
        count = max(2, 1 + len(self.eos)) * beams
        values, places = self._draw(scores + self.running[:, None], count, self.made)
        parents, tokens = (places // vocabulary).tolist(), (places % vocabulary).tolist()
        sequences = [(*self.sequences[p], t) for p, t in zip(parents, tokens, strict=True)]
        ends = [self.end_of(p, t) for p, t in zip(parents, tokens, strict=True)]
        open_values = values + torch.tensor([PLACEHOLDER if end else 0.0 for end in ends])
        self._keep_finished(values[:beams].tolist(), sequences[:beams], ends[:beams])
        best, going = torch.topk(open_values, beams)
        self.running = best
        chosen = going.tolist()
        self.sequences = [sequences[at] for at in chosen]
        self._improvable = self._can_improve(float(best[0]))
        if self._is_over(all(ends)):
            refuse_none(self._finished)
            return Step([], [])
        return Step([parents[at] for at in chosen], [tokens[at] for at in chosen])

    def _keep_finished(
        self, values: Sequence[float], sequences: Sequence[tuple[int, ...]], ends: Sequence[FinishReason | None]
    ) -> None:
        """Finished candidates join the pool, of which the best num_beams stay."""
        full = len(self._finished) == self.options.num_beams
        if (full and self.options.early_stopping is True) or not self._improvable:
            return
        for value, sequence, end in zip(values, sequences, ends, strict=True):
            if end is not None and is_real(value):
                score = value / len(sequence) ** self.options.length_penalty
                self._finished.append(Hypothesis(sequence, score, end))
        self._finished.sort(key=lambda one: -(one.score or 0.0))
        del self._finished[self.options.num_beams :]

    def _can_improve(self, best_running: float) -> bool:
        """Whether an open row may still beat the worst finished one (an estimate, unless "never")."""
        if not self._improvable or not is_real(best_running):
            return False
        length = self.made
        if self.options.early_stopping == "never" and self.options.length_penalty > 0:
            length = self.max_new_tokens
        full = len(self._finished) == self.options.num_beams
        worst = min(one.score or 0.0 for one in self._finished) if full else PLACEHOLDER
        return bool(best_running / length**self.options.length_penalty > worst)

    def _is_over(self, all_ended: bool) -> bool:
        full = len(self._finished) == self.options.num_beams
        return all_ended or not self._improvable or (full and self.options.early_stopping is True)

    def results(self) -> list[Hypothesis]:
        return self._finished[: self.options.num_return_sequences]

    def standing(self) -> list[Row]:
        return [beam_row(total) for total in self.running.tolist()]

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return [(0, hypothesis) for hypothesis in self._finished]


def beam_row(total: float, group: int = 0, *, is_open: bool = True, bank: int | None = None) -> Row:
    """How a beam with this sum of log p stands; its group is done unless `is_open`."""
    is_live = is_open and is_real(total)
    return Row(group, is_live, total if is_live else None, bank)


def refuse_none(answers: Sequence[Hypothesis]) -> None:
    """Raise AllBanned where a search has ended without any answer."""
    if not answers:
        raise AllBanned(
            "every continuation is banned, or ends before it may",
            fix="loosen bad_words_ids, no_repeat_ngram_size, min_new_tokens, stop_sequences, json_schema or regex",
        )


class Pool:
    """The best finished hypotheses of one group, and whether a better one may still come."""

    def __init__(self, size: int, options: BeamOptions, max_new_tokens: int) -> None:
        self.size, self.options, self.max_new_tokens = size, options, max_new_tokens
        self.kept: list[Hypothesis] = []

    @property
    def is_full(self) -> bool:
        return len(self.kept) == self.size

    @property
    def worst(self) -> float:
        return min(one.score or 0.0 for one in self.kept)

    def add(self, sequence: tuple[int, ...], total: float, reason: FinishReason) -> None:
        """Score a hypothesis whose log p sum up to `total`, and keep it if it is possible and among the best."""
        if not is_real(total):
            return
        score = total / len(sequence) ** self.options.length_penalty
        self.kept.append(Hypothesis(sequence, score, reason))
        if len(self.kept) > self.size:
            self.kept.remove(min(self.kept, key=lambda kept: kept.score or 0.0))

    def is_done(self, best_total: float, made: int) -> bool:
        """Whether to stop, when the best candidate of this step sums up to `best_total` over `made` tokens."""
        if not self.is_full:
            return False
        if self.options.early_stopping is True:
            return True
        is_never = self.options.early_stopping == "never" and self.options.length_penalty > 0
        length = self.max_new_tokens if is_never else made
        return bool(self.worst >= best_total / length**self.options.length_penalty)

    def best(self) -> list[Hypothesis]:
        """Best first; of equal ones the later first, as transformers pops them."""
        return sorted(self.kept, key=lambda one: one.score or 0.0)[::-1]


class GroupBeam(Strategy):
    """Diverse beam search (Vijayakumar et al. 2016): later groups avoid what earlier ones chose.

    Args:
        groups: number of groups; each has num_beams / groups rows and as many finished hypotheses.
        diversity_penalty: subtracted from a token's score for each row of an earlier group that chose it.
        process: (scores, rows) -> processed scores. Penalties and bans come after diversity, as in
            transformers, so this strategy is given log-probabilities and processes them itself.
        pad: the token with which a finished group fills its rows.
    """

    def __init__(
        self,
        options: BeamOptions,
        groups: int,
        diversity_penalty: float,
        limits: Limits,
        pad: int,
        process: Callable[[Tensor, Sequence[int]], Tensor] = lambda scores, _rows: scores,
        draw: Draw = highest_candidates,
    ) -> None:
        super().__init__(options.num_beams, limits)
        self.options, self.pad, self._process, self._draw = options, pad, process, draw
        self.diversity_penalty = diversity_penalty
        self.size = options.num_beams // groups
        self.running = torch.full((options.num_beams,), PLACEHOLDER)
        self.running[:: self.size] = 0.0
        self._pools = [Pool(self.size, options, limits.max_new_tokens) for _ in range(groups)]
        self._done = [False] * groups

    def choose(self, scores: Tensor) -> Step:
        parents: list[int] = []
        tokens: list[int] = []
        chosen = torch.zeros(scores.shape[1])
        for group in range(len(self._pools)):
            rows = list(range(group * self.size, (group + 1) * self.size))
            if self._done[group]:
                picks = [(rows[0], self.pad, 0.0)] * self.size
            else:
                penalised = scores[rows] - self.diversity_penalty * chosen
                picks = self._choose_in(group, rows, self._process(penalised, rows))
            parents += [parent for parent, _, _ in picks]
            tokens += [token for _, token, _ in picks]
            self.running[rows] = torch.tensor([score for _, _, score in picks])
            for _, token, score in picks:
                chosen[token] += is_real(score)
        self.sequences = [(*self.sequences[p], t) for p, t in zip(parents, tokens, strict=True)]
        if all(self._done) or self.made >= self.max_new_tokens:
            self._finish_open_groups()
            refuse_none(self.results())
            return Step([], [])
        return Step(parents, tokens)

    def _choose_in(self, group: int, rows: list[int], scores: Tensor) -> list[tuple[int, int, float]]:
        """(parent, token, score) of the group's next rows; finished candidates go to its pool."""
        vocabulary = scores.shape[1]
        count = max(2, 1 + len(self.eos)) * self.size
        values, places = self._draw(scores + self.running[rows, None], count, self.made + group * GROUPS_APART)
        picks: list[tuple[int, int, float]] = []
        for rank, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            parent, token = rows[place // vocabulary], place % vocabulary
            if self.ends(parent, token):
                if rank < self.size:
                    self._pools[group].add((*self.sequences[parent], token), value, "stop")
            else:
                picks.append((parent, token, value))
            if len(picks) == self.size:
                break
        is_dead = not any(is_real(value) for _, _, value in picks)
        self._done[group] = is_dead or self._pools[group].is_done(float(values.max()), self.made + 1)
        spare = (*picks[0][:2], PLACEHOLDER) if picks else (rows[0], self.pad, PLACEHOLDER)
        return picks + [spare] * (self.size - len(picks))  # stop sequences may end any number of candidates

    def progress(self) -> dict[int, tuple[int, ...]]:
        open_rows = [group * self.size for group, is_done in enumerate(self._done) if not is_done]
        if not open_rows:
            return {0: self.results()[0].tokens}
        return {0: self.sequences[max(open_rows, key=lambda row: float(self.running[row]))]}

    def _finish_open_groups(self) -> None:
        for row, sequence in enumerate(self.sequences):
            if not self._done[row // self.size]:
                self._pools[row // self.size].add(sequence, float(self.running[row]), "length")

    def results(self) -> list[Hypothesis]:
        ranked = sorted((one for pool in self._pools for one in pool.kept), key=lambda one: one.score or 0.0)
        return ranked[::-1][: self.options.num_return_sequences]

    def standing(self) -> list[Row]:
        groups = [row // self.size for row in range(len(self.sequences))]
        pairs = zip(self.running.tolist(), groups, strict=True)
        return [beam_row(total, group, is_open=not self._done[group]) for total, group in pairs]

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return [(group, hypothesis) for group, pool in enumerate(self._pools) for hypothesis in pool.kept]
