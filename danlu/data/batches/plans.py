"""An order of roles -> how every conversation of that order becomes an example.

Where a template only writes contents (stencils.py) and a tokenizer takes texts apart at the template's own tokens
(data/tokens/word_ids.py), a conversation is a row of segments: some are the same each time, each other one holds one
content. A plan is made once for an order of roles, from what `Chat` makes of a conversation of placeholders; from then
on only the segments with contents are tokenized. What could make a conversation differ from its plan is looked at each
time, and such a one goes the long way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from danlu.data.batches.stencils import Parts, Stencils
from danlu.data.example import Example
from danlu.data.tokens.word_ids import WordIds


@dataclass(frozen=True, slots=True)
class Hole:
    """A segment with a content in it.

    Attributes:
        message: whose content.
        head: ids that the segment begins with, if the content is learnt: those that end its prompt. None if it is not.
    """

    before: str
    message: int
    stripped: bool
    after: str
    head: tuple[int, ...] | None = None

    def filled(self, contents: Sequence[str]) -> str:
        content = contents[self.message]
        return self.before + (content.strip() if self.stripped else content) + self.after


@dataclass(frozen=True, slots=True)
class Constant:
    """A segment, or several, the same each time."""

    token_ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    learnt_tokens: int


Plan = list[Hole | Constant]


def segments_of(plan: Plan, contents: Sequence[str]) -> list[str]:
    """The segments that have to be tokenized."""
    return [part.filled(contents) for part in plan if isinstance(part, Hole)]


def carried_out(
    plan: Plan, filled: Sequence[str], ids_of: Callable[[str], tuple[int, ...]], stop_ids: frozenset[int]
) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
    """(token ids, which are learnt); None where an answer merges with its prompt, or holds what ends an answer."""
    token_ids: list[tuple[int, ...]] = []
    learnt: list[tuple[bool, ...]] = []
    segments = iter(filled)
    for part in plan:
        if isinstance(part, Constant):
            token_ids.append(part.token_ids)
            learnt.append(part.learnt)
            continue
        ids = ids_of(next(segments))
        token_ids.append(ids)
        if part.head is None:
            learnt.append((False,) * len(ids))
            continue
        size = len(part.head)
        if ids[:size] != part.head or not stop_ids.isdisjoint(ids[size:]):
            return None
        learnt.append((False,) * size + (True,) * (len(ids) - size))
    return tuple(chain.from_iterable(token_ids)), tuple(chain.from_iterable(learnt))


def sizes_of(plan: Plan, filled: Sequence[str], ids: WordIds) -> tuple[int, int] | None:
    """(tokens, learnt tokens) of what `carried_out` would make, without making it."""
    tokens = learnt = 0
    segments = iter(filled)
    for part in plan:
        if isinstance(part, Constant):
            tokens += len(part.token_ids)
            learnt += part.learnt_tokens
        elif part.head is None:
            tokens += ids.size(next(segments))
        else:
            after = ids.size_after(next(segments), part.head)
            if after is None:
                return None
            tokens += len(part.head) + after
            learnt += after
    return tokens, learnt


def make_plan(
    stencils: Stencils, ids: WordIds, roles: tuple[str, ...], answers: Sequence[int], opening: str, example: Example
) -> Plan | None:
    """The plan, or None where there is none.

    Args:
        answers: which messages are learnt.
        opening: what `Chat` adds to every prompt.
        example: the only one that `Chat` makes of `placeholders(len(roles))`.
    """
    whole = stencils.parts(roles, False)
    if whole is None or ids.marks is None or [at for at, _ in whole[1]] != list(range(len(roles))):
        return None
    if not all(_continues(stencils, roles, at, whole, opening) for at in answers):
        return None
    pieces = _segments(whole, ids.marks)
    if pieces is None:
        return None
    return _marked(pieces, ids, answers, example)


def placeholders(count: int) -> list[str]:
    """Contents to try a plan with."""
    return [f"fire{at}phoenix" for at in range(count)]


def _continues(stencils: Stencils, roles: tuple[str, ...], at: int, whole: Parts, opening: str) -> bool:
    """The prompt of an answer, and the conversation up to it, are beginnings of the whole, whatever is said in it."""
    literals, holes = whole
    through, prompt = stencils.parts(roles[: at + 1], False), stencils.parts(roles[:at], True)
    if through is None or prompt is None:
        return False
    return (
        through[1] == holes[: at + 1]
        and through[0][:-1] == literals[: at + 1]
        and literals[at + 1].startswith(through[0][-1])
        and prompt[1] == holes[:at]
        and prompt[0][:-1] == literals[:at]
        and literals[at].startswith(prompt[0][-1] + opening)
    )


def _segments(whole: Parts, marks: re.Pattern[str]) -> list[Hole | str] | None:
    """The whole cut at its marks; None where a segment holds two contents."""
    literals, holes = whole
    cut: list[Hole | str] = []
    before, hole = "", None
    for at, literal in enumerate(literals):
        first, *rest = marks.split(literal)
        before, after = (before + first, "") if hole is None else (before, first)
        for mark, text in zip(rest[::2], rest[1::2], strict=True):
            cut += [before if hole is None else Hole(before, *hole, after), mark]
            before, after, hole = text, "", None
        if at == len(holes):
            cut.append(before if hole is None else Hole(before, *hole, after))
        elif hole is not None:
            return None
        else:
            hole = holes[at]
    return cut


def _marked(pieces: Sequence[Hole | str], ids: WordIds, answers: Sequence[int], example: Example) -> Plan | None:
    """The segments with what of them is learnt, as in the example; None where the example is not made of them."""
    contents = placeholders(len(answers) + sum(isinstance(piece, Hole) for piece in pieces))
    plan: Plan = []
    at = 0
    for piece in pieces:
        token_ids = ids.segment(piece if isinstance(piece, str) else piece.filled(contents))
        learnt = tuple(example.learnt[at : at + len(token_ids)])
        if example.token_ids[at : at + len(token_ids)] != token_ids or len(learnt) != len(token_ids):
            return None
        at += len(token_ids)
        if isinstance(piece, str):
            plan.append(Constant(token_ids, learnt, sum(learnt)))
            continue
        start = learnt.index(True) if True in learnt else len(learnt)
        if (piece.message in answers) != (start < len(learnt)) or not all(learnt[start:]):
            return None
        head = token_ids[:start] if piece.message in answers else None
        plan.append(Hole(piece.before, piece.message, piece.stripped, piece.after, head))
    if at != len(example.token_ids) or not _runs_begin_with_contents(plan):
        return None
    return _joined(plan)


def _joined(plan: Plan) -> Plan:
    """The same with constants that follow each other made one."""
    joined: Plan = []
    for part in plan:
        before = joined[-1] if joined else None
        if isinstance(part, Constant) and isinstance(before, Constant):
            learnt = before.learnt_tokens + part.learnt_tokens
            joined[-1] = Constant(before.token_ids + part.token_ids, before.learnt + part.learnt, learnt)
        else:
            joined.append(part)
    return joined


def _runs_begin_with_contents(plan: Plan) -> bool:
    """What is learnt begins with a content and ends before the next one."""
    learning = False
    for part in plan:
        if isinstance(part, Hole):
            if learning:
                return False
            learning = part.head is not None
            continue
        for is_learnt in part.learnt:
            if is_learnt and not learning:
                return False
            learning = is_learnt
    return True
