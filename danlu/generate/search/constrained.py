"""Beam search in which phrases must appear. What a phrase is, is constraints.py's; which rows go on, allocation.py's.

An answer may end only when all constraints are satisfied. When the length is used up before that, the best rows
are returned all the same, and their finish reason says "unsatisfied".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from danlu.generate.scores.constraints import Constraints
from danlu.generate.search.allocation import Pick, Warp, pick_constrained, wanted_places
from danlu.generate.search.beams import BeamOptions, Draw, Pool, beam_row, highest_candidates, refuse_none
from danlu.generate.search.groups import GroupBeam
from danlu.generate.search.strategies import GROUPS_APART, PLACEHOLDER, Hypothesis, Limits, Row, Step, Strategy, is_real


class ConstrainedBeam(Strategy):
    """Dynamic beam allocation (Post & Vilar 2018): rows are spread over all degrees of progress.

    Args:
        constraints: what must appear.
        prompt: token ids; the reference counts them towards the constraints.
        draw: finds the candidates of all rows; tokens that phrases want join them as they are.
        warp: what a draw chooses from; None to take the scores as they are.
    """

    def __init__(
        self,
        options: BeamOptions,
        limits: Limits,
        constraints: Constraints[Any],
        prompt: Sequence[int],
        draw: Draw = highest_candidates,
        warp: Warp | None = None,
    ) -> None:
        super().__init__(options.num_beams, limits)
        self.options, self.constraints = options, constraints
        self._draw, self._warp = draw, warp
        self.states = [constraints.start(prompt)] * options.num_beams
        self.running = torch.full((options.num_beams,), PLACEHOLDER)
        self.running[0] = 0.0
        self._pool = Pool(options.num_beams, options, limits.max_new_tokens)
        self._unsatisfied: list[Hypothesis] = []

    def choose(self, scores: Tensor) -> Step:
        if self._warp is not None:
            scores = self._warp(scores, wanted_places(self.constraints, self.states), range(len(scores)))
        totals = scores + self.running[:, None]
        picks = pick_constrained(
            self.constraints,
            totals,
            self.states,
            self.sequences,
            self.ends,
            len(self.eos),
            lambda all_totals, count: self._draw(all_totals, count, self.made),
        )
        for pick in picks.finished:
            self._pool.add((*self.sequences[pick.parent], pick.token), pick.score, "stop")
        is_done = self._pool.is_done(float(totals.max()), self.made + 1)
        if is_done or not any(is_real(pick.score) for pick in picks.live):
            refuse_none(self._pool.kept)
            return Step([], [])
        live = _filled(picks.live, self.options.num_beams)
        self.states = [self.constraints.advance(self.states[pick.parent], pick.token) for pick in live]
        self.sequences = [(*self.sequences[pick.parent], pick.token) for pick in live]
        self.running = torch.tensor([pick.score for pick in live])
        if self.made >= self.max_new_tokens:
            self._finish_open_rows()
            return Step([], [])
        return Step([pick.parent for pick in live], [pick.token for pick in live])

    def _finish_open_rows(self) -> None:
        """Rows at the end of the length: satisfied ones compete, others fill up what is missing.

        The reference lets the others compete as well, once fewer rows than are asked for are satisfied.
        """
        satisfied = [self.constraints.complete(state) for state in self.states]
        rest = Pool(self.options.num_beams, self.options, self.max_new_tokens)
        too_few = sum(satisfied) < self.options.num_return_sequences
        competing = self._pool if self.constraints.exact_reference and too_few else rest
        for wanted, pool, reason in ((True, self._pool, "length"), (False, competing, "unsatisfied")):
            for row, sequence in enumerate(self.sequences):
                if satisfied[row] == wanted:
                    pool.add(sequence, float(self.running[row]), reason)  # type: ignore[arg-type]
        self._unsatisfied = rest.best()

    def results(self) -> list[Hypothesis]:
        return [*self._pool.best(), *self._unsatisfied][: self.options.num_return_sequences]

    def standing(self) -> list[Row]:
        pairs = zip(self.running.tolist(), self.states, strict=True)
        return [beam_row(total, bank=self.constraints.progress(state)) for total, state in pairs]

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return [(0, hypothesis) for hypothesis in (*self._pool.kept, *self._unsatisfied)]


class ConstrainedGroups(GroupBeam):
    """Groups that avoid each other, each a constrained search of its own: the phrases are in every group's answers.

    Args:
        warp: as in ConstrainedBeam.
        others: GroupBeam's.
    """

    def __init__(self, *others: Any, constraints: Constraints[Any], warp: Warp | None = None) -> None:
        super().__init__(*others)
        self.constraints, self._warp = constraints, warp
        self.states = [constraints.start(())] * self.options.num_beams
        self._unsatisfied = Pool(self.options.num_beams, self.options, self.max_new_tokens)

    def _choose_in(self, group: int, rows: list[int], scores: Tensor) -> list[tuple[int, int, float]]:
        states, pool = [self.states[row] for row in rows], self._pools[group]
        if self._warp is not None:
            scores = self._warp(scores, wanted_places(self.constraints, states), rows)
        totals = scores + self.running[rows, None]
        picks = pick_constrained(
            self.constraints,
            totals,
            states,
            [self.sequences[row] for row in rows],
            lambda row, token: self.ends(rows[row], token),
            len(self.eos),
            lambda all_totals, count: self._draw(all_totals, count, self.made + group * GROUPS_APART),
        )
        for pick in picks.finished:
            pool.add((*self.sequences[rows[pick.parent]], pick.token), pick.score, "stop")
        is_dead = not any(is_real(pick.score) for pick in picks.live)
        self._done[group] = is_dead or pool.is_done(float(totals.max()), self.made + 1)
        if is_dead:
            return [(rows[0], self.pad, PLACEHOLDER)] * self.size
        live = _filled(picks.live, self.size)
        for row, pick in zip(rows, live, strict=True):
            self.states[row] = self.constraints.advance(states[pick.parent], pick.token)
        return [(rows[pick.parent], pick.token, pick.score) for pick in live]

    def _finish_open_groups(self) -> None:
        """Rows at the end of the length: satisfied ones compete in their group, others fill up what is missing."""
        for row, sequence in enumerate(self.sequences):
            if self._done[row // self.size]:
                continue
            if self.constraints.complete(self.states[row]):
                self._pools[row // self.size].add(sequence, float(self.running[row]), "length")
            else:
                self._unsatisfied.add(sequence, float(self.running[row]), "unsatisfied")

    def results(self) -> list[Hypothesis]:
        return [*super().results(), *self._unsatisfied.best()][: self.options.num_return_sequences]

    def standing(self) -> list[Row]:
        pairs = zip(super().standing(), self.states, strict=True)
        return [replace(row, bank=self.constraints.progress(state)) for row, state in pairs]

    def finished(self) -> list[tuple[int, Hypothesis]]:
        groups = {sequence: row // self.size for row, sequence in enumerate(self.sequences)}
        return [*super().finished(), *((groups[one.tokens], one) for one in self._unsatisfied.kept)]


def _filled(live: list[Pick], rows: int) -> list[Pick]:
    """As many rows as ever: stop sequences may end any number of candidates."""
    return live + [live[0]._replace(score=PLACEHOLDER)] * (rows - len(live))
