"""What a model gives a few tokens as the next one, after each of many prompts: one pass each, in the engine's batch.

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
    """Looks at the scores of the first place, and chooses nothing.

    Attributes:
        logprobs: of the wanted tokens, (tokens,) float64, once it has looked.
    """

    def __init__(self, wanted: Tensor) -> None:
        super().__init__(1, Limits(1, frozenset()))
        self._wanted = wanted
        self.logprobs = torch.empty(0, dtype=torch.float64)

    def choose(self, scores: Tensor) -> Step:
        if bool(faulty_rows(scores).any()):
            raise FaultyScores
        self.logprobs = log_softmax(scores)[0, self._wanted].double()
        return Step([], [])

    def results(self) -> list[Hypothesis]:
        return []

    def standing(self) -> list[Row]:
        return [Row()]

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return []


def glances(
    worker: Worker,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[int],
    adapter: str | None,
    longest: int | None,
) -> list[Tensor | DanluError]:
    """log p of each wanted token right after each prompt, (tokens,) float64, or why that prompt has none.

    Args:
        longest: tokens that the model reads at most.
    """
    tokens = torch.tensor(list(wanted), dtype=torch.int64)
    found: list[Tensor | DanluError] = []
    asked: list[tuple[Glance, Request, queue.SimpleQueue[BaseException | None]]] = []
    try:
        for at, prompt in enumerate(prompts):
            strategy, ended = Glance(tokens), queue.SimpleQueue[BaseException | None]()
            request = Request(tuple(prompt), strategy, lambda scores: scores, on_end=ended.put, adapter=adapter)
            asked.append((strategy, request, ended))
            if longest is not None and len(prompt) > longest:
                ended.put(DanluError(f"{len(prompt)} tokens; the model reads {longest}"))
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
