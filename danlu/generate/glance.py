"""What a model gives to tokens that are known beforehand: many prompts and continuations, in the engine's batch.

A prompt that cannot be read is its own failure, and no other's. What prompts have in common is read once where there is
a prefix cache.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.errors import DanluError, FaultyScores
from danlu.generate.batch.scheduler import Request
from danlu.generate.batch.worker import Worker
from danlu.generate.scores.logits import faulty_rows, log_softmax
from danlu.generate.search.strategies import Hypothesis, Limits, Row, Step, Strategy


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


class Next(Glance):
    """log p of each wanted token as the next one."""

    def __init__(self, wanted: Tensor) -> None:
        super().__init__(1)
        self._wanted = wanted

    def choose(self, scores: Tensor) -> Step:
        self.logprobs = _logprobs(scores)[self._wanted].double()
        return Step([], [])


class Told(Glance):
    """log p of each token of a continuation, each after those before it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(len(tokens))
        self._tokens = tuple(tokens)
        self.logprobs = torch.zeros(len(tokens), dtype=torch.float64)

    def choose(self, scores: Tensor) -> Step:
        made = self.made
        token = self._tokens[made]
        self.logprobs[made] = _logprobs(scores)[token]
        if made + 1 == len(self._tokens):
            return Step([], [])
        self.sequences = [self._tokens[: made + 1]]
        return Step([0], [token])


def _logprobs(scores: Tensor) -> Tensor:
    """(vocabulary,) of one row."""
    if bool(faulty_rows(scores).any()):
        raise FaultyScores
    return log_softmax(scores)[0]


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
    asked: list[tuple[Glance, Request, queue.SimpleQueue[BaseException | None]]] = []
    found: list[Tensor | DanluError] = []
    try:
        for at, (prompt, strategy) in enumerate(zip(prompts, strategies, strict=True)):
            ended = queue.SimpleQueue[BaseException | None]()
            request = Request(tuple(prompt), strategy, lambda scores: scores, on_end=ended.put, adapter=adapter)
            asked.append((strategy, request, ended))
            tokens = len(prompt) + strategy.max_new_tokens - 1
            if longest is not None and tokens > longest:
                ended.put(DanluError(f"{tokens} tokens; the model reads {longest}"))
                continue
            worker.submit(request)
            if at == 0 and len(prompts) > 1:  # so that the others find what they begin with
                ended.put(worker.next_of(ended))
        for strategy, _, ended in asked:
            error = worker.next_of(ended)
            if error is not None and not isinstance(error, DanluError):
                raise error
            found.append(strategy.logprobs if error is None else error)
    except BaseException:
        for _, request, _ in asked:
            worker.cancel(request)
        raise
    return found
