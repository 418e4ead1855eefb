"""Log-probabilities of tokens, as answers report them: of the model's own scores, before any knob changes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from danlu.errors import FaultyScores
from danlu.generate.answers import Logprob
from danlu.generate.scores.logits import log_softmax

Score = Callable[[Tensor], Tensor]
Pick = Callable[[Tensor, Sequence[int], int], list[int]]


def report(logprobs: Tensor, tokens: Sequence[int], top: int, *, ranked: bool = False) -> list[Logprob]:
    """An entry for each of `tokens`.

    Args:
        logprobs: what the model gave to every token in its place: (tokens, vocabulary).
        top: so many of the likeliest tokens are added.
        ranked: and the rank of each of `tokens`, one more than the number of those that are likelier.

    Raises FaultyScores where they are not numbers.
    """
    own = logprobs[torch.arange(len(tokens)), list(tokens)]
    chosen = own.tolist()
    if any(map(math.isnan, chosen)):
        raise FaultyScores()
    ranks = ((logprobs > own[:, None]).sum(-1) + 1).tolist() if ranked else [None] * len(chosen)
    best = logprobs.topk(min(top, logprobs.shape[1]))
    places, values = best.indices.tolist(), best.values.tolist()
    return [
        Logprob(token, value, tuple(zip(places[at], values[at], strict=True)), ranks[at])
        for at, (token, value) in enumerate(zip(tokens, chosen, strict=True))
    ]


class Ledger:
    """Entries of the answers of one request, made from the scores that chose their tokens.

    Each choice is noted once: what is read in again after a request gave way is not chosen again. Written on the
    engine's thread, and only at the end, so that others may read what is there.

    Args:
        answers: how many grow side by side.
        top: so many of the likeliest tokens are added to each entry.
    """

    def __init__(self, answers: int, top: int) -> None:
        self._entries: list[list[Logprob]] = [[] for _ in range(answers)]
        self._top = top
        self._logprobs = torch.empty(0)

    def of(self, answer: int) -> tuple[Logprob, ...]:
        """What is noted of an answer, one entry a token."""
        return tuple(self._entries[answer])

    def seeing(self, score: Score) -> Score:
        """`score`, which also shows the ledger the model's own scores."""

        def seen(scores: Tensor) -> Tensor:
            self._logprobs = log_softmax(scores)
            return score(scores)

        return seen

    def noting(self, pick: Pick) -> Pick:
        """`pick`, which also notes what was chosen."""

        def noted(scores: Tensor, answers: Sequence[int], made: int) -> list[int]:
            tokens = pick(scores, answers, made)
            for answer, entry in zip(answers, report(self._logprobs, tokens, self._top), strict=True):
                self._entries[answer].append(entry)
            return tokens

        return noted
