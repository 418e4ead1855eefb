"""What is judged, as YAML: a name, a scale of integers with an anchor for each, the inputs, in Chinese and English.

    name: tone                       labels name the inputs in the prompt; `optional` inputs are shown where a row has
    scale: [1, 5]                    them, the others it must have
    inputs: [question, answer]
    texts:
      en: {title: …, task: …, anchors: {1: …, 2: …}, labels: {question: Question, answer: Answer}, score: "Score:"}

A rubric of one language judges every row in it. Three ship: consistency, relevance, truthfulness. Knows no model; how a
prompt is laid out, prompts.py says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from danlu.config import Options, read_named, shipped, validate
from danlu.errors import ConfigError

Input = Literal["question", "context", "truth", "answer"]
Language = Literal["en", "zh"]
Words = Annotated[str, Field(min_length=1)]
Digit = Annotated[int, Field(ge=0, le=9, strict=True)]
Anchored = Annotated[int, Field(ge=0, le=9)]  # JSON has no numbers as keys

# A shorter scale says less, and a score is one digit: it is read at one place.
LEAST_SCORES = 2


class RubricText(Options):
    """A rubric in one language."""

    title: Words = Field(description="what tables call the measure")
    task: Words = Field(description="what is judged, and what does not count")
    anchors: dict[Anchored, Words] = Field(description="what each score means; all of the scale, or none")
    labels: dict[Input, Words] = Field(description="what the prompt calls each input")
    score: Words = Field(description="how the line that asks for the score begins; the score comes right after it")


class Rubric(Options):
    """One measure."""

    name: str = Field(pattern=r"^[A-Za-z][\w-]*$", description="letters, digits, - and _, a letter first")
    scale: tuple[Digit, Digit] = Field((1, 5), description="the lowest and the highest score, of 0 to 9")
    inputs: tuple[Input, ...] = Field(description="what a row must have: question, context, truth, answer")
    optional: tuple[Input, ...] = Field((), description="what is shown besides where a row has it")
    texts: dict[Language, RubricText] = Field(min_length=1, description="the rubric in en, in zh, or in both")

    @model_validator(mode="after")
    def _fits_together(self) -> Rubric:
        low, high = self.scale
        if high - low + 1 < LEAST_SCORES:
            raise ValueError(f"scale {low} to {high}: the highest score must be above the lowest")
        if "answer" not in self.inputs:
            raise ValueError("inputs must hold answer: it is what is judged")
        if twice := {name for name in self.shown if self.shown.count(name) > 1}:
            raise ValueError(f"{min(twice)} is named twice in inputs and optional")
        for language, text in self.texts.items():
            if text.anchors and set(text.anchors) != set(self.scores):
                raise ValueError(f"texts.{language}.anchors: one for each of {low} to {high}, or none")
            if missing := [name for name in self.shown if name not in text.labels]:
                raise ValueError(f"texts.{language}.labels lack {', '.join(missing)}")
            if idle := [name for name in text.labels if name not in self.shown]:
                raise ValueError(f"texts.{language}.labels: {', '.join(idle)} is not among inputs and optional")
        return self

    @property
    def shown(self) -> tuple[Input, ...]:
        return (*self.inputs, *self.optional)

    @property
    def scores(self) -> range:
        """All integers of the scale."""
        return range(self.scale[0], self.scale[1] + 1)

    def text(self, language: Language) -> RubricText:
        """The rubric in this language; in its only one where it lacks it."""
        return self.texts[language] if language in self.texts else next(iter(self.texts.values()))


def rubric_names() -> list[str]:
    """Names of the rubrics that ship inside the package."""
    return shipped("rubrics")


def load_rubric(name_or_path: str) -> Rubric:
    """A shipped rubric by name, or that of a YAML file. Raises ConfigError for anything else, and for unknown keys."""
    document = read_named(str(Path(name_or_path).expanduser()), "rubrics", "rubric", "measure")
    return read_rubric(document, where=name_or_path)


def read_rubric(document: Mapping[str, Any], where: str) -> Rubric:
    """The rubric that a mapping holds. Raises ConfigError with every fault."""
    return validate(Rubric, dict(document), where=where)


def load_rubrics(names: tuple[str, ...]) -> dict[str, Rubric]:
    """Name of the measure -> its rubric. Raises ConfigError also for two of one name."""
    loaded: dict[str, Rubric] = {}
    for name in names:
        rubric = load_rubric(name)
        if rubric.name in loaded:
            raise ConfigError(f"measure {rubric.name} is given twice", fix="leave one out, or give it another name")
        loaded[rubric.name] = rubric
    return loaded
