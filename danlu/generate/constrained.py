"""Beam search in which phrases must appear. What a phrase is, and which rows go on, is constraints.py's.

An answer may end only when all constraints are satisfied. When the length is used up before that, the best rows
are returned all the same, and their finish reason says "unsatisfied".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.generate.constraints import Constraints, Pick, pick_constrained
from danlu.generate.strategies import (
    PLACEHOLDER,
    BeamOptions,
    Hypothesis,
    Limits,
    Pool,
    Row,
    Step,
    Strategy,
    beam_row,
    is_real,
    refuse_none,
)


class ConstrainedBeam(Strategy):
    """Dynamic beam allocation (Post & Vilar 2018): rows are spread over all degrees of progress.

    Args:
        constraints: what must appear.
        prompt: token ids; the reference counts them towards the constraints.
    """

    def __init__(
        self, options: BeamOptions, limits: Limits, constraints: Constraints[Any], prompt: Sequence[int]
    ) -> None:
        super().__init__(options.num_beams, limits)
        self.options, self.constraints = options, constraints
        self.states = [constraints.start(prompt)] * options.num_beams
        self.running = torch.full((options.num_beams,), PLACEHOLDER)
        self.running[0] = 0.0
        self._pool = Pool(options.num_beams, options, limits.max_new_tokens)
        self._unsatisfied: list[Hypothesis] = []

    def choose(self, scores: Tensor) -> Step:
        totals = scores + self.running[:, None]
        picks = pick_constrained(self.constraints, totals, self.states, self.sequences, self.ends, len(self.eos))
        for pick in picks.finished:
            self._pool.add((*self.sequences[pick.parent], pick.token), pick.score, "stop")
        is_done = self._pool.is_done(float(totals.max()), self.made + 1)
        if is_done or not any(is_real(pick.score) for pick in picks.live):
            refuse_none(self._pool.kept)
            return Step([], [])
        live = self._filled(picks.live)
        self.states = [self.constraints.advance(self.states[pick.parent], pick.token) for pick in live]
        self.sequences = [(*self.sequences[pick.parent], pick.token) for pick in live]
        self.running = torch.tensor([pick.score for pick in live])
        if self.made >= self.max_new_tokens:
            self._finish_open_rows()
            return Step([], [])
        return Step([pick.parent for pick in live], [pick.token for pick in live])

    def _filled(self, live: list[Pick]) -> list[Pick]:
        """As many rows as ever: stop sequences may end any number of candidates."""
        return live + [live[0]._replace(score=PLACEHOLDER)] * (self.options.num_beams - len(live))

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
