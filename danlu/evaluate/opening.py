"""Options -> the judge that they name, and the rubrics that rows can be judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from danlu.errors import ConfigError
from danlu.evaluate.client import Server, is_address
from danlu.evaluate.judge import Judge, LocalJudge
from danlu.evaluate.options import EvaluateOptions, JudgeOptions
from danlu.evaluate.remote import RemoteJudge
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.rubrics import Rubric, load_rubrics, rubric_names
from danlu.hub import Say, silent


def open_judge(options: JudgeOptions, say: Say = silent) -> Judge | None:
    """The judge; None where overlap alone is wanted. Raises ModelError and ConfigError."""
    refuse_idle(options)
    if options.judge is None:
        return None
    if is_address(options.judge):
        return RemoteJudge(Server(options.judge, options.concurrency), options.judge_samples)
    return LocalJudge.open(options.judge, options.judge_dtype, options.judge_adapter, options.accept_licence, say)


def refuse_idle(options: JudgeOptions) -> None:
    """Raise ConfigError for what has no effect beside this judge."""
    is_server = options.judge is not None and is_address(options.judge)
    local = ("judge_dtype", "judge_adapter", "accept_licence")
    remote = ("judge_samples", "concurrency", "price_in", "price_out")
    idle = (*local, *remote, "calibrate") if options.judge is None else local if is_server else remote
    fields = type(options).model_fields
    given = [name for name in idle if getattr(options, name) != fields[name].default]
    if given:
        beside = "without a judge" if options.judge is None else f"beside the judge {options.judge}"
        raise ConfigError(f"{', '.join(given)} has no effect {beside}", fix="leave it out")


def rubrics_for(options: EvaluateOptions, rows: Sequence[Row | FaultyRow], say: Say = silent) -> dict[str, Rubric]:
    """Name -> rubric: those that are asked for, or the shipped ones whose inputs some row has."""
    if options.measures is not None:
        if not options.measures:
            raise ConfigError("measures is empty", allowed=", ".join(rubric_names()))
        return load_rubrics(options.measures)
    shipped = load_rubrics(tuple(rubric_names()))
    missing = {name: lacks(rubric, rows) for name, rubric in shipped.items()}
    for name, inputs in missing.items():
        if inputs:
            say(f"not measured: {name}: no row has {' and '.join(inputs)}")
    return {name: rubric for name, rubric in shipped.items() if not missing[name]}


def lacks(rubric: Rubric, rows: Sequence[Row | FaultyRow]) -> list[str]:
    """The inputs that no row has."""
    return [
        name for name in rubric.inputs if not any(isinstance(row, Row) and row.given(name) is not None for row in rows)
    ]


def titles(rubrics: Mapping[str, Rubric], language: str) -> dict[str, str]:
    """What tables call the measures."""
    return {name: rubric.text("zh" if language == "zh" else "en").title for name, rubric in rubrics.items()}
