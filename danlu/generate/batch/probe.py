"""Whether an engine's core answers as its model does alone: two requests in company, read in portions, step by step,
their rows forked and crossed, beside the model's own pass over each text.

What differs is said; what follows from it is core.py's. The comparison itself is model/company/check.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from danlu.generate.batch.kv import SMALLEST_CAPACITY
from danlu.generate.batch.scheduler import Request, Scheduler
from danlu.generate.search.strategies import Hypothesis, Limits, Row, Step, Strategy
from danlu.model.company.check import (
    CODE_FAULTS,
    allowed,
    alone,
    difference,
    probe_texts,
    refuse_unless_causal,
    tells_too_little,
)
from danlu.model.company.wiring import base_of

# Tokens of prompts read in one step (four times as many while no answer is under way): the first prompt, of 7, is read
# at once, the second, of 9, in portions of 5, 3 and 1.
PORTION = 3

# Rows of the request that has most.
MOST_ROWS = 3


class Stepped(Protocol):
    """What a core is to the probe."""

    scheduler: Scheduler

    def submit(self, request: Request) -> None: ...

    def step(self) -> None: ...


@dataclass(frozen=True)
class _Play:
    """A prompt, and how its rows go on."""

    prompt: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def rows(self) -> int:
        return len(self.steps[0].parents)

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """Each text that a row ever is."""
        rows: list[tuple[int, ...]] = [()] * self.rows
        texts = [self.prompt]
        for step in self.steps:
            rows = [(*rows[parent], token) for parent, token in zip(step.parents, step.tokens, strict=True)]
            texts += [(*self.prompt, *row) for row in rows]
        return texts


@dataclass(frozen=True)
class Probe:
    """The plays, and what the model alone makes of every text in them.

    Attributes:
        dtype: in which the model computes.
        limit: how far scores may be apart by rounding.
        wanted: (1, vocabulary), what it makes of each text.
        wrong: of one text a play and its beginnings, what it would make of them, had it forgotten the prompt but for
            its last token.
    """

    plays: tuple[_Play, ...]
    dtype: torch.dtype
    limit: float
    wanted: dict[tuple[int, ...], Tensor]
    wrong: dict[tuple[int, ...], Tensor]

    @classmethod
    def of(cls, model: Any) -> Probe:
        """Raises ModelError for a model that cannot read a text, or looks at what comes after."""
        plays = _plays(*map(tuple, probe_texts(model)))
        wanted: dict[tuple[int, ...], Tensor] = {}
        wrong: dict[tuple[int, ...], Tensor] = {}
        for play in plays:
            start, texts = len(play.prompt), sorted(play.texts, key=len, reverse=True)
            for text in texts:
                if text not in wanted:  # else it is the beginning of a longer one
                    scores = alone(model, text)
                    wanted |= {text[:end]: scores[end - 1 : end] for end in range(start, len(text) + 1)}
            longest = texts[0]
            forgetful = alone(model, longest[start - 1 :])
            wrong |= {longest[: start + at]: forgetful[at : at + 1] for at in range(len(forgetful))}
        refuse_unless_causal(model, play.prompt, wanted[play.prompt])
        return cls(plays, base_of(model).dtype, allowed(model), wanted, wrong)

    def difference(self, core: Stepped, limit: float | None = None) -> str:
        """What is wrong with a core's answers, in words; nothing if they are the model's. The core is idle.

        Args:
            limit: how far scores may be apart; by default as far as rounding puts them.
        """
        scripts = [_Script(play) for play in self.plays]
        try:
            _perform(core, scripts)
        except CODE_FAULTS as error:
            return f"its code fails: {error}"
        for script in scripts:
            texts = [text for text, _ in script.heard]
            wanted = torch.cat([self.wanted[text] for text in texts])
            got = torch.stack([scores for _, scores in script.heard]).to(wanted.device, self.dtype)
            if found := difference(got, wanted, limit or self.limit):
                return found
        return self._says_nothing()

    def _says_nothing(self) -> str:
        wanted = torch.cat([self.wanted[text] for text in self.wrong])
        return tells_too_little(torch.cat(list(self.wrong.values())), wanted, self.dtype, self.limit)


def _perform(core: Stepped, scripts: Sequence[_Script]) -> None:
    """Run the plays to their end, in portions, with room for all of them."""
    scheduler, store = core.scheduler, core.scheduler.store
    before = scheduler.prompt_tokens_a_step, store.budget_bytes
    scheduler.prompt_tokens_a_step = PORTION
    store.budget_bytes = max(
        store.budget_bytes, 2 * len(scripts) * store.shape.slot_bytes(MOST_ROWS, SMALLEST_CAPACITY)
    )
    errors: list[BaseException] = []
    requests = [Request(script.play.prompt, script, lambda scores: scores) for script in scripts]
    try:
        for request in requests:
            request.on_end = lambda error: errors.append(error) if error else None
            core.submit(request)
        while not scheduler.is_idle:
            core.step()
    finally:
        for request in requests:
            scheduler.end(request)
        scheduler.prompt_tokens_a_step, store.budget_bytes = before
    if errors:
        raise errors[0]


def _plays(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[_Play, ...]:
    """One text that goes on alone, and one that goes on as three rows, which go their own ways, fork and cross."""
    single = tuple(Step([0], [token]) for token in first[7:10])
    a, b, c, d, e, f, g = second[9:16]
    forked = (Step([0, 1, 2], [a, b, c]), Step([2, 0, 2], [d, e, f]), Step([1, 2, 0], [g, a, b]))
    return _Play(first[:7], single), _Play(second[:9], forked)


class _Script(Strategy):
    """Goes on as written, whatever the scores say, and remembers them."""

    def __init__(self, play: _Play) -> None:
        super().__init__(play.rows, Limits(len(play.steps) + 1, frozenset()))
        self.play, self._left = play, deque(play.steps)
        self.heard: list[tuple[tuple[int, ...], Tensor]] = []

    def choose(self, scores: Tensor) -> Step:
        for row, made in enumerate(self.sequences):
            self.heard.append(((*self.play.prompt, *made), scores[row]))
        if not self._left:
            return Step([], [])
        step = self._left.popleft()
        pairs = zip(step.parents, step.tokens, strict=True)
        self.sequences = [(*self.sequences[parent], token) for parent, token in pairs]
        return step

    def results(self) -> list[Hypothesis]:
        return []

    def standing(self) -> list[Row]:
        return []

    def finished(self) -> list[tuple[int, Hypothesis]]:
        return []
