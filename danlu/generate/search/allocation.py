"""Which rows of a constrained beam search go on: dynamic beam allocation (Post & Vilar 2018).

What a phrase is, and how far a row has come, is constraints.py's. Knows no text and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from danlu.generate.scores.constraints import Constraints
from danlu.generate.search.beams import highest_candidates


class Pick(NamedTuple):
    """Row `parent` goes on with `token`, or ends with it; `score` is the sum of its log p."""

    parent: int
    token: int
    score: float


class Picks(NamedTuple):
    """What one step of constrained beam search chose: rows that go on, and hypotheses that are finished."""

    live: list[Pick]
    finished: list[Pick]


def pick_constrained(
    constraints: Constraints[Any],
    totals: Tensor,
    states: Sequence[Any],
    sequences: Sequence[Hashable],
    ends: Callable[[int, int], bool],
    eos_count: int,
    draw: Callable[[Tensor, int], tuple[Tensor, Tensor]] = highest_candidates,
) -> Picks:
    """The next rows of a constrained beam search: as many as there are, spread over all degrees of progress.

    Candidates are the best of all rows and every token that advances a row; they are ranked by progress, then
    score, and taken in turn from each degree of progress (Post and Vilar 2018, dynamic beam allocation). As in
    that paper, ours adds the best token of each row that is complete, which transformers leaves out: rows that
    satisfy everything are not lost to likelier ones that satisfy nothing.

    Args:
        totals: (rows, vocabulary) float32, running sum of log p + log p of each token.
        states: of each row, its constraints' state.
        sequences: of each row, what it generated; rows with equal ones count once.
        ends: whether (row, token) ends an answer. It may only when all constraints are satisfied.
        eos_count: number of tokens that end an answer.
        draw: finds the candidates of all rows; the best ones by default.
    """
    step = _Step(constraints, totals, states, sequences, ends, draw)
    plain, finished = step.plain(max(2, 1 + eos_count) * len(totals))
    if constraints.exact_reference:
        return Picks(step.in_turn_as_reference(plain), finished)
    own = step.own_best(2 + eos_count)
    ended = [pick for pick in own if ends(pick.parent, pick.token) and pick not in finished]
    return Picks(step.in_turn(plain, [pick for pick in own if not ends(pick.parent, pick.token)]), finished + ended)


# (scores (rows, vocabulary), (rows, tokens) that phrases want, the rows' numbers) -> what a draw chooses from, where
# those are not cut
Warp = Callable[[Tensor, tuple[list[int], list[int]], Sequence[int]], Tensor]


def wanted_places(constraints: Constraints[Any], states: Sequence[Any]) -> tuple[list[int], list[int]]:
    """(rows, tokens) that bring a row forward."""
    places = [(row, token) for row, state in enumerate(states) for token in constraints.wanted(state)]
    return [row for row, _ in places], [token for _, token in places]


class _Step(NamedTuple):
    constraints: Constraints[Any]
    totals: Tensor
    states: Sequence[Any]
    sequences: Sequence[Hashable]
    ends: Callable[[int, int], bool]
    draw: Callable[[Tensor, int], tuple[Tensor, Tensor]]

    def after(self, pick: Pick) -> Any:
        return self.constraints.advance(self.states[pick.parent], pick.token)

    def plain(self, count: int) -> tuple[list[Pick], list[Pick]]:
        """(rows that go on, finished) of plain beam search; only the best ranks may finish."""
        rows, vocabulary = self.totals.shape
        values, places = self.draw(self.totals, min(count, self.totals.numel()))
        live: list[Pick] = []
        finished: list[Pick] = []
        for rank, (score, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            pick = Pick(place // vocabulary, place % vocabulary, score)
            if not self.ends(pick.parent, pick.token):
                live.append(pick)
            elif rank < rows and self.constraints.complete(self.after(pick)):
                finished.append(pick)
            if len(live) == rows:
                break
        return live, finished

    def own_best(self, count: int) -> list[Pick]:
        """Of each complete row its best tokens, up to the first that does not end it."""
        best = self.totals.topk(min(count, self.totals.shape[1]))
        picks: list[Pick] = []
        for row, (scores, tokens) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            for score, token in zip(scores, tokens, strict=True) if self.constraints.complete(self.states[row]) else ():
                picks.append(Pick(row, token, score))
                if not self.ends(row, token):
                    break
        return [pick for pick in picks if pick.score > -torch.inf]

    def advancing(self) -> list[tuple[Pick, int]]:
        """Every token that advances a row, with its bank."""
        places = [
            (row, token, bank)
            for row, state in enumerate(self.states)
            for token, bank in self.constraints.proposals(state)
        ]
        rows, tokens = [row for row, _, _ in places], [token for _, token, _ in places]
        scores = self.totals[rows, tokens].tolist()
        return [(Pick(row, token, score), bank) for (row, token, bank), score in zip(places, scores, strict=True)]

    def in_turn(self, plain: list[Pick], own: list[Pick]) -> list[Pick]:
        """The rows that go on: the best of each bank, then the second best of each, and so on."""
        banks: dict[tuple[Hashable, int], tuple[Pick, int]] = {}
        for pick in (*plain, *own):
            banks.setdefault(self._key(pick), (pick, self.constraints.progress(self.after(pick))))
        for pick, bank in self.advancing():
            if not self.ends(pick.parent, pick.token):
                banks.setdefault(self._key(pick), (pick, bank))
        possible = [(pick, bank) for pick, bank in banks.values() if pick.score > -torch.inf]
        possible.sort(key=lambda one: (-one[1], -one[0].score))
        chosen = [possible[at][0] for at in _turns([bank for _, bank in possible])]
        spare = [pick for pick in plain if pick not in chosen]  # twice the same sequence, or impossible
        return (chosen + spare)[: len(self.totals)]

    def in_turn_as_reference(self, plain: list[Pick]) -> list[Pick]:
        """As there: ranked by bank * 100 + score in float32, so a score below -100 counts as a lower bank, and
        turns go over the runs of equal banks that this leaves.
        """
        known = {self._key(pick) for pick in plain}
        added = []
        for pick, bank in self.advancing():
            if self._key(pick) not in known:
                known.add(self._key(pick))
                added.append((pick, bank))
        if not added:
            return plain
        every = [(pick, self.constraints.progress(self.after(pick))) for pick in plain] + added
        banks = torch.tensor([bank for _, bank in every])
        value = banks * 100 + torch.tensor([pick.score for pick, _ in every], dtype=torch.float32)
        order = value.sort(descending=True, stable=True).indices.tolist()
        turns = _turns([every[at][1] for at in order])
        return [every[order[at]][0] for at in turns[: len(self.totals)]]

    def _key(self, pick: Pick) -> tuple[Hashable, int]:
        return self.sequences[pick.parent], pick.token


def _turns(banks: Sequence[int]) -> list[int]:
    """Places of `banks` in the order: first of each run of equal ones, second of each, and so on."""
    turn, turns = 0, []
    for at, bank in enumerate(banks):
        turn = turn + 1 if at and banks[at - 1] == bank else 0
        turns.append(turn)
    return sorted(range(len(banks)), key=turns.__getitem__)
