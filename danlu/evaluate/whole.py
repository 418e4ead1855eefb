"""A file of answers -> a folder with what was found: rows, judge, figures, files, in order.

The face of this room for the command line, a recipe's step and Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.evaluate import gates, written
from danlu.evaluate.contamination import contaminated
from danlu.evaluate.evaluating import Evaluated, evaluate
from danlu.evaluate.judge import Judge
from danlu.evaluate.opening import OpenEmbed, open_judge, rubrics_for
from danlu.evaluate.options import EvaluateOptions
from danlu.evaluate.overlap import OVERLAPS
from danlu.evaluate.remote import RemoteJudge, estimate
from danlu.evaluate.rows import FaultyRow, Row, judgeable, read_rows
from danlu.evaluate.rubrics import Rubric
from danlu.evaluate.summary import summarise, without
from danlu.evaluate.trained import TrainedJudge
from danlu.hub import Say, silent
from danlu.journal import claimed


@dataclass(frozen=True)
class Outcome:
    """What was found, and its figures.

    Attributes:
        folder: where it stands.
        before: what it must not be worse than, as it was before this was written: it may have stood there too.
    """

    found: Evaluated
    summary: dict[str, Any]
    rubrics: Mapping[str, Rubric]
    folder: Path
    before: Evaluated | None = None


def evaluate_file(
    answers: Path, out: Path, options: EvaluateOptions, say: Say = silent, open_embed: OpenEmbed | None = None
) -> Outcome:
    """Judge the answers in a file, and write the folder `out`; what it holds of the same is used again.

    Raises ConfigError, DataError and ModelError before anything is judged; a row that fails raises nothing.
    """
    rows = read_rows(answers, options.language)
    rubrics = rubrics_for(options, rows, say)
    gates.check_bounds(options.fail_under, {**rubrics, **OVERLAPS})
    before = earlier(options)
    written.check_out(out)
    return evaluate_rows(rows, rubrics, open_judge(options, say, open_embed), out, options, say, before=before)


def earlier(options: EvaluateOptions) -> Evaluated | None:
    """What `fail_if_worse_than` names. Raises DataError where it is no evaluation."""
    if options.fail_if_worse_than is None:
        return None
    return written.read_evaluation(Path(options.fail_if_worse_than))[0]


def evaluate_rows(
    rows: Sequence[Row | FaultyRow],
    rubrics: Mapping[str, Rubric],
    judge: Judge | None,
    out: Path,
    options: EvaluateOptions,
    say: Say = silent,
    settings: Mapping[str, Any] | None = None,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    before: Evaluated | None = None,
) -> Outcome:
    """`evaluate_file` of rows and a judge that are there already.

    Args:
        settings: what else the summary is to tell.
        figures: id of a row -> what else was measured of it.
        before: what it must not be worse than.
    """
    if isinstance(judge, TrainedJudge):
        for rubric in rubrics.values():
            judge.check(rubric)
    if isinstance(judge, RemoteJudge):
        for rubric in rubrics.values():
            say(estimate(rubric, judgeable(rows), judge.samples, options.price_in, options.price_out))
    with claimed(out, say):
        kept, calibrate = written.kept_in(out), options.calibrate
        found = evaluate(rows, rubrics, judge, kept, calibrate=calibrate, figures=figures, say=say)
        summary = {
            "judge": None if judge is None else judge.name,
            "identity": None if judge is None else judge.identity,
            "calibrate": options.calibrate,
            **(settings or {}),
            **summarise(found, rubrics),
        }
        if options.training_data is not None:
            hits = contaminated(rows, Path(options.training_data))
            summary["contamination"] = {"hits": sum(hits), **without(found, rubrics, hits)}
        written.write(out, found, summary)
    return Outcome(found, summary, rubrics, out, before)


def check(outcome: Outcome, options: EvaluateOptions) -> None:
    """Raise NotJudged or GateFailed where the outcome is not good enough."""
    gates.check_judged(outcome.summary, options.max_failed)
    gates.check_under(outcome.summary, options.fail_under)
    if outcome.before is not None:
        gates.check_worse(outcome.before, outcome.found)
