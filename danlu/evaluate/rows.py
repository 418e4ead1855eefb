"""A file -> rows to judge: question, context, truth, answer. A faulty row is kept as a fault, and ends nothing.

Columns may have the names that other tools give them (Azure's query, response and ground_truth; ragas' user_input).
Whatever else a row holds is kept aside. Knows no rubric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from danlu.data.files.rows import placed_rows
from danlu.data.row import RowFault
from danlu.errors import DataError
from danlu.evaluate.rubrics import Input, Language
from danlu.fingerprint import of_value

# Our name -> what others call it.
NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "query", "prompt", "user_input", "instruction"),
    "context": ("context", "contexts", "retrieved_contexts", "passages", "premise"),
    "truth": ("truth", "ground_truth", "reference", "expected_output", "expected", "references"),
    "answer": ("answer", "response", "prediction", "output", "hypothesis"),
}
INPUTS: tuple[Input, ...] = ("question", "context", "truth", "answer")
OURS = ("id", "group", "language")

# Of the letters, so many Chinese characters make a text Chinese: product names and units are Latin in Chinese texts.
CHINESE_SHARE = 0.3
_HALF = re.compile("[\ud800-\udfff]")  # no text of UTF-8 has it; a tokenizer refuses it


@dataclass(frozen=True)
class Row:
    """One answer to judge.

    Attributes:
        id: told in reports; the row's place where it has none.
        place: file and line.
        group: rows of one document share it; they are drawn together. Its id if not given.
        language: of its rubric.
        truths: where a row has several true answers, each; `truth` is all of them.
        others: what else the row holds, ratings by people among it.
    """

    id: str
    place: str
    answer: str | None
    question: str | None = None
    context: str | None = None
    truth: str | None = None
    group: str = ""
    language: Language = "en"
    truths: tuple[str, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    def given(self, name: Input) -> str | None:
        """The text of an input; None where there is none, or nothing but white space (but for the answer)."""
        text: str | None = getattr(self, name)
        return text if name == "answer" or (text is not None and text.strip()) else None

    @property
    def true_answers(self) -> tuple[str, ...] | None:
        """Each of them; None where there is none."""
        told = self.given("truth")
        return None if told is None else self.truths or (told,)

    @property
    def digest(self) -> str:
        """Of all that a judge sees."""
        return of_value([self.question, self.context, self.truth, self.answer, self.language])

    def rating(self, name: str) -> float:
        """What people said of it: a number, or its digits, as tables hold them. Raises DataError for all else."""
        value = self.others.get(name)
        number = _number_of(value)
        if number is None:
            raise DataError(
                f"{self.place}: no rating {name!r}" if value is None else f"{self.place}: {name}: {value!r:.80}",
                allowed="a number",
                fix=f"columns here: {', '.join(map(str, self.others)) or 'none besides'}",
            )
        return number


@dataclass(frozen=True)
class FaultyRow:
    """A row that nothing can be made of."""

    id: str
    place: str
    reason: str


def read_rows(path: Path, language: Language | None = None, answers: bool = True) -> list[Row | FaultyRow]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file, in order.

    Args:
        language: of all rows that do not name theirs; None finds out of each.
        answers: whether rows have an answer; questions alone do not.

    Raises DataError for a file that cannot be read, or has no rows.
    """
    rows = [
        FaultyRow(place, place, str(row)) if isinstance(row, RowFault) else row_of(row, place, language, answers)
        for place, row in placed_rows(path, lambda names: names, part="all")
    ]
    if not rows:
        raise DataError(f"{path}: no rows", allowed="one answer a row, with its question, context or truth")
    ids: dict[str, str] = {}
    for row in rows:
        if row.id in ids:
            raise DataError(f"{row.place}: the id {row.id!r} is that of {ids[row.id]} as well", fix="ids must differ")
        ids[row.id] = row.place
    return rows


def row_of(
    row: Mapping[str, Any], place: str, language: Language | None = None, answers: bool = True
) -> Row | FaultyRow:
    """One row of a file; `place` names it where it has no id."""
    own = row.get("id")
    name = str(own) if isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip() else place
    inputs: dict[str, str | None] = {}
    truths: tuple[str, ...] = ()
    taken = set(OURS)
    for ours, names in NAMES.items():
        found = [other for other in names if row.get(other) not in (None, [])]
        if len(found) > 1:
            return FaultyRow(name, place, f"{found[0]} and {found[1]} both say the {ours}")
        text = _text_of(row[found[0]]) if found else None
        if found and text is None:
            return FaultyRow(name, place, f"{found[0]} is {row[found[0]]!r:.60}, and no text")
        if text is not None and (half := _HALF.search(text)):
            return FaultyRow(name, place, f"{found[0]} holds half a character, {half[0]!r}")
        inputs[ours] = text
        taken |= set(found)
        if ours == "truth" and found and isinstance(row[found[0]], list):
            truths = tuple(part for part in row[found[0]] if part.strip())
    if answers and inputs["answer"] is None:
        return FaultyRow(name, place, f"no answer; columns here: {', '.join(map(str, row)) or 'none':.80}")
    told = row.get("language", language)
    if told not in (None, "en", "zh"):
        return FaultyRow(name, place, f"language {told!r:.40}; allowed: en, zh")
    others = {key: value for key, value in row.items() if key not in taken}
    group = row.get("group")
    made = Row(name, place, group=str(name if group is None else group), truths=truths, others=others, **inputs)  # type: ignore[arg-type]
    return replace(made, language=told or language_of(made))


def _text_of(value: Any) -> str | None:
    """Text as it is, integers as text, lists of texts (passages) as paragraphs."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "\n\n".join(value)
    return None


def _number_of(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def language_of(row: Row) -> Language:
    """Chinese or English, by the answer and what it is asked: Chinese by its characters, and English all else."""
    texts = [text for text in (row.question, row.answer) if text and text.strip()]
    return chinese_or_english(texts or [row.context or row.truth or ""])


def chinese_or_english(texts: Iterable[str]) -> Language:
    letters = [char for text in texts for char in text[:2000] if char.isalpha()]
    chinese = sum(is_chinese(char) for char in letters)
    return "zh" if letters and chinese >= CHINESE_SHARE * len(letters) else "en"


def is_chinese(char: str) -> bool:
    """Whether a character is one of the CJK ideographs."""
    return "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf" or "\U00020000" <= char <= "\U000323af"


def judgeable(rows: Iterable[Row | FaultyRow]) -> list[Row]:
    return [row for row in rows if isinstance(row, Row)]
