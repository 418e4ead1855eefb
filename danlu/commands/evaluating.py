"""Answers, judged: files of them, or what models say to questions; judges held against people, and trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from danlu.commands.shared import OUT, Flat, GivenPath, news, say
from danlu.config import Options
from danlu.errors import ConfigError
from danlu.evaluate import people
from danlu.evaluate.models import ModelsOptions, OfModels, evaluate_models
from danlu.evaluate.people import Checked, PeopleOptions, TrainOptions, in_words
from danlu.evaluate.signals import Embed
from danlu.evaluate.whole import Outcome, check, evaluate_file
from danlu.flags import as_flags, from_flags
from danlu.recall.embed import Embedder
from danlu.report.evaluation import write_evaluation_report
from danlu.words import words

if TYPE_CHECKING:
    Evaluating = Options
    Checking = Options
    Training = Options
else:
    Evaluating, Checking, Training = map(as_flags, (ModelsOptions, PeopleOptions, TrainOptions))

app = App(
    name="evaluate",
    help="Judge answers: integers with their doubt, beside a cheap baseline.",
    default_parameter=Parameter(name_transform=lambda name: name, negative=()),
)


@app.default
def evaluate(
    answers: GivenPath | None = None,
    /,
    *,
    out: GivenPath,
    data: GivenPath | None = None,
    options: Annotated[Evaluating, Flat] = Evaluating(),  # noqa: B008 - frozen
) -> None:
    """Judge answers: integers with their doubt, beside a cheap baseline.

    Parameters
    ----------
    answers
        file of answers (.jsonl, .json, .csv, .parquet), each with its question, context or truth
    out
        folder for the report; what it holds of the same judge and rows is used again
    data
        file of questions that --models answer, instead of a file of answers
    """
    chosen = from_flags(ModelsOptions, options)
    if (answers is None) == (data is None):
        raise ConfigError("give a file of answers, or --data with --models", allowed="one of the two")
    if data is not None:
        _of_models(evaluate_models(data, out, chosen, news, _embed), chosen)
        return
    assert answers is not None
    for name in ("models", "max_new_tokens", "general"):
        if getattr(chosen, name) != ModelsOptions.model_fields[name].default:
            raise ConfigError(f"{name} has no effect without data", fix="give the questions with --data")
    outcome = evaluate_file(answers, out, chosen, news, _embed)
    OUT.print(table(outcome))
    say(str(write_evaluation_report(out, outcome.summary)))
    check(outcome, chosen)


def _of_models(found: OfModels, options: ModelsOptions) -> None:
    for at, (name, outcome) in enumerate(found.outcomes.items()):
        say(name)
        OUT.print(table(outcome))
        beside = {"differences": {name: found.summary["differences"][name]}} if at else {}
        say(str(write_evaluation_report(outcome.folder, {**outcome.summary, **beside})))
    if found.summary["differences"]:
        OUT.print(beside_first(found.summary))
    for outcome in found.outcomes.values():
        check(outcome, options)


def beside_first(summary: Mapping[str, Any]) -> Table:
    """Every later model beside the first: differences of means, and wins in both orders."""
    said = words()
    made = Table(title=said("beside {model}", model=summary["models"][0]))
    for heading in ("model", "measure", "difference", "95 % interval", "rows", "smallest that would show"):
        made.add_column(said(heading), justify="left" if heading in ("model", "measure") else "right", no_wrap=True)
    for name, found in summary["differences"].items():
        for measure, one in found.items():
            ends, p = f"{one['low']:+.3f} – {one['high']:+.3f}", f" (p {one['p']:.3f})" if "p" in one else ""
            made.add_row(name, measure, f"{one['value']:+.3f}{p}", ends, f"{one['n']:,}", f"{one['smallest']:.3f}")
    for name, one in summary["preferences"].items():
        counts = said("{win} won, {tie} tied, {loss} lost; {flips} went with the order", **one)
        rate = one["rate"]
        shown = ("–", "–") if rate is None else (f"{rate['value']:.1%}", f"{rate['low']:.1%} – {rate['high']:.1%}")
        made.add_row(name, said("win rate"), *shown, f"{one['n']:,}", counts)
    return made


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
    if clean := outcome.summary.get("contamination"):
        made.caption = said("without {hits} rows that share 13 words with the training data:", hits=clean["hits"])
        for name, one in {**clean["measures"], **clean["overlaps"]}.items():
            made.caption += f" {name} {_mean(one)[0]}"
    return made


def _mean(one: dict[str, Any]) -> tuple[str, str]:
    mean = one.get("mean")
    if mean is None:
        return "–", "–"
    bounds = "–" if mean["low"] is None else f"{mean['low']:.3f} – {mean['high']:.3f}"
    return f"{mean['value']:.3f}", bounds


@app.command(name="check-judge", help="Hold a judge against people's ratings, beside the cheap baseline.")
def check_judge(
    rated: GivenPath,
    /,
    *,
    options: Annotated[Checking, Flat] = Checking(),  # noqa: B008 - frozen
) -> None:
    """Hold a judge against people's ratings, beside the cheap baseline; exit code 1 if it loses.

    Parameters
    ----------
    rated
        file of answers with people's ratings in a column
    """
    found = people.check_judge(rated, from_flags(PeopleOptions, options), news, _embed)
    OUT.print(against_people({"": found}))
    OUT.print(probed(found))
    found.check()


@app.command(name="train-judge", help="Fit a judge to a few hundred rows that people have rated.")
def train_judge(
    rated: GivenPath,
    /,
    *,
    out: GivenPath,
    options: Annotated[Training, Flat] = Training(),  # noqa: B008 - frozen
) -> None:
    """Fit a judge to a few hundred rows that people have rated.

    Parameters
    ----------
    rated
        file of answers with people's ratings in a column
    out
        folder of the trained judge, for --judge
    """
    made = people.train_judge(rated, out, from_flags(TrainOptions, options), news, _embed)
    OUT.print(against_people(made.checked))
    say(words()("fitted to: {names}", names=", ".join(made.figures)))
    say(f"danlu evaluate answers.jsonl --judge {out} --measures {made.learnt.measure} --out report")


def against_people(found: Mapping[str, Checked]) -> Table:
    """Judge and baseline with people, by each correlation."""
    said, made = words(), Table()
    for heading in ("language", "correlation", "judge", "baseline", "judge minus baseline", "rows"):
        made.add_column(said(heading), no_wrap=True, justify="left" if heading == "language" else "right")
    for language, one in found.items():
        for name, compared in one.compared.items():
            cells = [in_words(interval) for interval in (compared.judge, compared.baseline, compared.difference)]
            made.add_row(language, name, cells[0], f"{one.baseline} {cells[1]}", cells[2], f"{one.rows:,}")
        covered = said("ratings in the 90 % interval: {share}", share=f"{one.coverage:.1%}")
        error = said(
            "calibration error {error}, the rating itself {accuracy}",
            error=f"{one.calibration:.3f}",
            accuracy=f"{one.accuracy:.1%}",
        )
        made.add_row(language, "", covered, error, said("left out: {count}", count=f"{one.left_out:,}"), "")
    return made


def probed(found: Checked) -> Table:
    """What moves the judge."""
    said = words()
    made = Table(title=said("the same answers, changed in one way"))
    for heading in ("change", "the expectation changes by", "rows"):
        made.add_column(said(heading), no_wrap=True, justify="left" if heading == "change" else "right")
    for name, (interval, count) in found.probes.items():
        made.add_row(said.if_known(name), "–" if interval is None else in_words(interval), f"{count:,}")
    return made


def _embed(name: str) -> Embed:
    embedder = Embedder(name, say=news)
    return lambda texts: embedder.embed(texts, "query", truncate=True)
