"""A rubric and a row -> what a judge is asked. What is the same for all rows stands first, so that it is read once."""

from __future__ import annotations

from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import Rubric


class Unjudgeable(Exception):
    """A row that a rubric cannot be asked about; the text says why."""


def instruction(rubric: Rubric, language: str) -> str:
    """What is judged, and what each score means."""
    text = rubric.text("zh" if language == "zh" else "en")
    anchors = [f"{score}: {text.anchors[score]}" for score in rubric.scores if score in text.anchors]
    return "\n".join([text.task, *anchors])


def inputs(rubric: Rubric, row: Row) -> str:
    """The row's own part. Raises Unjudgeable where it lacks an input."""
    text = rubric.text(row.language)
    if missing := [name for name in rubric.inputs if row.given(name) is None]:
        raise Unjudgeable(f"no {', no '.join(missing)}")
    order = [name for name in ("context", "question", "truth", "answer") if name in rubric.shown]
    given = {name: row.given(name) for name in order}
    return "\n\n".join(f"[{text.labels[name]}]\n{said}" for name, said in given.items() if said is not None)


def question(rubric: Rubric, row: Row) -> str:
    """All of it, up to the place of the score. Raises Unjudgeable."""
    return f"{instruction(rubric, row.language)}\n\n{inputs(rubric, row)}"


def lead(rubric: Rubric, row: Row) -> str:
    """How the judge's answer begins; the score comes next."""
    return rubric.text(row.language).score
