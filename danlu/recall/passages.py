"""Passages that were found, and a question -> what a model is asked, so that its answer names what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from danlu.errors import ConfigError, nearest
from danlu.recall.collection import Collection
from danlu.recall.keywords.tokens import PIECE, class_of
from danlu.recall.query import Query

_ASKED = {
    "en": "Answer the question from these passages alone, and name those you rest on by their numbers, as in [1]. "
    "If they do not say it, say so.\n\n{passages}\n\nQuestion: {question}",
    "zh": "请只根据下面的材料回答问题，并用编号注明依据，如 [1]。材料中没有的，就说没有。\n\n"
    "{passages}\n\n问题：{question}",
}


@dataclass(frozen=True)
class Passage:
    """Attributes:
    number: by which the prompt calls it, from 1. id: of its row.
    """

    number: int
    id: Any
    text: str


def found(opened: Collection, query: Query, column: str | None = None) -> list[Passage]:
    """Passages for a query, the best first.

    Args:
        column: where they stand; None takes the only column of text.

    Raises ConfigError where there are several, or none, and for a query that is wrong.
    """
    texts = [one.name for one in opened.columns if one.kind == "text"]
    if column is None and len(texts) != 1:
        seen = "the collection has no column of text" if not texts else f"it has {len(texts)} columns of text"
        raise ConfigError(seen, allowed=", ".join(texts) or "(none)", fix="say which one holds the passages: column")
    if column is not None and column not in texts:
        raise ConfigError(f"{column!r} is no column of text", allowed=", ".join(texts), fix=nearest(column, texts))
    rows = opened.recall(query)
    values = opened.table(rows.rows, [column or texts[0]]).column(0).to_pylist()
    there = [(one.id, text) for one, text in zip(rows, values, strict=True) if text]
    return [Passage(number, id, text) for number, (id, text) in enumerate(there, 1)]


def prompt(question: str, passages: Sequence[Passage]) -> str:
    """What a model is asked, in the question's language."""
    language = "zh" if any(class_of(character) == PIECE for character in question) else "en"
    listed = "\n\n".join(f"[{one.number}] {one.text}" for one in passages)
    return _ASKED[language].format(passages=listed, question=question)
