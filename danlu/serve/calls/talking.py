"""Conversations on one model: a Talk -> the prompt, the form of the answer, and what takes the answer apart.

What the model's template shows of calls and of reasoning is found out once, when a request first needs it. A template
that writes no tools gets them in words: the first message says what there is and how to call it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from danlu.data.chat import Chat
from danlu.data.records import Message
from danlu.errors import DanluError
from danlu.generate.params import GenerationParams
from danlu.serve.calls import reasoning
from danlu.serve.calls.callforms import CallForm, call_form
from danlu.serve.calls.callgrammar import AnswerForm
from danlu.serve.calls.callreader import AnswerReader
from danlu.serve.calls.reasoning import Marks
from danlu.serve.faults import ApiFault
from danlu.serve.wire.messages import Talk, ToolUse, as_json

_EXPLAINED = """You may call functions to help with the request. Their signatures, one a line:
{tools}

To call one, answer with its name and its arguments as JSON that fits its parameters, in exactly this form:
{form}"""


@dataclass(frozen=True)
class Ready:
    """A conversation that can be answered.

    Attributes:
        form: of the answer; None where any text will do.
        reads: whether the answer has to be taken apart.
    """

    token_ids: list[int]
    form: AnswerForm | None
    reads: bool

    def reader(self) -> AnswerReader | None:
        """Takes one answer apart; None: all of it is text."""
        if not self.reads or self.form is None:
            return None
        form = self.form
        functions = [tool.function for tool in form.use.callable] if form.use else []
        return AnswerReader(form.marks, form.thinking, form.calls if functions else None, functions)


class Conversations:
    """What a model's template says about conversations."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    @cached_property
    def calls(self) -> CallForm:
        """How the model writes calls."""
        return call_form(self._chat, self.marks)

    @cached_property
    def marks(self) -> Marks | None:
        """What stands around its reasoning."""
        return reasoning.marks_of(self._chat)

    def ready(self, messages: Sequence[Message], talk: Talk, params: GenerationParams) -> Ready:
        """The prompt and what its answer looks like. Raises ApiFault and DanluError."""
        kwargs = reasoning.kwargs_of(talk.effort, talk.template_kwargs, self._chat)
        has_calls = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        tools = None
        if talk.use is not None or has_calls:
            messages, tools = self._with_tools(messages, talk.use)
        shape: dict[str, Any] = {
            "add_generation_prompt": talk.add_generation_prompt,
            "continue_final_message": talk.continue_final_message,
            "template_kwargs": kwargs,
        }
        prompt = self._chat.prompt(messages, tools, **shape)
        thinking = self._thinking(messages, tools, shape)
        form = AnswerForm(
            marks=self.marks,
            thinking=thinking,
            calls=self.calls if talk.use else None,
            use=talk.use,
            schema=params.json_schema,
            regex=params.regex,
        )
        reads = thinking != "no" or (talk.use is not None and bool(talk.use.callable))
        return Ready(prompt, form if reads or form.is_constrained else None, reads)

    def _thinking(
        self, messages: Sequence[Message], tools: Sequence[dict[str, object]] | None, shape: dict[str, Any]
    ) -> reasoning.Thinking:
        """Whether the answer begins with reasoning, or is in the middle of it."""
        if self.marks is None:
            return "no"
        continues = shape["continue_final_message"]
        prompt = self._chat.prompt_text(messages, tools, **shape)
        # the prompt without the opening of its answer, or without the answer that is gone on with
        shape = shape | {"add_generation_prompt": False, "continue_final_message": False}
        try:
            before = self._chat.prompt_text(messages[:-1] if continues else messages, tools, **shape)
        except DanluError:
            before = ""
        thinking = reasoning.thinking_in(prompt, before, self.marks)
        words = str(messages[-1].get("content", "")) if continues else ""
        if before and reasoning.is_open(words, self.marks) and self.marks.end in prompt[len(before) : -len(words)]:
            message = "continue_final_message: this template ends the reasoning before the last message's words"
            raise ApiFault(400, f"{message}; give words that come after the reasoning", "continue_final_message")
        return "no" if continues and thinking == "may" else thinking  # its words have begun

    # -- tools

    def _with_tools(
        self, messages: Sequence[Message], use: ToolUse | None
    ) -> tuple[list[Message], list[dict[str, object]] | None]:
        """Messages as the template takes them, and the tools, if it writes them itself."""
        self._refuse_channels()
        form = self.calls
        changed = form.history(messages) if form.native else _in_words(form, messages)
        if use is None:
            return changed if self._can_render(changed) else _in_words(form, messages), None
        tools = [tool.plain for tool in use.tools]
        if form.native and form.tells:
            return changed, tools
        return self._told(changed, _explanation(form, tools)), None

    def _told(self, messages: list[Message], words: str) -> list[Message]:
        """Messages with an explanation: in the system's message, or in the user's first where there can be none."""
        if messages and messages[0]["role"] == "system":
            return [{**messages[0], "content": f"{messages[0]['content']}\n\n{words}"}, *messages[1:]]
        told: list[Message] = [{"role": "system", "content": words}, *messages]
        if self._can_render(told, words):
            return told
        for at, message in enumerate(messages):
            if message["role"] == "user":
                message = {**message, "content": f"{words}\n\n{message['content']}"}
                return [*messages[:at], message, *messages[at + 1 :]]
        return told

    def _can_render(self, messages: Sequence[Message], words: str = "") -> bool:
        """Whether the template takes these messages, and writes these words."""
        try:
            return words in self._chat.prompt_text(messages)
        except DanluError:
            return False

    def _refuse_channels(self) -> None:
        """Models that answer on several channels at once call tools on one of them, which is not read here."""
        if "<|channel|>" in self._chat.template_source and "<|message|>" in self._chat.template_source:
            message = "tools: this model calls them on a channel of its own (harmony), which is not read here yet"
            raise ApiFault(400, message, "tools", "unsupported")


def _explanation(form: CallForm, tools: Sequence[dict[str, object]]) -> str:
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = f"{form.begin.lstrip()}NAME{form.middle}ARGUMENTS{form.end}"
    return _EXPLAINED.format(tools=lines, form=example)


def _in_words(form: CallForm, messages: Sequence[Message]) -> list[Message]:
    """Calls and their results as text, for templates that know neither; neighbours of one role become one."""
    changed: list[Message] = []
    for message in messages:
        role, text = message["role"], message.get("content") or ""
        for at, call in enumerate(message.get("tool_calls", ())):
            function = call["function"]
            begin = form.begin if at == 0 else form.between or ""
            said = f"{begin}{function['name']}{form.middle}{as_json(function['arguments'])}"
            text = f"{text}\n{said}".lstrip("\n") if at == 0 else text + said
        if message.get("tool_calls"):
            text += form.end
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        if changed and changed[-1]["role"] == role == "user":
            changed[-1] = {**changed[-1], "content": f"{changed[-1]['content']}\n{text}"}
        else:
            kept = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id", "name")}
            changed.append({**kept, "role": role, "content": text})
    return changed
