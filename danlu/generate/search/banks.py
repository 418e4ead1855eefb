"""Greedy search and sampling in which phrases must appear: of each degree of progress, one row goes on.

A single row cannot wait for a phrase: forced too early it spoils the text, forced too late it does not fit. So an
answer has one row for each number of phrase tokens that may stand in it, its banks: the least beam of Post and Vilar
(2018). In each step every token of every row is a candidate for the bank that it leads to, and each bank takes one:
the likeliest, or one drawn in proportion to its probability, that of its whole row. With no phrase left there is one
bank, and this is greedy search or sampling.

Only what has all phrases may end. The answer is over once no open row is likelier than one that has ended, or at the
limit; of several that have ended the likeliest counts, or one drawn in proportion. The highest bank is always kept,
and each row has a token that leads on, so all phrases appear wherever the limit leaves them room and nothing bans them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from danlu.generate.scores import logits
from danlu.generate.scores.constraints import Constraints
from danlu.generate.search.allocation import Warp, wanted_places
from danlu.generate.search.beams import refuse_none
from danlu.generate.search.strategies import Hypothesis, Limits, Row, Step, Strategy

# (scores (n,), lane, tokens made so far) -> the place that is taken. Draws of different lanes are independent.
Pick = Callable[[Tensor, int, int], int]

# A token that no phrase holds.
_OUTSIDE = -1
# Draws of a bank are tried anew in lanes so far apart.
_AGAIN = 2**32


class _Row(NamedTuple):
    tokens: tuple[int, ...]
    state: Any
    total: float
    parent: int = 0


@dataclass
class _Search:
    """One answer on its way: open rows, the lowest bank first, and those that have ended, with their totals."""

    number: int
    rows: list[_Row]
    ended: list[tuple[Hypothesis, float]] = field(default_factory=list)

    @property
    def leading(self) -> tuple[int, ...]:
        return max(self.rows, key=lambda row: row.total).tokens

    @property
    def is_over(self) -> bool:
        best = max((total for _, total in self.ended), default=-torch.inf)
        return all(row.total <= best for row in self.rows)


class Banked(Strategy):
    """Independent answers with forced phrases; each has `banks` rows, of which some only fill their place.

    Args:
        answers: how many.
        constraints: what must appear.
        pick: takes one of several candidates.
        warp: what a draw chooses from; None to take the scores as they are.
    """

    def __init__(
        self, answers: int, limits: Limits, constraints: Constraints[Any], pick: Pick, warp: Warp | None = None
    ) -> None:
        self.banks = banks_of(constraints)
        super().__init__(answers * self.banks, limits)
        self.constraints, self._pick, self._warp = constraints, pick, warp
        start = constraints.start(())
        self._open = [_Search(number, [_Row((), start, 0.0)]) for number in range(answers)]
        self._done: dict[int, Hypothesis] = {}
        self._ended: list[tuple[int, Hypothesis]] = []
        self._special = sorted({token for one in constraints.forced for words in one for token in words})

    def choose(self, scores: Tensor) -> Step:
        parents: list[int] = []
        rows: list[_Row] = []
        still_open = []
        is_last = self.made + 1 >= self.max_new_tokens
        for at, search in enumerate(self._open):
            first = at * self.banks
            self._advance(search, scores[first : first + len(search.rows)], first)
            if search.is_over or is_last:
                answer = self._done[search.number] = self._answer(search)
                self._ended += [(search.number, one) for one, _ in search.ended]
                self._ended += [] if search.ended else [(search.number, answer)]
                continue
            still_open.append(search)
            filled = search.rows + search.rows[:1] * (self.banks - len(search.rows))
            parents += [first + row.parent for row in filled]
            rows += filled
        self._open = still_open
        if rows:
            self.sequences = [row.tokens for row in rows]
        return Step(parents, [row.tokens[-1] for row in rows])

    def _advance(self, search: _Search, scores: Tensor, first: int) -> None:
        """The search's next rows; `first` is the number of its first row."""
        if self._warp is not None:
            numbers = range(first, first + len(search.rows))
            scores = self._warp(scores, wanted_places(self.constraints, [row.state for row in search.rows]), numbers)
        logp = logits.log_softmax(scores)
        logp = logp.masked_fill(logp.isnan(), -torch.inf)  # a row without any token
        totals = logp + torch.tensor([row.total for row in search.rows])[:, None]  # (rows, vocabulary)
        taken = [self._taken(search, bank, first, *candidates) for bank, candidates in self._by_bank(search, totals)]
        rows = [row for row in taken if row is not None]
        ends = [self.constraints.complete(row.state) and self.ends(first + row.parent, row.tokens[-1]) for row in rows]
        search.rows = [row for row, is_end in zip(rows, ends, strict=True) if not is_end]
        search.ended += [
            (Hypothesis(row.tokens, None, "stop"), row.total) for row, is_end in zip(rows, ends, strict=True) if is_end
        ]

    def _by_bank(self, search: _Search, totals: Tensor) -> Iterator[tuple[int, tuple[list[int], Tensor]]]:
        """Each bank with its candidates: the rows that lead to it, and (those rows, vocabulary) totals."""
        after = [[self._bank(row.state, token) for token in (_OUTSIDE, *self._special)] for row in search.rows]
        for bank in sorted(set[int]().union(*after)):
            parents = [row for row, banks in enumerate(after) if bank in banks]
            candidates = totals[parents]
            for at, parent in enumerate(parents):
                if after[parent][0] != bank:
                    candidates[at] = -torch.inf
                there = torch.tensor([one == bank for one in after[parent][1:]])
                candidates[at, self._special] = totals[parent, self._special].masked_fill(~there, -torch.inf)
            yield bank, (parents, candidates)

    def _bank(self, state: Any, token: int) -> int:
        return self.constraints.progress(self.constraints.advance(state, token))

    def _taken(self, search: _Search, bank: int, first: int, parents: list[int], candidates: Tensor) -> _Row | None:
        """The candidate that a bank takes; one that would end too early is left out. None when there is none."""
        flat, vocabulary = candidates.view(-1), candidates.shape[1]
        is_complete = bank == self.banks - 1
        lane = search.number * (self.banks + 1) + bank
        if not is_complete:
            ends = [
                (at, token) for at, row in enumerate(parents) for token in self.eos if self.ends(first + row, token)
            ]
            candidates[[at for at, _ in ends], [token for _, token in ends]] = -torch.inf
        while bool(flat.max() > -torch.inf):
            place = self._pick(flat, lane, self.made)
            parent, token = parents[place // vocabulary], place % vocabulary
            if is_complete or not self.ends(first + parent, token):
                row = search.rows[parent]
                state = self.constraints.advance(row.state, token)
                return _Row((*row.tokens, token), state, float(flat[place]), parent)
            flat[place] = -torch.inf
            lane += _AGAIN
        return None

    def _answer(self, search: _Search) -> Hypothesis:
        if search.ended:
            totals = torch.tensor([total for _, total in search.ended])
            lane = search.number * (self.banks + 1) + self.banks
            return search.ended[self._pick(totals, lane, self.made)][0]
        best = [Hypothesis(row.tokens, None, "unsatisfied") for row in search.rows[-1:]]
        refuse_none(best)
        is_complete = self.constraints.complete(search.rows[-1].state)
        return Hypothesis(best[0].tokens, None, "length" if is_complete else "unsatisfied")

    def progress(self) -> dict[int, tuple[int, ...]]:
        done = {number: hypothesis.tokens for number, hypothesis in self._done.items()}
        return {search.number: search.leading for search in self._open} | done

    def results(self) -> list[Hypothesis]:
        return [self._done[number] for number in sorted(self._done)]

    def standing(self) -> list[Row]:
        rows = []
        for search in self._open:
            rows += [Row(search.number, True, row.total, self.constraints.progress(row.state)) for row in search.rows]
            rows += [Row(search.number, False)] * (self.banks - len(search.rows))
        return rows

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return [*self._ended, *((search.number, one) for search in self._open for one, _ in search.ended)]


def banks_of(constraints: Constraints[Any]) -> int:
    """Degrees of progress: one more than the phrases have tokens; of a choice the longest counts."""
    return 1 + sum(constraints.sizes)
