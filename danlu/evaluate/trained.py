"""A judge fitted to rated rows: a language model's likelihoods, its opinion, and overlap, combined per language.

Weak signals that can be calibrated are worth keeping (arXiv:2605.09702); regression on a judge's own figures and a few
hundred ratings is arXiv:2506.02945. The file judge.json holds all that was learnt and which documents it was learnt
from, so that it is never checked on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danlu.errors import ConfigError, DataError
from danlu.evaluate.fitting import LEAST_ROWS, Fit, Unseen, checked_figures, fit
from danlu.evaluate.judge import VERSION, Judge, LocalJudge
from danlu.evaluate.kept import Kept
from danlu.evaluate.overlap import baseline
from danlu.evaluate.pair_judge import PairJudge
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import Rubric
from danlu.evaluate.scale import Failed, Reading, judged
from danlu.evaluate.signals import Embed, Likelihoods, likeness
from danlu.evaluate.wording import wording
from danlu.fingerprint import of_value
from danlu.journal import write_atomic

FILE = "judge.json"
POOLED = "all"  # of languages that have too few rows of their own
_AT_ONCE = 16


class Figures:
    """What a fit is made of: numbers of each row.

    Args:
        judge: whose likelihoods are taken where it is on this machine, and whose opinion, if `asks`; None has neither.
        asks: whether the rubric is asked as well.
        embed: texts to unit vectors, for likeness; None leaves it out.
        head: a pair head, whose scores of sentences are taken; None leaves it out.
    """

    def __init__(
        self, judge: Judge | None, rubric: Rubric, asks: bool, embed: Embed | None = None, head: PairJudge | None = None
    ) -> None:
        self.judge, self.rubric, self.asks, self.embed, self.head = judge, rubric, asks, embed, head
        self._likelihoods = Likelihoods(judge.engine) if isinstance(judge, LocalJudge) else None
        parts = [
            rubric.model_dump(mode="json") if asks else None,
            judge and judge.identity,
            asks,
            embed is not None,
            head and head.identity,
        ]
        self.identity = of_value([parts, VERSION])

    def of(
        self, rows: Sequence[Row], kept: Kept | None = None, told: Callable[[int, int], None] = lambda done, of: None
    ) -> list[dict[str, float] | Failed]:
        """The figures of each row, or why it has none; what is kept is not worked out again."""
        keys = [of_value(["figures", row.digest, self.identity]) for row in rows]
        ask = kept or Kept(None)
        return ask.answers(keys, lambda at: self._of([rows[one] for one in at]), dict, dict, told, _AT_ONCE)

    def _of(self, rows: Sequence[Row]) -> list[dict[str, float] | Failed]:
        found: list[dict[str, float] | Failed] = [_overlaps(row) for row in rows]
        if self._likelihoods is not None:
            _add(found, self._likelihoods.of(rows))
        if self.embed is not None:
            _add(found, [{} if one is None else {"likeness": one} for one in likeness(rows, self.embed)])
        if self.head is not None:
            _add(found, self.head.figures(rows))
        if self.judge is not None and self.asks:
            _add(found, [self._opinion(one) for one in self.judge.read(self.rubric, rows)])
        return found

    def _opinion(self, reading: Reading | Failed) -> dict[str, float] | Failed:
        if isinstance(reading, Failed):
            return reading
        return {"opinion": judged(self.rubric.scale[0], reading.masses).expectation}


def _overlaps(row: Row) -> dict[str, float]:
    answer, context = row.answer or "", row.given("context")
    found = baseline(answer, row.true_answers, context)
    return {**found, "length": math.log1p(found["length"]), **wording(answer, context)}


def _add(found: list[dict[str, float] | Failed], more: Sequence[dict[str, float] | Failed]) -> None:
    """A row that lacks a part has failed."""
    for at, (one, other) in enumerate(zip(found, more, strict=True)):
        if not isinstance(one, Failed):
            found[at] = other if isinstance(other, Failed) else one | other


@dataclass(frozen=True)
class Learnt:
    """What judge.json holds.

    Attributes:
        measure: name of the rubric; scale: its scale; rubric: all of it.
        judge, dtype, embedder, head: whose figures these are.
        asks: whether the rubric is asked.
        fits: language -> fit; `POOLED` for all others.
        documents: digests of what was learnt from.
    """

    measure: str
    scale: tuple[int, int]
    rubric: Mapping[str, Any]
    judge: str | None
    dtype: str
    embedder: str | None
    head: str | None
    asks: bool
    fits: Mapping[str, Fit]
    documents: frozenset[str]

    def write(self, folder: Path) -> None:
        """Into judge.json, whole or not at all."""
        document = {**vars(self), "fits": {name: one.to_json() for name, one in self.fits.items()}}
        document["documents"] = sorted(self.documents)
        write_atomic(folder / FILE, json.dumps(document, ensure_ascii=False, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Learnt:
        """Raises DataError for a file that is none, or torn."""
        try:
            document = json.loads((folder / FILE).read_text("utf-8"))
            fits = {name: Fit.from_json(one) for name, one in document["fits"].items()}
            low, high = document["scale"]
            return cls(
                **{**document, "fits": fits, "scale": (low, high), "documents": frozenset(document["documents"])}
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / FILE}: no judge: {error}", fix="train it again") from None


class TrainedJudge:
    """As judge.Judge has it; of one measure."""

    def __init__(self, learnt: Learnt, figures: Figures, name: str) -> None:
        self.learnt, self.name, self._figures = learnt, name, figures
        fits = {language: one.to_json() for language, one in learnt.fits.items()}
        self.identity = of_value([fits, figures.identity])

    def read(self, rubric: Rubric, rows: Sequence[Row]) -> list[Reading | Failed]:
        """Raises ConfigError for a rubric that it was not trained for."""
        self.check(rubric)
        return [self._reading(row, one) for row, one in zip(rows, self._figures.of(rows), strict=True)]

    @property
    def documents(self) -> frozenset[str]:
        """Digests of what it has learnt from."""
        return self.learnt.documents

    def check(self, rubric: Rubric) -> None:
        if (rubric.name, rubric.scale) != (self.learnt.measure, self.learnt.scale):
            low, high = self.learnt.scale
            raise ConfigError(
                f"{self.name} was trained for {self.learnt.measure} from {low} to {high}, and not for {rubric.name} "
                f"from {rubric.scale[0]} to {rubric.scale[1]}",
                fix=f"set measures={self.learnt.measure}",
            )

    def _reading(self, row: Row, figures: dict[str, float] | Failed) -> Reading | Failed:
        if isinstance(figures, Failed):
            return figures
        own = self.learnt.fits.get(row.language) or self.learnt.fits.get(POOLED)
        if own is None:
            return Failed(f"the judge was trained on no rows in {row.language}")
        if missing := [name for name in own.names if name not in figures]:
            return Failed(f"no {', no '.join(missing)}: the row lacks a text that the judge was trained with")
        (shares,) = own.distributions(np.array([[figures[name] for name in own.names]], dtype=np.float64))
        return Reading(tuple(shares.tolist()), 0.0, own.interval(shares))


@dataclass(frozen=True)
class Rated:
    """Rows that people have rated, with their figures; rows without either are counted."""

    rows: Sequence[Row]
    ratings: Sequence[float]
    figures: Sequence[dict[str, float]]
    left_out: int


def learn(rated: Rated, scale: tuple[int, int]) -> tuple[dict[str, Fit], dict[str, Unseen], dict[str, list[int]]]:
    """A fit for each language that has rows enough, and one of all rows.

    Returns fits, what folds predicted of rows they had not seen, and of which rows these are the places.
    """
    places = {POOLED: list(range(len(rated.rows)))}
    for language in sorted({row.language for row in rated.rows}):
        own = [at for at, row in enumerate(rated.rows) if row.language == language]
        if len(own) >= LEAST_ROWS and len(own) < len(rated.rows):
            places[language] = own
    fits, unseen = {}, {}
    for name, those in places.items():
        names, table = checked_figures([rated.figures[at] for at in those])
        ratings, groups = [rated.ratings[at] for at in those], [group_of(rated.rows[at]) for at in those]
        fits[name], unseen[name] = fit(table, ratings, groups, names, scale)
    return fits, unseen, places


def document_of(row: Row) -> str:
    """What two rows of one document share: the passage, or the question where there is none."""
    return of_value(row.given("context") or row.given("question") or row.truth or row.answer)


def group_of(row: Row) -> str:
    """The group that a row names, or else its document."""
    return document_of(row) if row.group == row.id else row.group
