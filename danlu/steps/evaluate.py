"""A step that judges the model of a step before: it answers questions, a judge reads the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from danlu.config import PathText
from danlu.errors import ConfigError
from danlu.evaluate.models import ModelsOptions, evaluate_models
from danlu.evaluate.rows import read_rows
from danlu.evaluate.rubrics import load_rubrics
from danlu.evaluate.whole import check
from danlu.recall.embed import Embedder
from danlu.report.evaluation import write_evaluation_report
from danlu.steps.directory import opened
from danlu.steps.step import Kind, Place, Product, Show, StepOptions


class EvaluateStep(ModelsOptions, StepOptions):
    """The model of a step before, asked and judged; beside others where `models` names some."""

    data: PathText = Field(description="file of questions, with their context and truth where measures need them")


def _inputs(options: EvaluateStep, place: Place) -> dict[str, str]:
    rubrics = (path for path in options.measures or () if path.endswith((".yaml", ".yml")))
    return place.read(options.data, *([] if options.general is None else [options.general]), *rubrics)


def _leaves(options: EvaluateStep, place: Place, start: Product) -> Product:
    return start


def _check(options: EvaluateStep, place: Place, start: Product, is_made: bool) -> None:
    if start.judges:
        raise ConfigError(f"{start.place} is a reward model: it answers nothing", fix="start from a model that answers")
    if options.measures is not None:
        load_rubrics(options.measures)
    if place.is_there(options.data):
        read_rows(Path(options.data), options.language, answers=False)


def _run(options: EvaluateStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    given: dict[str, Any] = options.model_dump(exclude={"data", "start"})
    given["models"] = (start.model, *(options.models or ()))
    chosen = ModelsOptions.model_validate(given)
    with opened(place, options, show, go_on) as journal:
        found = evaluate_models(Path(options.data), journal.directory / "evaluation", chosen, show.say, _embed)
        for name, outcome in found.outcomes.items():
            report = write_evaluation_report(outcome.folder, outcome.summary)
            journal.event("evaluated", f"{name}: {report}", **_figures(outcome.summary))
        summaries = {name: outcome.summary for name, outcome in found.outcomes.items()}
        journal.result("evaluation", {**found.summary, "summaries": summaries})
        check(next(iter(found.outcomes.values())), chosen)


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: one["mean"]["value"] for name, one in summary["measures"].items() if "mean" in one}


def _embed(name: str) -> Any:
    embedder = Embedder(name)
    return lambda texts: embedder.embed(texts, "query", truncate=True)


EVALUATE = Kind(EvaluateStep, needs_adapter=False, inputs=_inputs, leaves=_leaves, check=_check, run=_run)
