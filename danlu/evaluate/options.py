"""What an evaluation is told, declared once: for the command line, a recipe's step and Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from danlu.config import Options, PathText
from danlu.device import DtypeName
from danlu.evaluate.rubrics import Language

Price = Annotated[float, Field(ge=0)]


class JudgeOptions(Options):
    """Who judges."""

    judge: str | None = Field(
        "smollm2-135m",
        description="a model by name, directory or hub id, a folder that danlu evaluate train-judge has written, or an "
        "OpenAI-compatible server, as http://host:8000/v1#model; null measures overlap alone",
    )
    judge_dtype: DtypeName = Field("auto", description="number format of a local judge")
    judge_adapter: PathText | None = Field(None, description="directory of a PEFT adapter on a local judge")
    accept_licence: bool = Field(False, description="accept the licence of a judge that asks for it")
    calibrate: bool = Field(
        False,
        description="divide by what the judge says of empty answers and of other rows' (contextual calibration); an "
        "empty answer then looks like an average one",
    )
    judge_samples: int | None = Field(
        None,
        ge=2,
        le=100,
        description="of a server without log-probabilities: ask so many times and count the scores; never chosen by "
        "itself",
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests to a server at the same time")
    price_in: Price | None = Field(None, description="of a server, what a million prompt tokens cost, for the estimate")
    price_out: Price | None = Field(None, description="of a server, what a million answer tokens cost")

    SPELLINGS: ClassVar[Mapping[str, str]] = {"judge-samples": "judge_samples"}


class EvaluateOptions(JudgeOptions):
    """What is judged, and what is good enough."""

    measures: tuple[str, ...] | None = Field(
        None,
        description="consistency, relevance, truthfulness, or paths of rubrics; those whose texts the rows have if not "
        "given",
    )
    language: Language | None = Field(None, description="of all rows: en or zh; found out of each row if not given")
    training_data: PathText | None = Field(
        None,
        description="rows that a model was trained on: means are also told without the rows that share 13 words in a "
        "row with them",
    )
    max_failed: float = Field(
        0.0, ge=0, le=1, description="share of rows that may fail to be judged; above it the exit code is 2"
    )
    fail_under: dict[str, float] = Field(
        default_factory=dict,
        description="measure=bound: exit code 1 unless the lower end of the mean's 95 % interval reaches the bound",
    )
    fail_if_worse_than: PathText | None = Field(
        None, description="folder of an earlier evaluation: exit code 1 if a measure is worse beyond chance"
    )

    SPELLINGS: ClassVar[Mapping[str, str]] = {
        **JudgeOptions.SPELLINGS,
        "fail-under": "fail_under",
        "fail-if-worse-than": "fail_if_worse_than",
        "max-failed": "max_failed",
    }

    @field_validator("measures", mode="before")
    @classmethod
    def _parted_by_commas(cls, value: object) -> object:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list | tuple):
            return value
        return tuple(name.strip() for word in words for name in str(word).split(",") if name.strip())
