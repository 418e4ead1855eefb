"""Passages that were found, and a question -> what a model is asked, so that its answer names what it rests on.

Passages that are too long for the model's context are cut, the longest first, until the prompt fits. Knows no model:
who asks one says how many tokens a prompt has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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

# Characters of a passage that are worth to be read.
_LEAST = 64


@dataclass(frozen=True)
class Passage:
    """Attributes:
    number: by which the prompt calls it, from 1. id: of its row. score: what it was ranked by.
    is_cut: whether its end was left out.
    """

    number: int
    id: Any
    text: str
    score: float
    is_cut: bool = False


def found(opened: Collection, query: Query, column: str | None = None) -> list[Passage]:
    """Passages for a query, the best first.

    Args:
        column: where they stand; None takes the only column of text.

    Raises ConfigError where there are several, or none, and for a query that is wrong.
    """
    return found_all(opened, [query], column)[0]


def found_all(opened: Collection, queries: Sequence[Query], column: str | None = None) -> list[list[Passage]]:
    """`found` of each, in less time than one after the other."""
    texts = [one.name for one in opened.columns if one.kind == "text"]
    if column is None and len(texts) != 1:
        seen = "the collection has no column of text" if not texts else f"it has {len(texts)} columns of text"
        raise ConfigError(seen, allowed=", ".join(texts) or "(none)", fix="say which one holds the passages: column")
    if column is not None and column not in texts:
        raise ConfigError(f"{column!r} is no column of text", allowed=", ".join(texts), fix=nearest(column, texts))
    found = opened.recall_all(queries)
    values = opened.table(np.concatenate([rows.rows for rows in found]), [column or texts[0]]).column(0).to_pylist()
    read, made = iter(values), []
    for rows in found:
        there = [(one, text) for one, text in zip(rows, read, strict=False) if text]
        made.append([Passage(number, one.id, text, one.score) for number, (one, text) in enumerate(there, 1)])
    return made


def prompt(question: str, passages: Sequence[Passage]) -> str:
    """What a model is asked, in the question's language."""
    language = "zh" if any(class_of(character) == PIECE for character in question) else "en"
    listed = "\n\n".join(f"[{one.number}] {one.text}" for one in passages)
    return _ASKED[language].format(passages=listed, question=question)


def room(context: int | None, max_new_tokens: int | None, max_length: int | None, default: int) -> int | None:
    """Tokens that a prompt may have, so that an answer fits behind it; None where nothing limits it.

    Args:
        context: of the model. max_new_tokens, max_length: the limits that were asked for, if any.
        default: tokens that an answer gets without these, or a quarter of the whole where that is less.
    """
    limits = [limit for limit in (context, None if max_new_tokens is not None else max_length) if limit is not None]
    if not limits:
        return None
    whole = min(limits)
    return whole - (min(default, whole // 4) if max_new_tokens is None else max_new_tokens)


def within(question: str, passages: Sequence[Passage], most: int | None, count: Callable[[str], int]) -> list[Passage]:
    """The passages, cut so that the prompt has no more tokens than `most`: all to one length, shorter ones stay whole.

    Where less than a sentence of each would be left, the last ones are left out. Raises ConfigError where there is no
    room for any.

    Args:
        count: tokens of a prompt, as the model gets it.
    """
    if most is None:
        return list(passages)

    def fits(some: Sequence[Passage]) -> bool:
        return count(prompt(question, some)) <= most

    for kept in range(len(passages), 0, -1):
        if not fits(_cut(passages[:kept], _LEAST)):
            continue
        longest = max(len(one.text) for one in passages[:kept])
        least, high = _LEAST, 2 * _LEAST
        while least < longest and fits(_cut(passages[:kept], high)):
            least, high = high, 2 * high
        high = min(high, longest)
        while high - least > 1:
            middle = (least + high) // 2
            least, high = (middle, high) if fits(_cut(passages[:kept], middle)) else (least, middle)
        return _cut(passages[:kept], least)
    seen = f"the question takes {count(prompt(question, ()))} tokens, of {most} that a prompt may have"
    raise ConfigError(f"{seen}: no passage fits beside it", fix="ask for fewer new tokens, or with fewer words")


def _cut(passages: Sequence[Passage], characters: int) -> list[Passage]:
    return [
        one if len(one.text) <= characters else replace(one, text=f"{one.text[:characters].rstrip()} …", is_cut=True)
        for one in passages
    ]
