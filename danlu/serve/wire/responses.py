"""/v1/responses, without a memory: a body in OpenAI's newer words -> a chat, and the chat's answer -> those words.

Nothing is stored: what a client wants the model to remember it sends again, as items. Streams are told in
response_events.py. Knows no backend: it words what any of them answers to a chat.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from danlu.config import Options, Some
from danlu.serve.faults import ApiFault
from danlu.serve.wire.messages import Effort
from danlu.serve.wire.schema import INERT, KNOBS, Ask, read_body, read_chat

# What the same thing is called in a chat.
_NAMES_IN_CHATS = {"max_completion_tokens": "max_output_tokens", "messages": "input", "response_format": "text"}
_SAME_IN_CHATS = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "chat_template_kwargs")
_REMEMBERED = {
    "previous_response_id": "send the earlier items again in input",
    "conversation": "send the earlier items again in input",
    "background": "leave it out, and wait for the answer",
    "prompt": "send its text in instructions",
}
_TEXT_PARTS = ("input_text", "output_text", "text")
_LOGPROBS = "message.output_text.logprobs"


class FunctionTool(Options):
    """A function that the answer may call."""

    type: Literal["function"] = Field(description="functions alone")
    name: str = Field(description="letters of any language, digits, _ . : / and -")
    description: str | None = Field(None, description="what it does; the model reads it")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments, which all calls fit")
    strict: bool | None = Field(None, description="as strict of a chat's tools")


class TextFormat(Options):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="any text, any JSON, or JSON of a schema")
    name: str | None = Field(None, description="no answer depends on it")
    description: str | None = Field(None, description="no answer depends on it")
    form: dict[str, Any] | None = Field(None, alias="schema", description="with the type json_schema")
    strict: bool | None = Field(None, description="accepted, without effect")


class TextWishes(Options):
    """What the answer's text is to be like."""

    format: TextFormat = TextFormat(type="text")
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="accepted, without effect")


class ReasoningWishes(Options):
    """How much the model is to think."""

    effort: Effort | None = Field(None, description="as reasoning_effort of a chat")
    summary: str | None = Field(None, description="accepted: reasoning is given whole, without a summary")
    generate_summary: str | None = Field(None, description="an older name of summary")


class ResponsesBody(Options):
    """What /v1/responses reads; besides these, every knob of GenerationParams."""

    model: str = Field(description="the name that /v1/models lists")
    input: str | Some[dict[str, Any]] = Field(description="the user's words, or items of a conversation")
    instructions: str | None = Field(None, description="a system message before the input")
    max_output_tokens: int | None = Field(None, description="new tokens at most (max_new_tokens)")
    temperature: float | None = Field(None, description="as of a chat")
    top_p: float | None = Field(None, description="as of a chat")
    stream: bool = Field(False, description="events as the answer grows")
    stream_options: dict[str, Any] | None = Field(None, description="include_obfuscation is accepted, without effect")
    tools: Some[FunctionTool] = Field((), description="functions that the answer may call")
    tool_choice: str | dict[str, Any] | None = Field(None, description="as of a chat; a function by its name alone")
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")
    text: TextWishes = TextWishes()
    reasoning: ReasoningWishes = ReasoningWishes()
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="further variables of the chat template")
    include: Some[str] = Field((), description=f"{_LOGPROBS}; others have nothing to include")
    top_logprobs: int | None = Field(None, description="alternatives for each token, where its logprob is included")
    truncation: Literal["disabled"] | None = Field(None, description="a prompt that is too long is an error")


@dataclass(frozen=True)
class Wishes:
    """What a response repeats of its request, and what it is called.

    Attributes:
        logprobs: go with the text.
    """

    repeated: Mapping[str, Any]
    logprobs: bool
    identifier: str = field(default_factory=lambda: f"resp_{secrets.token_hex(24)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def response(self, status: str, output: Sequence[Any] = (), usage: Any = None, reason: str | None = None) -> Any:
        """A response as OpenAI's API has it.

        Args:
            reason: why it is incomplete.
        """
        return {
            "id": self.identifier,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": list(output),
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": usage,
            "user": None,
            **self.repeated,
        }

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """A chat's answer as a response."""
        choice = answer["choices"][0]
        status, reason = ending(choice["finish_reason"])
        output = items_of(choice["message"], (choice.get("logprobs") or {}).get("content"), status, self.logprobs)
        return dict(self.response(status, output, usage_of(answer.get("usage")), reason))


def read_responses(document: Mapping[str, Any]) -> tuple[Ask, Wishes]:
    """The chat that a body asks for. Raises ApiFault."""
    given = {key: value for key, value in document.items() if value is not None and key not in INERT}
    for name, instead in _REMEMBERED.items():
        if given.pop(name, None):
            raise ApiFault(400, f"{name}: nothing is stored here; {instead}", name, "unsupported")
    own = set(ResponsesBody.model_fields)
    knobs = {key: value for key, value in given.items() if key in KNOBS - own}
    body = read_body(ResponsesBody, {key: value for key, value in given.items() if key not in knobs})
    try:
        ask = read_chat({**knobs, **_chat(body, given)})
    except ApiFault as fault:
        raise _in_these_words(fault) from None
    names = {knob: _NAMES_IN_CHATS.get(name, name) for knob, name in ask.names.items()}
    ask = replace(ask, names=names, given=tuple(given))
    if ask.params.num_return_sequences > 1:
        raise ApiFault(400, "a response is one answer; ask /v1/chat/completions for several", "num_return_sequences")
    return ask, Wishes(_repeated(body, document), _LOGPROBS in body.include or body.top_logprobs is not None)


def _in_these_words(fault: ApiFault) -> ApiFault:
    message, param = fault.message, fault.param
    for there, here in _NAMES_IN_CHATS.items():
        message = message.replace(there, here)
        param = here if param == there else param
    return ApiFault(fault.status, message, param, fault.code, fault.headers)


def _repeated(body: ResponsesBody, document: Mapping[str, Any]) -> dict[str, Any]:
    form = body.text.format.model_dump(by_alias=True, exclude_none=True)
    return {
        "model": body.model,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": document.get("metadata") or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": body.reasoning.effort, "summary": None},
        "temperature": body.temperature if body.temperature is not None else 1.0,
        "text": {"format": form},
        "tool_choice": body.tool_choice or "auto",
        "tools": [
            {"strict": None, "description": None, "parameters": None, **tool.model_dump()} for tool in body.tools
        ],
        "top_p": body.top_p if body.top_p is not None else 1.0,
    }


# -- a body as a chat


def _chat(body: ResponsesBody, given: Mapping[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {name: given[name] for name in _SAME_IN_CHATS if name in given}
    chat["messages"] = _messages(body)
    if body.max_output_tokens is not None:
        chat["max_completion_tokens"] = body.max_output_tokens
    if body.stream:
        chat["stream_options"] = {"include_usage": True}
    if body.reasoning.effort is not None:
        chat["reasoning_effort"] = body.reasoning.effort
    if body.tools:
        chat["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools
        ]
    if body.tool_choice is not None:
        chat["tool_choice"] = _choice(body.tool_choice)
    if (form := _form(body.text.format)) is not None:
        chat["response_format"] = form
    if _LOGPROBS in body.include or body.top_logprobs is not None:
        chat |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return chat


def _choice(choice: str | Mapping[str, Any]) -> Any:
    """A choice of tools as chats have it."""
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "function":
        nested = choice.get("function")  # as LlamaIndex has it in chats and here
        name = nested.get("name") if isinstance(nested, Mapping) else choice.get("name")
        if not isinstance(name, str):
            message = 'tool_choice names no function; give {"type": "function", "name": "…"}'
            raise ApiFault(400, message, "tool_choice", "invalid_value")
        return {"type": "function", "function": {"name": name}}
    if choice.get("type") == "allowed_tools":
        tools = [_choice(tool) for tool in choice.get("tools") or () if isinstance(tool, Mapping)]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": tools}}
    message = f"tool_choice has the type {choice.get('type')!r}; there are function and allowed_tools"
    raise ApiFault(400, message, "tool_choice", "unsupported")


def _form(form: TextFormat) -> dict[str, Any] | None:
    if form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": form.name or "answer", "schema": form.form or {}}}


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    thought = ""
    for at, item in enumerate(body.input):
        kind = item.get("type", "message")
        if kind == "reasoning":
            thought = "".join(_texts(item.get("content") or item.get("summary") or (), at))
            continue
        message = _message(item, kind, at)
        is_answer = message["role"] == "assistant"
        if is_answer and messages and messages[-1]["role"] == "assistant" and kind == "function_call":
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
            continue
        if thought and is_answer:
            message["reasoning_content"], thought = thought, ""
        messages.append(message)
    return messages


def _message(item: Mapping[str, Any], kind: str, at: int) -> dict[str, Any]:
    if kind == "message":
        content = item.get("content")
        text = content if isinstance(content, str) else "".join(_texts(content or (), at))
        return {"role": item.get("role"), "content": text}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        return {
            "role": "assistant",
            "tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}],
        }
    if kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else "".join(_texts(output or (), at))
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": text}
    message = f"input.{at}: items of the type {kind!r} are not read; there are message, function_call, "
    raise ApiFault(400, message + "function_call_output and reasoning", f"input.{at}.type", "unsupported")


def _texts(parts: Sequence[Any], at: int) -> list[str]:
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in (*_TEXT_PARTS, "reasoning_text", "summary_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal":
            texts.append(str(part.get("refusal", "")))
        else:
            message = f"input.{at}: parts of the type {kind!r} are not read; there is text"
            raise ApiFault(400, message, f"input.{at}", "unsupported")
    return texts


# -- an answer as items


def ending(reason: str) -> tuple[str, str | None]:
    """(status of the response, why it is incomplete)."""
    return ("incomplete", "max_output_tokens") if reason == "length" else ("completed", None)


def usage_of(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not usage:
        return None
    read, made = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},  # no such thing is charged here
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": read + made,
    }


def reasoning_item(text: str, status: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"type": "reasoning", "id": _name("rs"), "summary": [], "content": content, "status": status}


def text_part(text: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def message_item(parts: Sequence[Any], status: str) -> dict[str, Any]:
    return {"type": "message", "id": _name("msg"), "role": "assistant", "status": status, "content": list(parts)}


def call_item(call: Mapping[str, Any], status: str) -> dict[str, Any]:
    function = call["function"]
    named = {"call_id": call["id"], "name": function["name"], "arguments": function["arguments"]}
    return {"type": "function_call", "id": _name("fc"), **named, "status": status}


def items_of(message: Mapping[str, Any], logprobs: Any, status: str, with_logprobs: bool) -> list[dict[str, Any]]:
    """The parts of a chat's answer, in the order in which they came."""
    items = []
    if thought := message.get("reasoning_content") or message.get("reasoning"):
        items.append(reasoning_item(thought, "completed"))
    calls = message.get("tool_calls") or ()
    if message.get("content") or not (calls or items):
        part = text_part(message.get("content") or "", (logprobs or ()) if with_logprobs else ())
        items.append(message_item([part], status))
    return [*items, *(call_item(call, status) for call in calls)]


def _name(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"
