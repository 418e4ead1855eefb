"""Where a text has its sentences, in English and Chinese, and which of them bear on a claim. Counts words alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from danlu.evaluate.overlap import words

_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])|\n+")
_LENGTH = 0.3  # how much a sentence's own length counts against it


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; of one without any, the text."""
    found = [part.strip() for part in _END.split(text) if part and re.search(r"\w", part)]
    return found or [text]


def evidence(text: str, claim: str, size: Callable[[str], int], most: int) -> str:
    """The sentences of `text` that share most with `claim`, in the order of the text, of `most` together.

    What few sentences have counts more: a word or a pair of words that k of them have counts 1 / k. The best sentence
    is there even if it is longer than `most`.

    Args:
        size: of a sentence, in what `most` is told in.
    """
    parts = sentences(text)
    if sum(map(size, parts)) <= most:
        return text
    wanted, own = _marks(claim), [_marks(part) for part in parts]
    often = Counter(mark for marks in own for mark in marks)
    worth = [sum(1 / often[mark] for mark in marks & wanted) / (len(marks) + 5) ** _LENGTH for marks in own]
    chosen: list[int] = []
    left = most
    for at in sorted(range(len(parts)), key=lambda at: -worth[at]):
        needs = size(parts[at])
        if needs <= left or not chosen:
            chosen.append(at)
            left -= needs
    glue = "" if re.search(r"[。！？；]", text) else " "
    return glue.join(parts[at] for at in sorted(chosen))


def _marks(text: str) -> set[str | tuple[str, str]]:
    found = words(text)
    return {*found, *pairwise(found)}
