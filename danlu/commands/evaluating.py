"""Answers, judged: files of them, or what models say to questions; judges held against people, and trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from danlu.commands.shared import OUT, Flat, GivenPath, news, say
from danlu.config import Options
from danlu.evaluate.options import EvaluateOptions
from danlu.evaluate.whole import Outcome, check, evaluate_file
from danlu.flags import as_flags, from_flags
from danlu.report.evaluation import write_evaluation_report
from danlu.words import words

if TYPE_CHECKING:
    Evaluating = Options
else:
    Evaluating = as_flags(EvaluateOptions)

app = App(
    name="evaluate",
    help="Judge answers: integers with their doubt, beside a cheap baseline.",
    default_parameter=Parameter(name_transform=lambda name: name, negative=()),
)


@app.default
def evaluate(
    answers: GivenPath,
    /,
    *,
    out: GivenPath,
    options: Annotated[Evaluating, Flat] = Evaluating(),  # noqa: B008 - frozen
) -> None:
    """Judge answers: integers with their doubt, beside a cheap baseline.

    Parameters
    ----------
    answers
        file of answers (.jsonl, .json, .csv, .parquet), each with its question, context or truth
    out
        folder for the report; what it holds of the same judge and rows is used again
    """
    chosen = from_flags(EvaluateOptions, options)
    outcome = evaluate_file(answers, out, chosen, news)
    OUT.print(table(outcome))
    say(str(write_evaluation_report(out, outcome.summary)))
    check(outcome, chosen)


def table(outcome: Outcome) -> Table:
    """Measures, and the baseline under them."""
    said, made = words(), Table()
    for heading in ("measure", "mean", "95 % interval", "rows", "failed", "scores"):
        made.add_column(said(heading), justify="left" if heading == "measure" else "right", no_wrap=heading != "scores")
    titles = {
        name: rubric.text("zh" if said.language == "zh" else "en").title for name, rubric in outcome.rubrics.items()
    }
    for name, one in outcome.summary["measures"].items():
        low, high = one["scale"]
        counts = "  ".join(f"{low + at}: {count}" for at, count in enumerate(one["scores"]))
        made.add_row(f"{titles[name]} ({low}–{high})", *_mean(one), f"{one['n']:,}", f"{one['failed']:,}", counts)
    for name, one in outcome.summary["overlaps"].items():
        made.add_row(name, *_mean(one), f"{one['n']:,}", "", "", style="dim")
    return made


def _mean(one: dict[str, Any]) -> tuple[str, str]:
    mean = one.get("mean")
    if mean is None:
        return "–", "–"
    bounds = "–" if mean["low"] is None else f"{mean['low']:.3f} – {mean['high']:.3f}"
    return f"{mean['value']:.3f}", bounds
