"""Options -> the judge that they name, and the rubrics that rows can be judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from danlu.device import DtypeName
from danlu.errors import ConfigError
from danlu.evaluate import pair_head
from danlu.evaluate.client import Server, is_address
from danlu.evaluate.judge import Judge, LocalJudge
from danlu.evaluate.options import EvaluateOptions, JudgeOptions
from danlu.evaluate.pair_judge import PairJudge
from danlu.evaluate.remote import RemoteJudge
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.rubrics import Rubric, load_rubrics, rubric_names
from danlu.evaluate.signals import Embed
from danlu.evaluate.trained import FILE, Figures, Learnt, TrainedJudge
from danlu.hub import Say, silent

# A name of an encoder -> what embeds: recall's, which stands below this room.
OpenEmbed = Callable[[str], Embed]


def open_judge(options: JudgeOptions, say: Say = silent, open_embed: OpenEmbed | None = None) -> Judge | None:
    """The judge; None where overlap alone is wanted. Raises ModelError and ConfigError.

    Args:
        open_embed: for a trained judge that compares embeddings.
    """
    refuse_idle(options)
    if options.judge is None:
        return None
    if is_address(options.judge):
        return RemoteJudge(Server(options.judge, options.concurrency), options.judge_samples)
    if (folder := Path(options.judge).expanduser() / FILE).exists():
        return open_trained(folder.parent, open_embed, say)
    if (folder := Path(options.judge).expanduser()).joinpath(pair_head.FILE).exists():
        return PairJudge.open(folder)
    return LocalJudge.open(options.judge, options.judge_dtype, options.judge_adapter, options.accept_licence, say)


def open_trained(folder: Path, open_embed: OpenEmbed | None = None, say: Say = silent) -> TrainedJudge:
    """A judge that `train-judge` has written, with the model that its figures come from."""
    learnt = Learnt.read(folder)
    embed = None
    if learnt.embedder is not None:
        if open_embed is None:
            raise ConfigError(f"{folder} compares embeddings of {learnt.embedder}", fix="give open_embed")
        embed = open_embed(learnt.embedder)
    base = None if learnt.judge is None else LocalJudge.open(learnt.judge, cast(DtypeName, learnt.dtype), say=say)
    rubric = Rubric.model_validate(learnt.rubric)
    head = None if learnt.head is None else PairJudge.open(Path(learnt.head).expanduser())
    return TrainedJudge(learnt, Figures(base, rubric, learnt.asks, embed, head), str(folder))


def refuse_idle(options: JudgeOptions) -> None:
    """Raise ConfigError for what has no effect beside this judge."""
    is_server = options.judge is not None and is_address(options.judge)
    is_trained = options.judge is not None and any(
        (Path(options.judge).expanduser() / file).exists() for file in (FILE, pair_head.FILE)
    )
    local: tuple[str, ...] = ("judge_dtype", "judge_adapter", "accept_licence")
    remote: tuple[str, ...] = ("judge_samples", "price_in", "price_out")
    if not any(map(is_address, getattr(options, "models", None) or ())):
        remote += ("concurrency",)
    idle = local if is_server else remote
    if options.judge is None or is_trained:
        idle = (*local, *remote, "calibrate")
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
