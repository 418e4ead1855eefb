"""What clients send out of habit, in our words: vLLM's names, and values that switch a thing off elsewhere.

OpenAI and vLLM read `top_k: 0`, `max_tokens: -1` or `suffix: ""` as not given, and so is it here. Whatever would change
an answer and is not there is left standing, and refused by whoever reads it. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field, model_validator

from danlu.config import Options, Some

# A nucleus of one token: what is left of top_p as it goes to 0.
SMALLEST_TOP_P = 1e-9

# Values that mean "not given": name -> what is read so.
_OFF: Mapping[str, Callable[[Any], bool]] = {
    "seed": lambda value: _is(value, -1),
    "top_k": lambda value: _is(value, 0, -1),
    "max_tokens": lambda value: _is(value, -1),
    "max_completion_tokens": lambda value: _is(value, -1),
    "min_tokens": lambda value: _is(value, 0),
    "suffix": lambda value: value == "",
    "modalities": lambda value: value == ["text"],
    "verbosity": lambda value: value in ("low", "medium", "high"),
    "ignore_eos": lambda value: value is False,
    "use_beam_search": lambda value: value is False,
    "stop": lambda value: value in ("", []),
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
}  # fmt: skip

Strings = Some[str]

# What a stream can hold besides the answer.
_OF_STREAMS = {"include_usage", "include_leading", "include_obfuscation"}

# In a part of a message, and in a message: all else says nothing to a text model, or is refused by name.
_OF_PARTS = {"type", "text"}


def _is(value: Any, *numbers: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in numbers


def without_habits(document: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """A body without what says nothing."""
    given = {name: value for name, value in document.items() if not (name in _OFF and _OFF[name](value))}
    if _is(given.get("top_p"), 0) or (given.get("top_p") == 0.0 and isinstance(given.get("top_p"), float)):
        given["top_p"] = SMALLEST_TOP_P
    if not chat and given.get("logprobs") is False:
        del given["logprobs"]
    if chat and given.get("logprobs") in (None, False) and _is(given.get("top_logprobs"), 0):
        del given["top_logprobs"]
    if not given.get("stream") and _asks_for_nothing(given.get("stream_options")):
        del given["stream_options"]
    if "best_of" in given and given["best_of"] == given.get("n", 1) and not isinstance(given["best_of"], bool):
        del given["best_of"]
    return given


def _asks_for_nothing(stream_options: Any) -> bool:
    return isinstance(stream_options, dict) and all(
        name in _OF_STREAMS and (value is None or value is False) for name, value in stream_options.items()
    )


def plain_message(message: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """A message without keys that say nothing here; an answer's missing text is an empty one."""
    kept = {key: value for key, value in message.items() if key in known and value is not None}
    if kept.get("role") == "assistant":
        kept.setdefault("content", "")
    if isinstance(kept.get("content"), list):
        kept["content"] = [_plain_part(part) for part in kept["content"]]
    return kept


def _plain_part(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") != "text":
        return part
    return {key: value for key, value in part.items() if key in _OF_PARTS}


class StructuredOutputs(Options):
    """vLLM's newer way to say what an answer looks like; one of the forms."""

    form: dict[str, Any] | str | None = Field(None, alias="json", description="JSON schema, or its text (json_schema)")
    regex: str | None = Field(None, description="the whole answer matches it (regex)")
    choice: Strings | None = Field(None, description="the answer is one of these (choices)")
    grammar: str | None = Field(None, description="the answer follows it (grammar)")
    json_object: bool | None = Field(None, description="true: any JSON object")
    disable_any_whitespace: bool = Field(False, description="of JSON: no blanks between its parts")

    @model_validator(mode="after")
    def _one_form(self) -> StructuredOutputs:
        given = [self.form, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(one is not None for one in given) != 1:
            raise ValueError("one of json, regex, choice, grammar and json_object is asked for")
        return self


class VllmNames(Options):
    """vLLM's names of knobs, where they are others."""

    min_tokens: int | None = Field(None, description="vLLM's name of min_new_tokens")
    ignore_eos: bool = Field(False, description="go on past the model's own end; as eos_token_id []")
    include_stop_str_in_output: bool | None = Field(None, description="vLLM's name of include_stop")
    guided_choice: Strings | None = Field(None, description="vLLM's name of choices")
    guided_grammar: str | None = Field(None, description="vLLM's name of grammar")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's newer name of all forms")


def knobs_of(body: VllmNames, stops: Any) -> list[tuple[str, str, Any]]:
    """(knob, the client's name, value) of what was given in vLLM's names; a schema may still be text."""
    keep = body.include_stop_str_in_output if stops else None  # with nothing to keep, vLLM passes over it
    found: list[tuple[str, str, Any]] = [
        ("min_new_tokens", "min_tokens", body.min_tokens),
        ("eos_token_id", "ignore_eos", () if body.ignore_eos else None),
        ("include_stop", "include_stop_str_in_output", keep),
        ("choices", "guided_choice", body.guided_choice),
        ("grammar", "guided_grammar", body.guided_grammar),
    ]
    wanted = body.structured_outputs
    if wanted is not None:
        schema = {"type": "object"} if wanted.json_object else wanted.form
        values = {"json_schema": schema, "regex": wanted.regex, "choices": wanted.choice, "grammar": wanted.grammar}
        found += [(knob, "structured_outputs", value) for knob, value in values.items()]
    return [one for one in found if one[2] is not None]
