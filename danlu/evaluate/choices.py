"""Multiple choice by likelihood: which of the choices a model finds likeliest after the question. Nothing is generated.

    {"question": "…", "choices": ["Paris", "Rome"], "truth": "Paris"}      or "label": 0, counted from 0

Three ways to compare choices of different lengths: the sum of log p (raw), that sum per byte of UTF-8 (per_byte: of
Chinese too, where per character is another figure), and the sum less that without the question (pmi: Holtzman et al.
2021, arXiv:2104.08315).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from danlu.errors import DanluError
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.scale import Failed
from danlu.evaluate.signals import Likelihoods
from danlu.generate.engine import Engine

COLUMN, LABEL = "choices", "label"
WAYS = ("choice_raw", "choice_per_byte", "choice_pmi")


@dataclass(frozen=True)
class Choices:
    """The choices of a row, and the place of the right one."""

    texts: tuple[str, ...]
    right: int


def choices_of(row: Row) -> Choices | str | None:
    """None of a row without choices; what is wrong with them, in words."""
    given = row.others.get(COLUMN)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(one, str) and one.strip() for one in given):
        return f"choices: {given!r:.60}; allowed: a list of two texts or more"
    if len(set(given)) < len(given):
        return "choices: two of them are the same"
    label = row.others.get(LABEL)
    if label is None and row.truth in given:
        return Choices(tuple(given), given.index(row.truth))
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(given):
        return Choices(tuple(given), label)
    return f"label {label!r:.40} and truth {row.truth!r:.40} name none of the {len(given)} choices"


def checked(rows: Sequence[Row | FaultyRow]) -> list[Row | FaultyRow]:
    """The rows with the right choice as their truth; those with faulty choices are faulty."""
    return [row if isinstance(row, FaultyRow) else _checked(row) for row in rows]


def _checked(row: Row) -> Row | FaultyRow:
    found = choices_of(row)
    if isinstance(found, str):
        return FaultyRow(row.id, row.place, found)
    return row if found is None else replace(row, truth=found.texts[found.right])


def picked(engine: Engine, rows: Sequence[Row]) -> list[dict[str, float] | Failed]:
    """Of each row with choices, for each of WAYS 1 where the right one is picked, else 0; nothing of other rows."""
    likelihoods = Likelihoods(engine)
    return [_picked(likelihoods, row, choices_of(row)) for row in rows]


def _picked(likelihoods: Likelihoods, row: Row, found: Choices | str | None) -> dict[str, float] | Failed:
    if not isinstance(found, Choices):
        return {} if found is None else Failed(found)
    try:
        ids = [likelihoods.ids(text.strip()) for text in found.texts]
        asked, alone = likelihoods.prompt(row.given("context"), row.given("question")), likelihoods.prompt()
        count = len(ids)
        seen = likelihoods.engine.continuation_logprobs([asked] * count + [alone] * count, [*ids, *ids])
    except DanluError as error:
        return Failed(error.seen)
    if faults := [one for one in seen if isinstance(one, DanluError)]:
        return Failed(faults[0].seen)
    sums = [float(one.sum()) for one in seen if isinstance(one, Tensor)]
    raw, before = sums[:count], sums[count:]
    scores = {
        "choice_raw": raw,
        "choice_per_byte": [one / len(text.encode()) for one, text in zip(raw, found.texts, strict=True)],
        "choice_pmi": [one - other for one, other in zip(raw, before, strict=True)],
    }
    return {name: float(those.index(max(those)) == found.right) for name, those in scores.items()}
