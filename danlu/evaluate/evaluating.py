"""Rows x measures -> judgements, with the cheap baseline beside each. The harness around any judge.

Knows judges by what they read (judge.py), and no files but those of `Kept`. What becomes of the figures, summary.py
says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from danlu.errors import DanluError
from danlu.evaluate import prompts
from danlu.evaluate.judge import Judge
from danlu.evaluate.kept import AT_ONCE, Kept, reading_from_json, reading_to_json
from danlu.evaluate.overlap import baseline
from danlu.evaluate.prior import by_language, mean_distribution, saying_nothing
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.rubrics import Language, Rubric
from danlu.evaluate.scale import Failed, Judged, Reading, calibrated, judged
from danlu.fingerprint import of_value

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluated:
    """All that was found of one set of answers.

    Attributes:
        rows: in order, faulty ones too.
        judged: measure -> one judgement or failure a row.
        overlaps: of each row, its cheap measures; nothing of a faulty one.
        priors: measure -> language -> what the judge says of nothing, where that was divided out.
    """

    rows: Sequence[Row | FaultyRow]
    judged: Mapping[str, Sequence[Judged | Failed]]
    overlaps: Sequence[Mapping[str, float]]
    priors: Mapping[str, Mapping[Language, Sequence[float]]] = field(default_factory=dict)

    def failures(self, measure: str) -> int:
        return sum(isinstance(one, Failed) for one in self.judged[measure])


def evaluate(
    rows: Sequence[Row | FaultyRow],
    rubrics: Mapping[str, Rubric],
    judge: Judge | None,
    kept: Kept | None = None,
    *,
    calibrate: bool = False,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    say: Say = lambda text: None,
) -> Evaluated:
    """Judge every row by every rubric; a row that cannot be judged is Failed, and ends nothing.

    Args:
        judge: None measures overlap alone.
        kept: what was said before.
        calibrate: divide by what the judge says of answers that say nothing (prior.py).
        figures: id of a row -> what else was measured of it, which stands with its overlaps.
    """
    kept = kept or Kept(None)
    good = [row for row in rows if isinstance(row, Row)]
    found: dict[str, Sequence[Judged | Failed]] = {}
    priors: dict[str, Mapping[Language, Sequence[float]]] = {}
    for name, rubric in rubrics.items() if judge is not None else ():
        assert judge is not None
        priors[name] = _priors(judge, rubric, good, kept) if calibrate else {}
        readings = read(judge, rubric, good, kept, lambda done, of, name=name: say(f"{name}: {done} of {of} rows"))  # type: ignore[misc]
        ready = iter([_judgement(rubric, row, one, priors[name]) for row, one in zip(good, readings, strict=True)])
        found[name] = [next(ready) if isinstance(row, Row) else Failed(row.reason) for row in rows]
    more = figures or {}
    return Evaluated(rows, found, [{**_overlaps(row), **more.get(row.id, {})} for row in rows], priors)


def read(
    judge: Judge,
    rubric: Rubric,
    rows: Sequence[Row],
    kept: Kept,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> list[Reading | Failed]:
    """What the judge says of each row, asked only for what is not kept. Rows that begin alike are asked together."""
    asked = [_asked(rubric, row) for row in rows]
    document = rubric.model_dump(mode="json")
    order = sorted(range(len(rows)), key=asked.__getitem__)
    found = kept.answers(
        [of_value([asked[at], document, judge.identity]) for at in order],
        lambda places: judge.read(rubric, [rows[order[at]] for at in places]),
        reading_to_json,
        reading_from_json,
        told,
        getattr(judge, "at_once", AT_ONCE),
    )
    return [one for _, one in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]


def _asked(rubric: Rubric, row: Row) -> list[str]:
    """The prompt in two parts; of a row that has none, nothing and what the row is."""
    try:
        return [prompts.question(rubric, row), prompts.lead(rubric, row)]
    except prompts.Unjudgeable:
        return ["", row.digest]


def _priors(judge: Judge, rubric: Rubric, rows: Sequence[Row], kept: Kept) -> dict[Language, tuple[float, ...]]:
    found = {}
    for language, those in by_language(rows).items():
        readings = read(judge, rubric, saying_nothing(those), kept)
        prior = mean_distribution([one for one in readings if isinstance(one, Reading)])
        if prior is not None:
            found[language] = prior
    return found


def _judgement(
    rubric: Rubric, row: Row, reading: Reading | Failed, priors: Mapping[Language, Sequence[float]]
) -> Judged | Failed:
    if isinstance(reading, Failed):
        return reading
    prior = priors.get(row.language)
    try:
        shares = reading.masses if prior is None else calibrated(reading.masses, prior)
        return judged(rubric.scale[0], shares, reading.outside, reading.interval)
    except DanluError as error:
        return Failed(error.seen)


def _overlaps(row: Row | FaultyRow) -> dict[str, float]:
    if isinstance(row, FaultyRow) or row.answer is None:
        return {}
    return baseline(row.answer, row.true_answers, row.given("context"))
