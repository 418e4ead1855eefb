"""An answer's text as it grows -> reasoning, text, and calls with their arguments, each as soon as it is certain.

Knows a model's marks (callgrammar.py) and the form of its calls (callforms.py); the grammar has seen to it that what
follows a trigger is a call. What was cut off in the middle of a call's head is no call, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from danlu.serve.calls.callarguments import Arguments, arguments_of, overlap
from danlu.serve.calls.callforms import NUMBER, CallForm
from danlu.serve.calls.callgrammar import loosely
from danlu.serve.calls.reasoning import Marks, Thinking
from danlu.serve.wire.messages import Function

Kind = Literal["reasoning", "content", "call", "arguments"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer that has become certain.

    Attributes:
        kind: of a call, its name comes first, then its arguments as JSON in pieces.
        text: what is added.
        index: of a call and its arguments: which call.
    """

    kind: Kind
    text: str
    index: int = 0


class AnswerReader:
    """Takes one answer apart.

    Args:
        marks: around reasoning; None: all is text.
        thinking: whether the answer may begin with reasoning, or is in the middle of it.
        form: how calls are written; None: there are none.
        functions: those that may be called.

    Attributes:
        reasoning_end: after how many characters of the answer its reasoning was over; 0 without reasoning.
    """

    def __init__(
        self,
        marks: Marks | None = None,
        thinking: Thinking = "no",
        form: CallForm | None = None,
        functions: Sequence[Function] = (),
    ) -> None:
        self._marks, self._form = marks, form
        self._functions = {function.name: function for function in functions}
        self._state: Callable[[bool], bool] = self._opening if thinking == "may" else self._body
        if thinking == "must":
            self._state = self._reasoning
        self._buffer, self._pieces = "", list[Piece]()
        self._read, self._calls = 0, 0
        self._said = False  # text or calls have come
        self._after_reasoning = thinking == "must"
        self._held = ""  # white space that belongs to the text only if more comes
        self.reasoning_end = 0
        self._arguments: Arguments | None = None

    @property
    def calls(self) -> int:
        """How many have begun."""
        return self._calls

    @property
    def may_think(self) -> bool:
        return self._marks is not None

    def feed(self, text: str) -> list[Piece]:
        """What has become certain with more text."""
        self._buffer += text
        return self._go(last=False)

    def finish(self) -> list[Piece]:
        """The rest, when the answer has ended."""
        pieces = self._go(last=True)
        if self._state == self._reasoning:
            self.reasoning_end = self._read
        elif self._state == self._body and self._held and not self._calls:
            pieces = _joined([*pieces, Piece("content", self._held)])
        return pieces

    def _go(self, last: bool) -> list[Piece]:
        self._pieces = []
        while self._state(last):
            pass
        return _joined(self._pieces)

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self._read += count
        return taken

    # -- states: each returns whether to go on at once

    def _opening(self, last: bool) -> bool:
        """Whether reasoning begins is not known yet."""
        assert self._marks is not None
        begun, mark = self._buffer.lstrip(), self._marks.begin
        if begun.startswith(mark):
            self._take(len(self._buffer) - len(begun) + len(mark))
            self._state, self._after_reasoning = self._reasoning, True
            return True
        if mark.startswith(begun) and not last:  # white space alone too
            return False
        self._state = self._body
        return True

    def _reasoning(self, last: bool) -> bool:
        assert self._marks is not None
        at = self._buffer.find(self._marks.end)
        if at < 0:
            self._say(
                "reasoning", self._take(len(self._buffer) - (0 if last else overlap(self._buffer, self._marks.end)))
            )
            return False
        self._say("reasoning", self._take(at))
        self._take(len(self._marks.end))
        self.reasoning_end, self._held, self._said = self._read, "", False
        self._state = self._opening  # some think again
        return True

    def _body(self, last: bool) -> bool:
        """Text, until a call begins."""
        form = self._form
        if form is None:
            self._say("content", self._take(len(self._buffer)))
            return False
        if form.at_start:
            return self._body_at_start(form, last)
        at = self._buffer.find(form.trigger)
        if at < 0:
            self._say("content", self._take(len(self._buffer) - (0 if last else overlap(self._buffer, form.trigger))))
            return False
        self._say("content", self._take(at))
        self._state, self._held = self._head, ""
        return True

    def _body_at_start(self, form: CallForm, last: bool) -> bool:
        """A call can only be at the beginning."""
        if not self._said and not self._calls:
            if re.match(rf"\s*{loosely(form.trigger)}", self._buffer):
                self._state = self._head
                return True
            begun = re.sub(r"\s+", "", self._buffer)
            if re.sub(r"\s+", "", form.trigger).startswith(begun) and not last:
                return False
        self._say("content", self._take(len(self._buffer)))
        return False

    def _head(self, _last: bool) -> bool:
        assert self._form is not None
        return self._named(loosely(self._form.begin.lstrip()))

    def _joint(self, last: bool) -> bool:
        """After a call's arguments: a further call, or the end of all."""
        assert self._form is not None
        form = self._form
        if form.between is not None and not form.repeats:
            if self._named(loosely(form.between)):
                return True
            if not last and _may_become(self._buffer, form.between):
                return False
        found = re.match(rf"\s*{loosely(form.end)}", self._buffer)
        if found is None or (not form.end and not self._buffer and not last):
            return False
        self._take(found.end())
        self._state, self._held = self._body, ""
        return bool(self._buffer)

    def _named(self, before: str) -> bool:
        assert self._form is not None
        names, middle = "|".join(map(re.escape, self._functions)), loosely(self._form.middle)
        border = "" if self._form.middle.strip() else r"(?=[\s<{])"
        found = re.match(rf"\s*{before}({names}){border}{middle}", self._buffer)
        if found is None or found.end() == len(self._buffer):  # white space may go on
            return False
        self._take(found.end())
        self._pieces.append(Piece("call", found[1], self._calls))
        self._calls += 1
        self._arguments = arguments_of(self._form, self._functions[found[1]])
        self._state = self._in_arguments
        return True

    def _in_arguments(self, last: bool) -> bool:
        assert self._arguments is not None
        said, used, is_over = self._arguments.read(self._buffer)
        self._take(used)
        if said:
            self._pieces.append(Piece("arguments", said, self._calls - 1))
        if is_over:
            self._state = self._joint
        return is_over

    def _say(self, kind: Kind, text: str) -> None:
        """Without white space at the end, or at the beginning after reasoning."""
        is_first = not self._said
        if kind == "reasoning" or self._form is not None or self._after_reasoning:
            if is_first and (kind == "reasoning" or self._after_reasoning):
                text = text.lstrip()
            text = self._held + text
            kept = text.rstrip() if kind == "reasoning" or self._form is not None else text
            self._held, text = text[len(kept) :], kept
        if text:
            self._said = True
            self._pieces.append(Piece(kind, text))


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and piece.kind == joined[-1].kind != "call" and piece.index == joined[-1].index:
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text, piece.index)
        else:
            joined.append(piece)
    return joined


def _may_become(text: str, mark: str) -> bool:
    """Whether `text` is the beginning of `mark`, or goes on from it; white space aside."""
    here, wanted = "".join(text.split()), "".join(mark.split()).partition(NUMBER)[0]
    return wanted.startswith(here) or here.startswith(wanted)
