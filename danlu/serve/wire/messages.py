"""A conversation as OpenAI's clients send it: its turns, the tools that it offers, and how it is to be rendered.

What is read here becomes a Talk: messages as templates take them, and everything that shapes their prompt. Knows no
template and no token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from danlu.config import Options, Some
from danlu.data.records import Message
from danlu.serve.faults import ApiFault
from danlu.serve.wire.body import parse

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Variables of a template that have fields of their own, or are not a client's to set.
_TAKEN = {
    "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize",
    "bos_token", "eos_token", "pad_token", "unk_token",
}  # fmt: skip
_NAME = r"^[\w.:/-]{1,128}$"


class TextPart(Options):
    """A piece of a message's content."""

    type: Literal["text"] = Field(description="text; images and sound are not read")
    text: str = Field(description="the words")


class CalledFunction(Options):
    """What an earlier answer called."""

    name: str = Field(min_length=1, description="the function")
    arguments: str | dict[str, Any] = Field("", description="a JSON object as text, as the answer had it; empty: none")


class ToolCall(Options):
    """A call in an earlier answer."""

    id: str = Field("", description="what the tool's message refers to")
    type: Literal["function"] = Field("function", description="functions alone")
    function: CalledFunction
    index: int | None = Field(None, description="accepted, without effect: some clients send a stream's pieces back")


class ChatMessage(Options):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="developer is read as system")
    content: str | Some[TextPart] | None = Field(
        None, description="the words, as one text or in parts; an answer that only calls may have none"
    )
    name: str | None = Field(None, description="who speaks, where the template writes it; of a tool, the function")
    tool_calls: Some[ToolCall] | None = Field(None, description="what an earlier answer called")
    tool_call_id: str | None = Field(None, description="of a tool's message: the call that it answers")
    reasoning_content: str | None = Field(None, description="an earlier answer's reasoning; templates mostly drop it")
    reasoning: str | None = Field(None, description="another name of reasoning_content")

    @model_validator(mode="after")
    def _as_the_role_says(self) -> ChatMessage:
        if self.content is None and not (self.tool_calls or self.reasoning_content or self.reasoning):
            raise ValueError("content is missing; only an answer that calls tools may leave it out")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to the role 'assistant'; this is {self.role!r}")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"tool_call_id belongs to the role 'tool'; this is {self.role!r}")
        if (self.reasoning_content or self.reasoning) and self.role != "assistant":
            raise ValueError(f"reasoning_content belongs to the role 'assistant'; this is {self.role!r}")
        return self

    @property
    def plain(self) -> Message:
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        more = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content or self.reasoning,
            "tool_calls": [_plain_call(call) for call in self.tool_calls or ()],
        }
        return message | {key: value for key, value in more.items() if value}


def _plain_call(call: ToolCall) -> dict[str, Any]:
    given = call.function.arguments
    try:
        arguments = given if isinstance(given, dict) else parse((given.strip() or "{}").encode())
    except ApiFault as fault:
        where = f"the arguments of an earlier call of {call.function.name!r}"
        message = fault.message.replace("the body is", f"{where} are", 1)
        raise ApiFault(400, message, "messages", "invalid_value") from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


class Function(Options):
    """A function that an answer may call."""

    name: str = Field(pattern=_NAME, description="letters of any language, digits, _ . : / and -")
    description: str | None = Field(None, description="what it does; the model reads it")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments, which all calls fit")
    strict: bool | None = Field(
        None,
        description="true: a schema that cannot be held in every part is an error; else such parts are passed over",
    )


class Tool(Options):
    """One of OpenAI's tools; there is one kind."""

    type: Literal["function"] = Field(description="functions alone")
    function: Function

    @property
    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        function = self.function
        return {
            "type": "function",
            "function": {
                "name": function.name,
                "description": function.description or "",
                "parameters": function.parameters or {"type": "object", "properties": {}},
            },
        }


class NamedFunction(Options):
    """A function by its name."""

    name: str = Field(description="one of the tools")


class NamedTool(Options):
    """The one tool that must be called, or one of those that may be."""

    type: Literal["function"] = Field("function", description="functions alone")
    function: NamedFunction


class AllowedTools(Options):
    """Some of the tools."""

    mode: Literal["auto", "required"] = Field("auto", description="required: one of them must be called")
    tools: Some[NamedTool] = Field(min_length=1, description="those that may be called")


class SomeTools(Options):
    """A choice among some of the tools; the model still reads about all of them."""

    type: Literal["allowed_tools"] = Field(description="what kind of choice this is")
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | SomeTools


@dataclass(frozen=True)
class ToolUse:
    """What an answer may call.

    Attributes:
        tools: all that the model reads about.
        callable: those that it may call now; none of them with the choice "none".
        must_call: an answer is a call.
        parallel: it may be several.
    """

    tools: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    must_call: bool
    parallel: bool


@dataclass(frozen=True)
class Talk:
    """How a conversation becomes a prompt, beside its messages.

    Attributes:
        use: None without tools.
        effort: how much the model is to think; None where the client says nothing.
        given: the fields of the body that make this up, for another server that answers.
    """

    use: ToolUse | None = None
    effort: Effort | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)


# Fields of a body for chats that make up its Talk.
TALK_FIELDS = (
    "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "chat_template_kwargs",
    "add_generation_prompt", "continue_final_message",
)  # fmt: skip


def read_use(tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse | None:
    """The tools of a request. Raises ApiFault for a choice that names no tool, or has no tools to choose from."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiFault(400, "tool_choice asks for a call, and there are no tools; give tools", "tool_choice")
        return None
    names = [tool.function.name for tool in tools]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ApiFault(400, f"tools: two functions are called {twice[0]!r}; rename one", "tools", "invalid_value")
    chosen, must_call = list(names), choice == "required"
    if choice == "none":
        chosen = []
    elif isinstance(choice, NamedTool):
        chosen, must_call = [choice.function.name], True
    elif isinstance(choice, SomeTools):
        chosen = [tool.function.name for tool in choice.allowed_tools.tools]
        must_call = choice.allowed_tools.mode == "required"
    known_names, chosen_names = set(names), set(chosen)
    if strange := [name for name in chosen if name not in known_names]:
        known = ", ".join(map(repr, names))
        raise ApiFault(400, f"tool_choice names {strange[0]!r}; the tools are {known}", "tool_choice", "invalid_value")
    several = parallel is not False and not isinstance(choice, NamedTool)
    callable_now = tuple(tool for tool in tools if tool.function.name in chosen_names)
    return ToolUse(tuple(tools), callable_now, must_call, several)


def check_template_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Raise ApiFault for variables that a client may not set in this way."""
    if taken := sorted(_TAKEN & kwargs.keys()):
        raise ApiFault(
            400, f"chat_template_kwargs: {taken[0]} is not set in this way; leave it out", "chat_template_kwargs"
        )


def check_parts(at: int, content: Any) -> None:
    """Raise ApiFault for a part of a message that is no text, such as an image."""
    for number, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            place = f"messages.{at}.content.{number}"
            raise ApiFault(400, f"{place}: its type is {kind!r}; only text is read here", place, "unsupported")


def check_opening(messages: Sequence[Message], opening: bool | None, continues: bool) -> bool:
    """Whether the answer's opening is written. Raises ApiFault where that contradicts what is asked for."""
    if not continues:
        return opening is not False
    if opening:
        message = "continue_final_message goes on with the last message; set add_generation_prompt to false"
        raise ApiFault(400, message, "continue_final_message", "contradiction")
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        what = "calls tools" if last.get("tool_calls") else f"is the {last['role']}'s"
        message = f"continue_final_message goes on with the assistant's words; the last message {what}"
        raise ApiFault(400, message, "continue_final_message", "invalid_value")
    return False


def as_sent(message: Any) -> dict[str, Any]:
    """A message as it came, the arguments of its calls as text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": as_json(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def choosing_among(talk: Talk, kinds: frozenset[str]) -> dict[str, Any]:
    """The fields of a talk for a server that knows these kinds of tool_choice, beside none, auto and required.

    A choice of another kind is made here: the tools that it leaves are the only ones sent, and one must or may be
    called.
    """
    given, use = dict(talk.given), talk.use
    choice = given.get("tool_choice")
    if use is None or not isinstance(choice, dict) or choice.get("type", "function") in kinds:
        return given
    names = {tool.function.name for tool in use.callable}
    given["tools"] = [tool for tool in given["tools"] if tool["function"]["name"] in names]
    given["tool_choice"] = "required" if use.must_call else "auto"
    return given if use.parallel else given | {"parallel_tool_calls": False}


def as_json(arguments: Mapping[str, Any]) -> str:
    """Arguments as one line of JSON."""
    return json.dumps(arguments, ensure_ascii=False)
