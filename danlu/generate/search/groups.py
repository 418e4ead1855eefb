"""Group beam search: beams in groups, of which later ones are held apart from what earlier ones chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from danlu.generate.search.beams import BeamOptions, Draw, Pool, beam_row, highest_candidates, refuse_none
from danlu.generate.search.strategies import GROUPS_APART, PLACEHOLDER, Hypothesis, Limits, Row, Step, Strategy, is_real


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
