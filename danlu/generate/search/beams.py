"""Beam search: hypotheses that are held against each other.

It is Hugging Face's, token for token (formulae in docs/generation.md):

    candidates  K = max(2, 1 + eos tokens) * num_beams of the best running + log p, over all rows
    finished    a candidate among the best num_beams ends with eos, or the length is reached
    score       sum of log p / (generated tokens, eos included) ** length_penalty
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.errors import AllBanned
from danlu.generate.search.strategies import (
    PLACEHOLDER,
    EarlyStopping,
    FinishReason,
    Hypothesis,
    Limits,
    Row,
    Step,
    Strategy,
    is_real,
)


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
