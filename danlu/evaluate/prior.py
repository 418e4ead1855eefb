"""What a judge says of answers that say nothing: empty, "N/A", another row's. Its leanings, to be divided out.

Contextual calibration (Zhao et al. 2021, arXiv:2102.09690) divides by what a model says of content-free text; other
rows' answers beside it hold what it says of any text of the kind (batch calibration: Zhou et al. 2023,
arXiv:2309.17249). It is a choice, and not the default: dividing makes an empty answer look like an average one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from danlu.evaluate.judge import Judge
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import Language, Rubric
from danlu.evaluate.scale import Reading, normalised

SAMPLED_ROWS = 8
NOTHING = ("", "N/A")


def saying_nothing(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """Some of the rows with answers that have nothing to do with them: empty, N/A, and that of another row."""
    picked = random.Random(seed).sample(list(rows), min(SAMPLED_ROWS, len(rows)))
    made = [replace(row, answer=answer) for row in picked for answer in NOTHING]
    shifted = [*picked[1:], *picked[:1]]
    swapped = [replace(row, answer=other.answer) for row, other in zip(picked, shifted, strict=True)]
    return made + (swapped if len(picked) > 1 else [])


def prior_of(judge: Judge, rubric: Rubric, rows: Sequence[Row]) -> tuple[float, ...] | None:
    """The mean distribution over rows that say nothing; None where none of them could be judged."""
    read = [one for one in judge.read(rubric, saying_nothing(rows)) if isinstance(one, Reading)]
    return mean_distribution(read)


def mean_distribution(readings: Sequence[Reading]) -> tuple[float, ...] | None:
    if not readings:
        return None
    shares = [normalised(one.masses) for one in readings]
    return tuple(sum(column) / len(shares) for column in zip(*shares, strict=True))


def by_language(rows: Sequence[Row]) -> dict[Language, list[Row]]:
    """Rows of each language: a rubric in another language is another prompt."""
    found: dict[Language, list[Row]] = {}
    for row in rows:
        found.setdefault(row.language, []).append(row)
    return found
