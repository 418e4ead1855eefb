"""Questions x models -> answers, judged and compared with the first model's.

OUT/1-NAME/, OUT/2-NAME/, …   an evaluation each (written.py), with its answers
OUT/summary.json              every later model beside the first: differences, wins in both orders
OUT/readings.jsonl            answers and comparisons, kept as they come
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from danlu.config import PathText
from danlu.errors import ConfigError
from danlu.evaluate import choices, gates, written
from danlu.evaluate.answering import LocalModel, RemoteModel, answered, open_model
from danlu.evaluate.evaluating import Evaluated
from danlu.evaluate.forgetting import Lost, forgotten, general_texts, losses
from danlu.evaluate.judge import Judge
from danlu.evaluate.kept import Kept
from danlu.evaluate.opening import OpenEmbed, open_judge, rubrics_for
from danlu.evaluate.options import EvaluateOptions
from danlu.evaluate.overlap import OVERLAPS
from danlu.evaluate.pairwise import prefer
from danlu.evaluate.rows import FaultyRow, Row, read_rows
from danlu.evaluate.scale import Failed
from danlu.evaluate.summary import differences
from danlu.evaluate.trained import TrainedJudge
from danlu.evaluate.whole import Outcome, earlier, evaluate_rows
from danlu.fingerprint import of_value
from danlu.hub import Say, silent
from danlu.journal import claimed, write_atomic

GENERAL = "general_loss"


class ModelsOptions(EvaluateOptions):
    """What models are asked, beside how their answers are judged."""

    models: tuple[str, ...] | None = Field(
        None,
        description="models that answer the questions of data: names, directories, hub ids, or addresses of servers; "
        "all are compared with the first",
    )
    max_new_tokens: int = Field(256, ge=1, le=2**20, description="of an answer, at most")
    general: PathText | None = Field(
        None,
        description="rows with a text that has nothing to do with the questions: each later model's loss on them "
        "beside the first's says what it has forgotten",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return cls._parted_by_commas(value)


@dataclass(frozen=True)
class OfModels:
    """What was found of each model, in order, and its comparisons with the first."""

    outcomes: Mapping[str, Outcome]
    summary: dict[str, Any]


def evaluate_models(
    data: Path, out: Path, options: ModelsOptions, say: Say = silent, open_embed: OpenEmbed | None = None
) -> OfModels:
    """Let each model answer the questions in a file, judge the answers, and compare them with the first model's.

    What is kept of an earlier run is used again.
    """
    names = options.models or ()
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"models: {', '.join(names) or 'none'}", allowed="one or several, each once")
    questions = choices.checked(read_rows(data, options.language, answers=False))
    if not any(isinstance(row, Row) and row.given("question") for row in questions):
        raise ConfigError(f"{data}: no row has a question", fix="name the column question, query or prompt")
    before = earlier(options)
    with claimed(out, say):
        kept = written.kept_in(out)
        folders = {name: out / f"{at}-{_as_folder(name)}" for at, name in enumerate(names, 1)}
        general = None if options.general is None else general_texts(Path(options.general))
        sets, picks, lost = {}, {}, {}
        for name in names:
            sets[name], picks[name], lost[name] = _answers(name, questions, general, options, kept, say)
        rubrics = rubrics_for(options, next(iter(sets.values())), say)
        gates.check_bounds(options.fail_under, {**rubrics, **OVERLAPS, **dict.fromkeys(choices.WAYS)})
        judge = open_judge(options, say, open_embed)
        outcomes = {
            name: evaluate_rows(rows, rubrics, judge, folders[name], options, say, {"model": name}, picks[name], before)
            for name, rows in sets.items()
        }
        summary = _compared(outcomes, judge, kept, say)
        for name in names[1:]:
            if (found := forgotten(lost[names[0]], lost[name])) is not None:
                summary["differences"][name][GENERAL] = found
        write_atomic(out / written.SUMMARY, json.dumps(summary, ensure_ascii=False, indent=2))
    return OfModels(outcomes, summary)


def _answers(
    name: str,
    questions: Sequence[Row | FaultyRow],
    general: Sequence[str] | None,
    options: ModelsOptions,
    kept: Kept,
    say: Say,
) -> tuple[list[Row | FaultyRow], dict[str, dict[str, float]], list[Lost | Failed]]:
    """Its answers; of rows with choices that it could weigh, id -> which it would pick; what it lost on texts."""
    model = open_model(name, options.accept_licence, options.concurrency, say)
    try:
        told = lambda done, of: say(f"{name}: {done} of {of} answers")  # noqa: E731 - one line
        rows = answered(model, questions, options.max_new_tokens, kept, told)
        return rows, _picks(model, questions, kept, say), _losses(model, general or (), kept, say)
    finally:
        model.close()


def _losses(model: LocalModel | RemoteModel, texts: Sequence[str], kept: Kept, say: Say) -> list[Lost | Failed]:
    if isinstance(model, RemoteModel):
        if texts:
            say(f"{model.server.name}: no loss on general text: a server tells no likelihood of a text")
        return [Failed("a server")] * len(texts)
    return losses(model.engine, model.identity, texts, kept)


def _picks(
    model: LocalModel | RemoteModel, questions: Sequence[Row | FaultyRow], kept: Kept, say: Say
) -> dict[str, dict[str, float]]:
    rows = [row for row in questions if isinstance(row, Row) and choices.choices_of(row) is not None]
    if not rows:
        return {}
    if isinstance(model, RemoteModel):
        say(f"{model.server.name}: choices are not weighed: a server tells no likelihood of a text")
        return {}
    keys = [of_value(["choices", row.digest, row.others[choices.COLUMN], model.identity]) for row in rows]
    engine = model.engine

    def ask(places: Sequence[int]) -> list[dict[str, float] | Failed]:
        return choices.picked(engine, [rows[at] for at in places])

    found = kept.answers(keys, ask, _as_it_is, _as_it_is)
    failed = [one for one in found if isinstance(one, Failed)]
    if failed:
        say(f"{len(failed)} of {len(rows)} rows with choices could not be weighed: {failed[0].reason}")
    return {row.id: one for row, one in zip(rows, found, strict=True) if not isinstance(one, Failed)}


def _as_it_is(figures: dict[str, float]) -> dict[str, float]:
    return figures


def _compared(outcomes: Mapping[str, Outcome], judge: Judge | None, kept: Kept, say: Say) -> dict[str, Any]:
    (first, before), *others = outcomes.items()
    summary: dict[str, Any] = {"models": list(outcomes), "differences": {}, "preferences": {}}
    for name, after in others:
        summary["differences"][name] = differences(before.found, after.found)
        if judge is not None and not isinstance(judge, TrainedJudge):
            rows = _pairs(before.found, after.found)
            say(f"{name} against {first}: {len(rows)} rows, each in both orders")
            compared = prefer(judge, [one for one, _ in rows], [other for _, other in rows], kept)
            summary["preferences"][name] = compared.to_dict()
    return summary


def _pairs(before: Evaluated, after: Evaluated) -> list[tuple[Row, Row]]:
    both = zip(before.rows, after.rows, strict=True)
    return [(one, other) for one, other in both if isinstance(one, Row) and isinstance(other, Row)]


def _as_folder(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2] or name)[:60].strip("-") or "model"
