"""Fields of bodies, beside the knobs: what OpenAI's routes and vLLM's clients call things, each with its type.

What becomes of them is schema.py's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from danlu.config import Options, Some
from danlu.serve.wire.habits import Strings, VllmNames
from danlu.serve.wire.messages import ChatMessage, Effort, Tool, ToolChoice


class StreamOptions(Options):
    """What a stream holds besides the answer."""

    include_usage: bool = Field(False, description="a last piece counts the tokens")
    include_leading: bool = Field(False, description="of beams, pieces that say which text leads now")
    include_obfuscation: bool = Field(False, description="accepted, without effect")


class NamedSchema(Options):
    """A JSON schema as OpenAI's clients send it; every answer fits it, whatever `strict` says."""

    name: str = Field(min_length=1, description="no answer depends on it")
    description: str | None = Field(None, description="no answer depends on it")
    form: dict[str, Any] = Field({}, alias="schema", description="the schema (json_schema)")
    strict: bool | None = Field(None, description="accepted, without effect")


class ResponseFormat(Options):
    """The form of an answer: any text, any JSON object, JSON of a schema, or text that matches an expression."""

    type: Literal["text", "json_object", "json_schema", "regex"] = Field(description="which form")
    json_schema: NamedSchema | None = Field(None, description="with the type json_schema")
    regex: str | None = Field(None, description="with the type regex")
    form: dict[str, Any] | None = Field(None, alias="schema", description="with the type json_object: its schema")

    @model_validator(mode="after")
    def _as_the_type_says(self) -> ResponseFormat:
        for name in ("json_schema", "regex"):
            if self.type == name and getattr(self, name) is None:
                raise ValueError(f"the type is {name!r}, and {name} is missing")
            if self.type != name and getattr(self, name) is not None:
                raise ValueError(f"the type is {self.type!r}; {name} belongs to the type {name!r}, and only there")
        if self.form is not None and self.type != "json_object":
            raise ValueError(f"the type is {self.type!r}; schema belongs to the type 'json_object', and only there")
        return self


def read_prompt(value: Any) -> Any:
    """Text, token ids, or a list of those; looks at each part once, and says where the first one is that is neither."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("text, token ids or a list of those is asked for, not empty")
    kind = type(value[0])
    if kind is list:
        for at, part in enumerate(value):
            if type(part) is not list or not part or set(map(type, part)) != {int}:
                raise ValueError(f"not a list of token ids at {at}: {part!r:.80}")
        return tuple(map(tuple, value))
    for at, part in enumerate(value):
        if type(part) is not kind or kind not in (str, int):
            raise ValueError(f"neither texts nor token ids alone, at {at}: {part!r:.80}")
    return tuple(value)


class Body(VllmNames):
    model: str = Field(description="the name that /v1/models lists")
    stream: bool = Field(False, description="send the answer in pieces, as server-sent events")
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's name of json_schema; or its JSON text")
    guided_regex: str | None = Field(None, description="vLLM's name of regex")
    n: int | None = Field(None, description="answers a prompt (num_return_sequences)")
    stop: str | Strings | None = Field(None, description="strings that end the answer (stop_sequences)")
    max_tokens: int | None = Field(None, description="new tokens at most (max_new_tokens)")
    best_of: int | None = Field(
        None, description="make so many answers, and tell the n of them with the highest log p a token"
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=-1,
        le=20,
        description="report log p and rank of each token of the prompt, and of this many likeliest ones (vLLM's)",
    )


class RecallWish(Options):
    """Passages that the last question of a chat comes with, and the answer's citations."""

    collection: str = Field(description="the name of one of the server's collections")
    query: str | None = Field(None, min_length=1, description="what is looked for; by default the last message")
    where: str | None = Field(None, description="a where-clause: passages come from the rows that pass it")
    column: str | None = Field(None, description="the column of text that holds the passages, where there are several")
    top: int = Field(3, ge=1, le=100, description="passages at most")
    channels: Some[str] | None = Field(None, description="the channels to ask; by default all that have an answer")


class ChatBody(Body):
    """What /v1/chat/completions reads; besides these, every knob of GenerationParams."""

    messages: Some[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, description="new tokens at most (max_new_tokens)")
    logprobs: bool | int | None = Field(None, description="report log p of each token; a number as top_logprobs")
    top_logprobs: int | None = Field(None, description="and of this many likeliest ones")
    tools: Some[Tool] | None = Field(None, description="functions that the answer may call")
    tool_choice: ToolChoice | None = Field(
        None, description="auto (may call, the default), none, required (must call), one tool, or some (allowed_tools)"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call an answer")
    reasoning_effort: Effort | None = Field(
        None, description="how much to think; none: not at all. Without effect where the template has no such switch"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="further variables of the template, such as enable_thinking"
    )
    add_generation_prompt: bool | None = Field(
        None, description="false: the prompt ends with the messages, without the opening of an answer"
    )
    continue_final_message: bool = Field(
        False, description="the last message is the assistant's and unfinished: the answer goes on with it"
    )
    recall: RecallWish | None = Field(
        None, description="answer from passages of a collection of the server, which the answer's citations name"
    )


class CompletionBody(Body):
    """What /v1/completions reads; besides these, every knob of GenerationParams."""

    prompt: Annotated[
        str | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, ...], ...],
        PlainValidator(read_prompt, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field(description="text or token ids, continued as they are; or a list of those")
    echo: bool = Field(False, description="put the prompt before the answer; with logprobs, score it too")
    max_tokens: int | None = Field(
        None,
        description="new tokens at most (max_new_tokens); 0 with echo or prompt_logprobs: none, the prompt is scored",
    )
