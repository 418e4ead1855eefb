"""A small domain, out of what is at hand: passages to recall, questions that one of them answers, and texts to read.

Without a path, the domain is the Python standard library, as its own docstrings describe it; with one, documents with
headings (headings.py): each section is a passage, its heading becomes a question. Nothing is made up, and the order
is fixed. Rows of a group (a module, a document) belong together, so that what is held out comes from others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from danlu.data.headings import Section, sections_of
from danlu.data.stdlib import described
from danlu.errors import ConfigError, DataError

_MANY = 10  # documents, of which each is a group
# Characters: what is longer says more than a small model can hold beside others; what is shorter says little.
PASSAGE, LEAST, ANSWER = 280, 20, 160

ENGLISH = ("What does {} do?", "What is {} for?", "Explain {} in one line.")
CHINESE = ("{}是什么？", "请用一句话解释{}。", "{}有什么用？")
_CHINESE_LETTER = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Passage:
    """Attributes:
    title: what it is about; no other has it. answer: its first sentence.
    """

    id: int
    title: str
    text: str
    answer: str
    group: str

    @property
    def question(self) -> str:
        """One of several wordings, the same each time."""
        wordings = CHINESE if _CHINESE_LETTER.search(self.title + self.answer) else ENGLISH
        return wordings[self.id % len(wordings)].replace("{}", self.title)


def passages(path: str | Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows for a collection: id, title, text, group."""
    for one in _passages(path):
        yield {"id": one.id, "title": one.title, "text": one.text, "group": one.group}


def questions(path: str | Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows for training and evaluation: question, answer, the id of the passage that says it, group."""
    for one in _passages(path):
        yield {"question": one.question, "answer": one.answer, "id": one.id, "group": one.group}


def labels(path: str | Sequence[str] | None = None, count: int = 400) -> Iterator[dict[str, Any]]:
    """Queries of which the right row is known, evenly taken from all."""
    if count < 1:
        raise ConfigError(f"labels: count {count}", allowed="1 or more")
    found = _passages(path)
    for at in range(0, len(found), max(1, len(found) // count)):
        yield {"query": {"like": found[at].question}, "relevant": [found[at].id]}


def _passages(path: str | Sequence[str] | None) -> tuple[Passage, ...]:
    return _read(path if path is None or isinstance(path, str) else tuple(path))


@cache
def _read(path: str | tuple[str, ...] | None) -> tuple[Passage, ...]:
    given = _of_library() if path is None else _of_documents(path)
    seen: set[str] = set()
    found: list[Passage] = []
    for title, text, answer, group in given:
        if title not in seen and LEAST <= len(answer) <= ANSWER:
            seen.add(title)
            found.append(Passage(len(found), title, _cut(text), answer, group))
    if not found:
        raise DataError(
            f"{path}: no heading with a sentence of {LEAST} to {ANSWER} characters below it",
            allowed="text or Markdown with headings (#), a file or a folder",
            fix="mark the headings with #; danlu data check says what is read of a file",
        )
    return tuple(found)


def _of_library() -> Iterator[tuple[str, str, str, str]]:
    for one in described():
        title = f"{one.module}.{one.name}"
        yield title, f"{title}: {one.signature}\n{one.text}", one.line, one.module


def _of_documents(path: str | tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    """Of few documents, what stands below one heading belongs together: something has to be held out."""
    found = list(sections_of(path if isinstance(path, str) else list(path)))
    has_many = len({_document(one) for one in found}) >= _MANY
    for one in found:
        answer = re.split(r"(?<=[。！？!?])|(?<=\.)\s", one.text, maxsplit=1)[0].strip()
        group = _document(one) if has_many else f"{_document(one)}: {one.above or one.heading}"
        yield one.heading, f"{one.heading}\n{one.text}", answer, group


def _document(section: Section) -> str:
    return section.place.partition(":")[0]


def _cut(text: str) -> str:
    """Up to the last whole word or sign that fits."""
    if len(text) <= PASSAGE:
        return text
    kept = text[:PASSAGE]
    return (kept if _CHINESE_LETTER.search(kept[-20:]) else kept.rpartition(" ")[0] or kept).rstrip() + " …"
