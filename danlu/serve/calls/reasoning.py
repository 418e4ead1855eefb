"""Models that think: which marks stand around their reasoning, and whether a prompt has it open.

The marks are read off the chat template, as the form of calls is (callforms.py). Knows no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from danlu.data.chat import Chat
from danlu.data.records import Message
from danlu.errors import DanluError
from danlu.serve.faults import ApiFault
from danlu.serve.wire.messages import Effort


@dataclass(frozen=True)
class Marks:
    """What stands around the reasoning of an answer."""

    begin: str
    end: str


Thinking = Literal["no", "may", "must"]

# What stands in a template: <think>, <seed:think>, <thinking>, [THINK], <|START_THINKING|>.
_ENDS = (
    (re.compile(r"</((?:\w+:)?think(?:ing)?)>"), "<{}>", "</{}>"),
    (re.compile(r"\[/(THINK)\]"), "[{}]", "[/{}]"),
    (re.compile(r"<\|END_(THINKING)\|>"), "<|START_{}|>", "<|END_{}|>"),
)
_THOUGHT, _WORDS = "topaz tower", "jade lake"
# Variables that switch thinking on or off, in the order in which they are looked for.
_SWITCHES = ("enable_thinking", "thinking")


def marks_of(chat: Chat) -> Marks | None:
    """The marks around a model's reasoning; None: its template knows of none."""
    try:
        source = chat.template_source
    except DanluError:
        return None
    for end, begin_form, end_form in _ENDS:
        if found := end.search(source):
            return Marks(begin_form.format(found[1]), end_form.format(found[1]))
    return _written(chat)


def _written(chat: Chat) -> Marks | None:
    """What a template writes around the reasoning of an earlier answer, where that is one mark on each side.

    Some write it only of an answer that calls a tool.
    """
    call = {"id": "call_0", "type": "function", "function": {"name": "probe", "arguments": {}}}
    for more in ({}, {"tool_calls": [call]}):
        answer: Message = {"role": "assistant", "content": _WORDS, **more}
        try:
            plain, thought = (_rendered(chat, one) for one in (answer, {**answer, "reasoning_content": _THOUGHT}))
        except DanluError:
            continue
        before, mark, rest = thought.partition(_THOUGHT)
        begin = re.search(r"(<[^<>\n]+>\w*)\s*$", before)
        end = re.match(r"\s*(<[^<>\n]+>)", rest)
        if mark and begin and end and begin[1] not in plain and end[1] not in plain:
            return Marks(begin[1], end[1])
    return None


def _rendered(chat: Chat, answer: Message) -> str:
    question: Message = {"role": "user", "content": "?"}
    return chat.prompt_text([question, answer], add_generation_prompt=False)


def thinking_in(prompt: str, before: str, marks: Marks | None) -> Thinking:
    """Whether an answer to this prompt begins with reasoning.

    Args:
        before: the prompt up to the answer, whose opening is what the prompt has beyond it.
    """
    if marks is None:
        return "no"
    opening = prompt[len(before) :] if prompt.startswith(before) else prompt.rpartition("\n")[2]
    begun, ended = opening.rfind(marks.begin), opening.rfind(marks.end)
    if begun > ended:
        return "must"
    return "no" if ended >= 0 else "may"


def is_open(words: str, marks: Marks) -> bool:
    """Whether these words end in the middle of reasoning."""
    return words.rfind(marks.begin) > words.rfind(marks.end)


def kwargs_of(effort: Effort | None, given: Mapping[str, Any], chat: Chat) -> dict[str, Any]:
    """The template's further variables. Raises ApiFault for those that it does not know.

    An effort is passed over where the template has no such switch: clients send one to every model.
    """
    kwargs = dict(given)
    for name in kwargs:
        if not _knows(chat, name):
            message = f"chat_template_kwargs: this model's template has no variable {name!r}; leave it out"
            raise ApiFault(400, message, "chat_template_kwargs", "unknown_parameter")
    if effort is None:
        return kwargs
    switch = next((name for name in ("reasoning_effort", *_SWITCHES) if _knows(chat, name)), None)
    if switch is None:
        return kwargs
    value: Any = effort if switch == "reasoning_effort" else effort not in ("none", "minimal")
    if kwargs.setdefault(switch, value) != value:
        message = f"reasoning_effort is {effort!r}, and chat_template_kwargs sets {switch} otherwise; keep one of them"
        raise ApiFault(400, message, "reasoning_effort", "contradiction")
    return kwargs


def _knows(chat: Chat, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", chat.template_source) is not None
