"""What a model gives to tokens that are known beforehand: many prompts and continuations, in the engine's batch.

A prompt that cannot be read is its own failure, and no other's. What prompts have in common is read once where there is
a prefix cache: their *stems* are read first, each after the one that it goes on with.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from danlu.errors import DanluError, FaultyScores
from danlu.generate.batch.prefix import BLOCK_TOKENS
from danlu.generate.batch.scheduler import Request
from danlu.generate.batch.worker import Worker
from danlu.generate.scores.logits import faulty_rows, log_softmax
from danlu.generate.search.strategies import Hypothesis, Limits, Row, Step, Strategy

_ROWS_AT_ONCE = 32  # of scores for a whole vocabulary, which become float32


class Glance(Strategy):
    """Looks at scores and chooses nothing of its own.

    Attributes:
        logprobs: what it has seen, float64.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(1, Limits(steps, frozenset()))
        self.logprobs = torch.empty(0, dtype=torch.float64)

    def results(self) -> list[Hypothesis]:
        return []

    def standing(self) -> list[Row]:
        return [Row()]

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return []


class Stem(Glance):
    """Wants nothing but that its prompt is read."""

    def __init__(self) -> None:
        super().__init__(1)

    def choose(self, scores: Tensor) -> Step:
        return Step([], [])


class Next(Glance):
    """log p of each wanted token as the next one: (wanted,); with `then`, after that token as well: (2, wanted)."""

    def __init__(self, wanted: Tensor, then: int | None = None) -> None:
        super().__init__(1 if then is None else 2)
        self._wanted, self._then = wanted, then

    def choose(self, scores: Tensor) -> Step:
        found = _logprobs(scores)[self._wanted].double()
        if self._then is None:
            self.logprobs = found
        elif self.made == 0:
            self.logprobs, self.sequences = found[None], [(self._then,)]
            return Step([0], [self._then])
        else:
            self.logprobs = torch.cat([self.logprobs, found[None]])
        return Step([], [])


class Told(Glance):
    """log p of each token of a continuation, each after those before it. They are read as a prompt is, all at once."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(1)
        self.tokens = tuple(tokens)
        self.logprobs = torch.zeros(len(tokens), dtype=torch.float64)

    def choose(self, scores: Tensor) -> Step:
        return Step([], [])  # there are no tokens to look at

    def see(self, at: int, scores: Tensor) -> None:
        for start in range(0, len(scores), _ROWS_AT_ONCE):
            part = scores[start : start + _ROWS_AT_ONCE].float()
            own = torch.tensor(self.tokens[at + start :][: len(part)], device=part.device)
            total = part.logsumexp(1)
            if not bool(total.isfinite().all()):  # as if one score is not a number, or all are minus infinity
                raise FaultyScores
            self.logprobs[at + start :][: len(part)] = (part.gather(1, own[:, None])[:, 0] - total).cpu()


def _logprobs(scores: Tensor) -> Tensor:
    """(vocabulary,) of one row."""
    if bool(faulty_rows(scores).any()):
        raise FaultyScores
    return log_softmax(scores)[0]


def stems(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Beginnings, in whole blocks of the prefix cache, that two prompts or more have in common, in waves: each of them
    goes on with one of the wave before, or with nothing."""
    waves: list[list[tuple[int, ...]]] = []
    groups = [(sorted(prompts), 0, 0)]
    while groups:
        group, known, wave = groups.pop()
        if len(group) < 2:
            continue
        shared = _in_common(group[0], group[-1])
        if (whole := shared - shared % BLOCK_TOKENS) > known:
            waves += [[]] if wave == len(waves) else []
            waves[wave].append(group[0][:whole])
            known, wave = whole, wave + 1
        longer = [prompt for prompt in group if len(prompt) > shared]
        groups += [(list(part), known, wave) for _, part in groupby(longer, itemgetter(shared))]
    return waves


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def looked(
    worker: Worker,
    prompts: Sequence[Sequence[int]],
    strategies: Sequence[Glance],
    adapter: str | None,
    longest: int | None,
) -> list[Tensor | DanluError]:
    """What each strategy has seen after its prompt, or why it has seen nothing.

    Args:
        longest: tokens that the model reads at most.
    """
    jobs = [_Job(prompt, strategy, adapter) for prompt, strategy in zip(prompts, strategies, strict=True)]
    readable = [job for job in jobs if longest is None or job.tokens <= longest]
    waves = [] if worker.core.prefixes is None else stems([job.prompt for job in readable])
    ahead = [[_Job(stem, Stem(), adapter) for stem in wave] for wave in waves]
    begun: list[_Job] = []
    try:
        for wave in [*ahead, readable]:
            begun += wave
            for job in wave:
                worker.submit(job.request)
            for job in wave:
                error = worker.next_of(job.ended)
                if error is not None and not isinstance(error, DanluError):
                    raise error
                job.error = error
    except BaseException:
        for job in begun:
            worker.cancel(job.request)
        raise
    for job in jobs:
        if longest is not None and job.tokens > longest:
            job.error = DanluError(f"{job.tokens} tokens; the model reads {longest}")
    return [job.strategy.logprobs if job.error is None else job.error for job in jobs]


class _Job:
    """A prompt on its way.

    Attributes:
        tokens: that the model reads for it.
        error: why nothing was seen.
    """

    def __init__(self, prompt: Sequence[int], strategy: Glance, adapter: str | None) -> None:
        self.prompt, self.strategy = tuple(prompt), strategy
        told = strategy.tokens if isinstance(strategy, Told) else ()
        read = self.prompt + told[:-1]
        self.tokens = len(read) + strategy.max_new_tokens - 1
        self.ended = queue.SimpleQueue[BaseException | None]()
        self.request = Request(
            read, strategy, lambda scores: scores, on_end=self.ended.put, adapter=adapter, looks=len(told)
        )
        self.error: DanluError | None = None
