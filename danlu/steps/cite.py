"""A step that makes of questions what a model learns to answer from: each with the passages that are found for it.

A question is asked as `danlu ask` and the server ask it, with numbered passages of a collection; the answer ends with
the number of the one that it rests on. The right one lies among those that are found anyway, as at serving time (after
Zhang et al. 2024, "RAFT", arXiv:2403.10131). Pairs hold its answer against that of another of these passages.

    chats.jsonl, pairs.jsonl                   to train on: passages in random order, so that no place is the right one
    held_out.jsonl, held_out_pairs.jsonl       of groups never trained on, as they are found
    questions.jsonl, asked.jsonl               the same for `evaluate` (with passages) and `serve` (without)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from danlu.config import PathText
from danlu.errors import DataError, disk_faults
from danlu.journal import Journal
from danlu.recall.collection import Collection
from danlu.recall.exporting import whole
from danlu.recall.passages import Passage, found_all, prompt
from danlu.recall.query import Query
from danlu.steps.directory import opened
from danlu.steps.recall import COLLECTION
from danlu.steps.rows import RowsOptions
from danlu.steps.step import FilesStep, Kind, Place, Product, Show

FILES = ("chats.jsonl", "pairs.jsonl", "held_out.jsonl", "held_out_pairs.jsonl", "questions.jsonl", "asked.jsonl")
_KEYS = ("question", "answer", "id")


class CiteStep(RowsOptions, FilesStep):
    """Questions with passages, and answers that cite one. A row has question, answer, and id: the right passage's."""

    WORKS_ON = "questions and a collection"

    collection: PathText | None = Field(
        None, description="where passages are found; of the last step of kind recall if none is named"
    )
    column: str | None = Field(
        None, description="the column of text that holds the passages; needed where there are several"
    )
    top: int = Field(3, ge=2, le=50, description="passages beside a question")
    max_examples: int = Field(1000, ge=1, description="questions to train on, a random choice")
    held_out: int = Field(100, ge=2, description="questions kept aside, in whole groups; at most a third")


@dataclass(frozen=True)
class _Question:
    question: str
    answer: str
    id: Any
    group: str


def _inputs(options: CiteStep, place: Place) -> dict[str, str]:
    return {**options.digests(place), **place.read(_collection(options, place))}


def _collection(options: CiteStep, place: Place) -> str:
    return options.collection or place.latest(COLLECTION, "collection")


def _leaves(options: CiteStep, place: Place, start: Product) -> Product:
    return Product("")


def _check(options: CiteStep, place: Place, start: Product, is_made: bool) -> None:
    if place.is_there(*options.paths):
        _parted(_read(options), options, place)


def _read(options: CiteStep) -> list[_Question]:
    """Raises DataError, with the place, for a row that is no question."""
    found = []
    for row, where in options.placed():
        for name in _KEYS:
            if row.get(name) in (None, ""):
                raise DataError(f"{where}: no {name}", allowed="question, answer, and id of the passage that says it")
        group = str(row.get("group") or row["id"])
        found.append(_Question(str(row["question"]), str(row["answer"]).strip(), row["id"], group))
    return found


def _parted(rows: Sequence[_Question], options: CiteStep, place: Place) -> tuple[list[_Question], list[_Question]]:
    """(to train on, kept aside). Raises DataError where there are too few groups."""
    groups: dict[str, list[_Question]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    order, dice = sorted(groups), random.Random(place.seed)
    dice.shuffle(order)
    wanted, aside = min(options.held_out, len(rows) // 3), set[str]()
    kept = 0
    for name in order:
        if kept < wanted and kept + len(groups[name]) <= 1.2 * wanted + 1:
            aside.add(name)
            kept += len(groups[name])
    if len(aside) < 2 or len(aside) == len(groups):
        raise DataError(
            f"steps.{place.name}: {len(rows)} questions in {len(groups)} group(s): no groups can be kept aside",
            allowed="two groups for it at least, and others to train on",
            fix="give more questions, name groups by smaller parts, or raise held_out",
        )
    train = [row for row in rows if row.group not in aside]
    chosen = dice.sample(train, min(options.max_examples, len(train)))
    return chosen, [row for row in rows if row.group in aside]


def _run(options: CiteStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    source = Collection.open(_collection(options, place), say=show.say)
    rows = _read(options)
    train, aside = _parted(rows, options, place)
    answers = {row.id: row.answer for row in rows}
    with opened(place, options, show, go_on) as journal:
        dice = random.Random(place.seed)
        show.say(f"finding passages for {len(train) + len(aside):,} questions")
        given = [_mixed(row, some, dice) for row, some in _with_passages(source, train, options)]
        learnt = [(row, some) for row, some in given if _number(row, some)]
        asked = _with_passages(source, aside, options)
        held_out = [(row, some) for row, some in asked if _number(row, some)]
        _write(journal, "chats.jsonl", map(_chat, learnt))
        _write(journal, "held_out.jsonl", map(_chat, held_out))
        _write(journal, "pairs.jsonl", _pairs(learnt, answers))
        _write(journal, "held_out_pairs.jsonl", _pairs(held_out, answers))
        _write(journal, "questions.jsonl", (_question(row, prompt(row.question, some), some) for row, some in asked))
        _write(journal, "asked.jsonl", (_question(row, row.question, some) for row, some in asked))
        figures = {"rows": len(learnt), "held_out": len(asked), "top": options.top, "found": len(held_out)}
        figures["without"] = len(given) - len(learnt)  # the right passage was not found: nothing says the answer
        journal.result("cited", figures)
        said = (
            f"{len(learnt):,} questions with passages; of {len(asked):,} held out, {len(held_out):,} with the right one"
        )
        journal.event("cited", f"{said} among the first {options.top}")
        show.say(said)


_Asked = tuple[_Question, list[Passage]]


def _with_passages(source: Collection, rows: Sequence[_Question], options: CiteStep) -> list[_Asked]:
    found = found_all(source, [Query(like=row.question, top=options.top) for row in rows], options.column)
    return list(zip(rows, found, strict=True))


def _mixed(row: _Question, found: Sequence[Passage], dice: random.Random) -> _Asked:
    """Passages in random order."""
    mixed = list(found)
    dice.shuffle(mixed)
    return row, [replace(one, number=at) for at, one in enumerate(mixed, 1)]


def _number(row: _Question, found: Iterable[Passage]) -> int:
    """By which the prompt calls the right passage; 0 where it is not there."""
    return next((one.number for one in found if one.id == row.id), 0)


def _answer(text: str, number: int) -> str:
    return f"{text} [{number}]"


def _chat(asked: _Asked) -> dict[str, Any]:
    row, found = asked
    answer = _answer(row.answer, _number(row, found))
    told = [{"role": "user", "content": prompt(row.question, found)}, {"role": "assistant", "content": answer}]
    return {"messages": told, "group": row.group}


def _pairs(asked: Iterable[_Asked], answers: dict[Any, str]) -> Iterable[dict[str, Any]]:
    """What another passage answers is worse, with its number."""
    for row, found in asked:
        other = next((one for one in found if one.id != row.id and answers.get(one.id, row.answer) != row.answer), None)
        if other is not None:
            yield {
                "prompt": [{"role": "user", "content": prompt(row.question, found)}],
                "chosen": _answer(row.answer, _number(row, found)),
                "rejected": _answer(answers[other.id], other.number),
                "group": row.group,
            }


def _question(row: _Question, text: str, found: Sequence[Passage]) -> dict[str, Any]:
    number = _number(row, found)
    truth = _answer(row.answer, number) if number else row.answer
    return {"id": str(row.id), "question": text, "truth": truth, "passage": row.id, "group": row.group}


def _write(journal: Journal, name: str, rows: Iterable[dict[str, Any]]) -> None:
    path = journal.directory / name
    with disk_faults(path, "writing the rows"), whole(path) as place, place.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _uses(options: CiteStep, place: Place, start: Product) -> list[str]:
    return [f"danlu data check {Path(place.directory / FILES[0])}"]


CITE = Kind(
    CiteStep, needs_adapter=None, inputs=_inputs, leaves=_leaves, check=_check, run=_run, needs_model=False,
    files=lambda _options: FILES, uses=_uses,
)  # fmt: skip
