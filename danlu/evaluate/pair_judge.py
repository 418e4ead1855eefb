"""Rows as pairs of a source and a claim; a pair head as a judge, and as figures for a fit.

Each sentence of an answer is held against what bears on it in the source, and the answer gets the mean of their
distributions: whole documents and whole answers tell a small encoder little (AlignScore, Zha et al. 2023; SummaC,
Laban et al. 2022). Of a fit, the worst sentence is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from danlu.device import Device, read_device
from danlu.errors import ConfigError
from danlu.evaluate import pair_head
from danlu.evaluate.fitting import interval_of
from danlu.evaluate.heads import Head
from danlu.evaluate.pair_head import About, Pairs
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import Rubric
from danlu.evaluate.scale import Failed, Reading
from danlu.evaluate.sentences import sentences
from danlu.fingerprint import of_value, of_weights

MOST_SENTENCES = 24  # of an answer; those after it are not looked at


@dataclass(frozen=True)
class Sides:
    """What a row's answer is held against, and what it claims, a sentence each."""

    source: str
    claims: tuple[str, ...]


def sides(row: Row) -> Sides | Failed:
    """The passage, else the true answer, else the question; the question stands before each claim it is not held
    against."""
    answer = (row.answer or "").strip()
    source = row.given("context") or row.given("truth") or row.given("question")
    if not answer or source is None:
        return Failed("an empty answer claims nothing" if source else "nothing to hold the answer against")
    asked = row.given("question")
    before = "" if asked is None or asked == source else f"{asked} "
    return Sides(source, tuple(before + one for one in sentences(answer)[:MOST_SENTENCES]))


class PairJudge:
    """As judge.Judge has it: reads no rubric, and gives scores of the scale that it was trained on.

    Attributes:
        about: what it was trained on.
    """

    def __init__(self, head: Head, pairs: Pairs, about: About, name: str, identity: str) -> None:
        self.head, self.pairs, self.about, self.name, self.identity = head, pairs, about, name, identity

    @classmethod
    def open(cls, folder: Path, device: Device | None = None) -> PairJudge:
        head, pairs, about = pair_head.load(folder, device or read_device())
        digest = of_value([of_weights(folder), (folder / pair_head.FILE).read_text("utf-8")])
        return cls(head, pairs, about, str(folder), digest)

    @property
    def documents(self) -> frozenset[str]:
        """Digests of what it has learnt from."""
        return self.about.documents

    def check(self, rubric: Rubric) -> None:
        """Raise ConfigError for a rubric of another scale."""
        if rubric.scale != self.about.scale:
            low, high = self.about.scale
            raise ConfigError(
                f"{self.name} gives {low} to {high}, and {rubric.name} has {rubric.scale[0]} to {rubric.scale[1]}",
                fix="train a head on that scale",
            )

    def read(self, rubric: Rubric, rows: Sequence[Row]) -> list[Reading | Failed]:
        """As `Judge.read`. Raises ConfigError for a rubric of another scale."""
        self.check(rubric)
        return [one if isinstance(one, Failed) else self._reading(one) for one in self.shares(rows)]

    def _reading(self, shares: torch.Tensor) -> Reading:
        """Of the sentences' distributions: their mean, with the interval that held-out pairs promise."""
        mean = shares.mean(0).double()
        return Reading(tuple(mean.tolist()), 0.0, interval_of(mean.numpy(), self.about.scale[0], self.about.error))

    def figures(self, rows: Sequence[Row]) -> list[dict[str, float] | Failed]:
        """pair: the expectation; pair_least: that of the worst sentence; pair_sure: the share of the likeliest."""
        low, high = self.about.scale
        scores = torch.arange(low, high + 1, dtype=torch.float32)
        found: list[dict[str, float] | Failed] = []
        for one in self.shares(rows):
            if isinstance(one, Failed):
                found.append(one)
                continue
            means = one @ scores
            sure = float(one.max(1).values.mean())
            found.append({"pair": float(means.mean()), "pair_least": float(means.min()), "pair_sure": sure})
        return found

    def shares(self, rows: Sequence[Row]) -> list[torch.Tensor | Failed]:
        """Of each row, (sentences, scores): distributions."""
        ready = [sides(row) for row in rows]
        ids = [
            self.pairs.ids(one.source, claim) for one in ready if not isinstance(one, Failed) for claim in one.claims
        ]
        shares = (self.head.logits(ids) / self.about.temperature).softmax(-1) if ids else torch.empty(0, 1)
        sizes = [0 if isinstance(one, Failed) else len(one.claims) for one in ready]
        parts = shares.split(sizes) if ids else [shares] * len(rows)
        return [one if isinstance(one, Failed) else part for one, part in zip(ready, parts, strict=True)]
