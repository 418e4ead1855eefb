"""Listens to one request while it is answered, and makes its trace.

Takes the scores as they pass from stage to stage, and compares how the rows stand before and after each choice; it
changes none of them, so the answers are the same. A request that nobody records pays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.generate.answers import Generation
from danlu.generate.requests import Job, uniforms_of
from danlu.generate.scores import logits
from danlu.generate.scores.text import TokenNames
from danlu.generate.search.strategies import Hypothesis, Row
from danlu.generate.search.strategies import Step as Chosen
from danlu.generate.watching.trace import (
    After,
    Branch,
    Candidate,
    Choice,
    Dropped,
    Finished,
    Stage,
    Step,
    Token,
    Trace,
    TracedAnswer,
)

# Candidates that are kept of each row, beside those that were chosen.
TOP = 8


@dataclass(frozen=True)
class _Ended:
    """A hypothesis that a step finished, and the row that it comes from."""

    hypothesis: Hypothesis
    parent: int
    group: int


@dataclass(frozen=True)
class _Step:
    choices: tuple[Choice, ...]
    branches: tuple[Branch, ...]
    ended: tuple[_Ended, ...]


class Recorder:
    """Records a job that is not submitted yet.

    Args:
        names: the texts of tokens.
        top: candidates to keep of each row, beside those that were chosen.
    """

    def __init__(self, job: Job, names: TokenNames, top: int = TOP) -> None:
        self._job, self._names, self._top = job, names, top
        request = job.request
        self._score, self._on_step, self._on_end = request.score, request.on_step, request.on_end
        request.score, request.on_step, request.on_end = self._scored, self._stepped, self._ended
        request.take = None
        job.rows.watch = self._heard
        self._steps: list[_Step] = []
        self._known: list[Hypothesis] = []  # finished in an earlier step, and perhaps displaced since

    def trace(self, generation: Generation) -> Trace:
        """The trace of a request that has ended with these answers."""
        job, strategy = self._job, self._job.request.strategy
        results = strategy.results()
        kept = [hypothesis for _, hypothesis in strategy.finished()]
        return Trace(
            version=1,
            strategy=job.params.strategy,
            knobs=job.params.model_dump(mode="json", exclude_defaults=True),
            seed=job.seed if job.params.do_sample else None,
            prompt=self._tokens(job.prompt),
            steps=tuple(self._step(step, kept, results) for step in self._steps),
            answers=tuple(
                TracedAnswer(
                    self._tokens(answer.token_ids), answer.text, answer.score, answer.finish_reason, self._path(one)
                )
                for answer, one in zip(generation.sequences, results, strict=True)
            ),
        )

    # -- while it runs, on the engine's thread ---------------------------------------------------------

    def _scored(self, scores: Tensor) -> Tensor:
        strategy = self._job.request.strategy
        has_beams = self._job.params.num_beams > 1
        self._given = logits.log_softmax(scores) if has_beams else scores  # as requests.py has it
        self._stages: list[tuple[str, list[int], Tensor]] = []
        self._before, self._sequences = strategy.standing(), list(strategy.sequences)
        return self._score(scores)

    def _heard(self, knob: str, scores: Tensor, rows: Sequence[int]) -> None:
        self._stages.append((knob, list(rows), scores))

    def _stepped(self, chosen: Chosen) -> None:
        self._keep(chosen)
        self._on_step(chosen)

    def _ended(self, error: BaseException | None) -> None:
        if error is None:
            self._keep(Chosen([], []))
        self._on_end(error)

    def _keep(self, chosen: Chosen) -> None:
        ended = self._newly_ended()
        branches = tuple(
            Branch(row, parent, self._token(token), after.group, after.is_live, after.total, after.bank)
            for row, (parent, token, after) in enumerate(self._rows_after(chosen))
        )
        taken = {(branch.parent, branch.token.id) for branch in branches if branch.is_live}
        taken |= {(one.parent, one.hypothesis.tokens[-1]) for one in ended}
        choices = tuple(
            self._choice(number, row.group, [token for parent, token in taken if parent == number])
            for number, row in enumerate(self._before)
            if row.is_live
        )
        self._steps.append(_Step(choices, branches, ended))
        self._stages = []

    def _rows_after(self, chosen: Chosen) -> list[tuple[int, int, Row]]:
        if not chosen.tokens:
            return []
        return list(zip(chosen.parents, chosen.tokens, self._job.request.strategy.standing(), strict=True))

    def _newly_ended(self) -> tuple[_Ended, ...]:
        finished = self._job.request.strategy.finished()
        new = [(group, one) for group, one in finished if not any(one is known for known in self._known)]
        self._known += [one for _, one in new]
        return tuple(_Ended(one, self._parent(group, one), group) for group, one in new)

    def _parent(self, group: int, hypothesis: Hypothesis) -> int:
        return next(
            number
            for number, (row, sequence) in enumerate(zip(self._before, self._sequences, strict=True))
            if row.is_live and row.group == group and sequence == hypothesis.tokens[:-1]
        )

    # -- candidates ------------------------------------------------------------------------------------

    def _choice(self, row: int, group: int, chosen: Sequence[int]) -> Choice:
        heard = [(knob, scores[rows.index(row)]) for knob, rows, scores in self._stages if row in rows]
        scores = torch.stack([self._given[row], *(after for _, after in heard)])  # (1 + stages, vocabulary)
        p = scores.double().softmax(-1).nan_to_num(0.0)  # a beam may have no token left
        order = p.amax(0).topk(min(self._top, p.shape[1])).indices.tolist()
        shown = torch.tensor(list(dict.fromkeys([*order, *chosen])))
        ranks = (1 + (scores[0] > scores[0, shown, None]).sum(-1)).tolist()
        knobs = [knob for knob, _ in heard]
        columns = zip(shown.tolist(), ranks, scores[:, shown].T.tolist(), p[:, shown].T.tolist(), strict=True)
        candidates = [self._candidate(*column, knobs, column[0] in chosen) for column in columns]
        return Choice(
            row,
            group,
            self._u(row, group),
            tuple(self._stage(knob, scores[at : at + 2], p[at]) for at, knob in enumerate(knobs)),
            tuple(sorted(candidates, key=lambda one: (one.rank, one.token.id))),
        )

    def _candidate(
        self, token: int, rank: int, scores: list[float], p: list[float], knobs: list[str], is_chosen: bool
    ) -> Candidate:
        after = tuple(After(_finite(score), one) for score, one in zip(scores[1:], p[1:], strict=True))
        pairs = zip(knobs, scores, scores[1:], strict=False)
        dropped_by = next((knob for knob, before, now in pairs if before > -math.inf and now == -math.inf), None)
        return Candidate(self._token(token), rank, _finite(scores[0]), p[0], after, dropped_by, is_chosen)

    def _stage(self, knob: str, scores: Tensor, p: Tensor) -> Stage:
        """What one knob did: scores (2, vocabulary) before and after it, p (vocabulary,) before."""
        before, after = scores
        dropped = (before > -torch.inf) & (after == -torch.inf)
        count = int(dropped.sum())
        best = p.masked_fill(~dropped, -1.0).topk(min(self._top, count))
        likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        gone = tuple(Dropped(self._token(token), one) for token, one in likeliest)
        return Stage(knob, not torch.equal(before, after), int((after > -torch.inf).sum()), count, gone)

    def _u(self, row: int, group: int) -> float | None:
        params = self._job.params
        if params.strategy != "sample":
            return None
        return float(uniforms_of(self._job.seed, [group], len(self._sequences[row])))

    # -- afterwards ------------------------------------------------------------------------------------

    def _step(self, step: _Step, kept: list[Hypothesis], results: list[Hypothesis]) -> Step:
        finished = tuple(
            Finished(
                one.parent,
                self._token(one.hypothesis.tokens[-1]),
                one.group,
                one.hypothesis.score,
                one.hypothesis.finish_reason,
                is_kept=_place(one.hypothesis, kept) is not None,
                answer=_place(one.hypothesis, results),
            )
            for one in step.ended
        )
        return Step(step.choices, step.branches, finished)

    def _path(self, hypothesis: Hypothesis) -> tuple[int, ...]:
        """The rows that chose its tokens, from the first to the last."""
        steps = self._steps[: len(hypothesis.tokens)]
        path = [next(one.parent for one in steps[-1].ended if one.hypothesis is hypothesis)]
        for step in reversed(steps[:-1]):
            path.append(step.branches[path[-1]].parent)
        return tuple(reversed(path))

    def _tokens(self, tokens: Sequence[int]) -> tuple[Token, ...]:
        return tuple(map(self._token, tokens))

    def _token(self, token: int) -> Token:
        return Token(token, self._names.data(token).decode("utf-8", "backslashreplace"))


def _place(hypothesis: Hypothesis, among: Sequence[Hypothesis]) -> int | None:
    """Where this very hypothesis stands; equal ones may have come from other rows."""
    return next((at for at, one in enumerate(among) if one is hypothesis), None)


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
