"""What a record is once it is token ids: an example to learn from, or a prompt to answer. Knows no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one document and which of them are learnt.

    Attributes:
        token_ids: (tokens,).
        learnt: (tokens,), true where the token is a target of the loss.
        place: file and line, for messages.
        group: examples that resemble each other share one (see evaluate.bootstrap).
        weights: (tokens,), what the loss of each counts where it is learnt; None is 1 for all.
        left_out: what of the record the chat template did not write, though it may (see left_out.py).
    """

    token_ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    place: str = ""
    group: str | None = None
    weights: tuple[float, ...] | None = None
    left_out: tuple[str, ...] = ()

    @property
    def learnt_tokens(self) -> int:
        return sum(self.learnt)

    @property
    def weight(self) -> float:
        """What the whole example counts in a mean loss: the sum over its learnt tokens."""
        if self.weights is None:
            return float(self.learnt_tokens)
        return sum(weight for weight, learnt in zip(self.weights, self.learnt, strict=True) if learnt)

    def part(self, start: int, end: int) -> Example:
        """Its tokens from `start` to `end` as a document of their own, whose first is learnt after nothing."""
        weights = None if self.weights is None else self.weights[start:end]
        learnt = (False, *self.learnt[start + 1 : end])
        return replace(self, token_ids=self.token_ids[start:end], learnt=learnt, weights=weights)


class Opened(list[int]):
    """Token ids that end with the opening of an answer: its text begins there, and goes on from nothing."""
