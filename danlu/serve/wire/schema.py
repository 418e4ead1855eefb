"""Bodies of requests: OpenAI's names beside every knob of GenerationParams, read into an Ask.

A field that is null counts as not given. What OpenAI's clients send and no answer depends on is passed over; what
would change an answer and is not there yet is an error that names it. Knows no HTTP.

Whether to draw: do_sample decides where it is given. Otherwise temperature 0 takes the likeliest token, a larger
one draws; with neither, beams and forced words search, and everything else draws at temperature 1, as OpenAI does.
A search gives the same answer each time, so a seed that comes with it is kept already; and with temperature 0
top_p, top_k and min_p leave the likeliest token where it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from danlu.config import Options, describe_faults
from danlu.errors import nearest
from danlu.generate.engine import Prompt
from danlu.generate.params import GenerationParams
from danlu.serve.faults import ApiFault, blamed
from danlu.serve.wire.bodies import Body, ChatBody, CompletionBody, RecallWish
from danlu.serve.wire.body import parse
from danlu.serve.wire.habits import knobs_of, plain_message, without_habits
from danlu.serve.wire.messages import (
    TALK_FIELDS,
    ChatMessage,
    Talk,
    check_opening,
    check_parts,
    check_template_kwargs,
    read_use,
)

KNOBS = frozenset(GenerationParams.model_fields)

# Sent by OpenAI's clients; no answer depends on them.
INERT = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip
NOT_YET = {
    "modalities", "audio", "prediction", "verbosity", "web_search_options", "suffix",
}  # fmt: skip
# OpenAI's older names, which its clients have left behind.
_OLDER = {"functions": "tools", "function_call": "tool_choice"}
_OF_MESSAGES_NOT_YET = {"function_call", "audio"}

# What another server does anyway.
_MOOT_IN_TALKS: Mapping[str, tuple[Any, ...]] = {
    "chat_template_kwargs": ({},), "add_generation_prompt": (True,), "continue_final_message": (False,),
}  # fmt: skip

# So many faults of a body are told at once.
_MOST_FAULTS = 8

# Knobs that ask for a search where nothing says whether to draw.
_SEARCHES = ("num_beams", "num_beam_groups", "constraints", "force_words", "force_words_ids")
_MOOT_AT_ZERO = ("seed", "top_p", "top_k", "min_p")
_LENGTHS = ("max_new_tokens", "max_length")


_AnyBody = TypeVar("_AnyBody", bound=Body)


@dataclass(frozen=True)
class Ask:
    """What a request wants.

    Attributes:
        names: knob -> the name under which the client gave it.
        limited: the client set a length itself.
        given: the keys of the body, which an error may blame.
        include_leading: a stream also says what leads among beams.
        echo: the prompt comes before each answer, scored where log-probabilities are asked for.
        only_echo: nothing comes after the prompt, which is said again or scored.
        kept: of each prompt's answers so many are told, those with the highest log p a token; None: all.
        prompt_logprobs: tell log p of the prompt's tokens, and of so many of the likeliest in their places.
        talk: of a chat, how its messages become a prompt.
        recall: the passages that a chat asks for. citations: those that it has got, as they are told.
    """

    model: str
    prompts: tuple[Prompt, ...]
    params: GenerationParams
    names: Mapping[str, str]
    limited: bool
    given: tuple[str, ...]
    stream: bool = False
    include_usage: bool = False
    include_leading: bool = False
    echo: bool = False
    only_echo: bool = False
    kept: int | None = None
    prompt_logprobs: int | None = None
    talk: Talk | None = None
    recall: RecallWish | None = None
    citations: tuple[dict[str, Any], ...] = ()

    @property
    def told(self) -> int:
        """Answers a prompt that the client gets."""
        return self.params.num_return_sequences if self.kept is None else self.kept

    @property
    def prompt_top(self) -> int | None:
        """So many of the likeliest tokens are looked for in each place of the prompt; None: it is not scored."""
        wanted = (self.prompt_logprobs, self.params.logprobs if self.echo else None)
        return max((top for top in wanted if top is not None), default=None)

    def in_client_words(self, message: str) -> str:
        """An error of the engine, with the names that the client used."""
        for knob, name in self.names.items():
            message = re.sub(rf"\b{knob}\b", name, message)
        return message


def read_chat(document: dict[str, Any]) -> Ask:
    """The Ask of a body for /v1/chat/completions. Raises ApiFault."""
    given = _given(document, chat=True)
    if "messages" in given:
        given["messages"] = _plain_messages(given["messages"])
    body, knobs = _split(ChatBody, given)
    names: dict[str, str] = {}
    _put(knobs, names, "max_new_tokens", "max_completion_tokens", body.max_completion_tokens)
    if body.top_logprobs is not None and body.logprobs in (None, False):
        raise ApiFault(400, "top_logprobs has no effect without logprobs; set logprobs to true", "top_logprobs")
    if body.logprobs is not None and not isinstance(body.logprobs, bool):
        knobs["logprobs"] = body.logprobs
    elif body.logprobs:
        knobs["logprobs"] = 0
    if body.top_logprobs is not None:
        if not isinstance(body.logprobs, bool):
            raise ApiFault(400, "logprobs is a number, and top_logprobs is given too; keep one", "top_logprobs")
        knobs["logprobs"], names["logprobs"] = body.top_logprobs, "top_logprobs"
    messages = tuple(message.plain for message in body.messages)
    check_template_kwargs(body.chat_template_kwargs or {})
    opening = check_opening(messages, body.add_generation_prompt, body.continue_final_message)
    talk = Talk(
        use=read_use(body.tools, body.tool_choice, body.parallel_tool_calls),
        effort=body.reasoning_effort,
        template_kwargs=body.chat_template_kwargs or {},
        add_generation_prompt=opening,
        continue_final_message=body.continue_final_message,
        given=_of_talk(given),
    )
    return replace(_ask(body, (messages,), knobs, names, given), talk=talk, recall=body.recall)


def _of_talk(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a body that make up its Talk, without what says nothing: another server may refuse even that."""
    fields = {name: given[name] for name in TALK_FIELDS if name in given}
    moot = {name for name, value in fields.items() if value in _MOOT_IN_TALKS.get(name, ())}
    moot |= set() if given.get("tools") else {"tools", "tool_choice", "parallel_tool_calls"}
    return {name: value for name, value in fields.items() if name not in moot}


def read_completion(document: dict[str, Any]) -> Ask:
    """The Ask of a body for /v1/completions. Raises ApiFault."""
    given = _given(document, chat=False)
    body, knobs = _split(CompletionBody, given)
    prompts: tuple[Prompt, ...]
    if isinstance(body.prompt, str):
        prompts = (body.prompt,)
    else:
        prompts = (body.prompt,) if isinstance(body.prompt[0], int) else body.prompt
    only_echo = (body.echo or body.prompt_logprobs is not None) and body.max_tokens == 0
    if only_echo:
        body = body.model_copy(update={"max_tokens": 1})  # so that the other knobs can be checked
    ask = _ask(body, prompts, knobs, {}, given)
    return replace(ask, echo=body.echo, only_echo=only_echo)


def _given(document: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    return without_habits(_known(document), chat=chat)


def _known(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None and key not in INERT}


def _plain_messages(messages: Any) -> Any:
    """Messages without the fields that say nothing; what would be lost is refused."""
    if not isinstance(messages, list):
        return messages
    plain = []
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            return messages
        for key in sorted(_OF_MESSAGES_NOT_YET & message.keys()):
            if message[key]:
                raise ApiFault(400, f"messages.{at}.{key}: not supported yet", f"messages.{at}.{key}", "unsupported")
        check_parts(at, message.get("content"))
        plain.append(plain_message(message, set(ChatMessage.model_fields)))
    return plain


def _split(model: type[_AnyBody], given: dict[str, Any]) -> tuple[_AnyBody, dict[str, Any]]:
    """The body proper, and the knobs beside it."""
    own = set(model.model_fields)
    for key in given.keys() - own - KNOBS:
        if key in _OLDER:
            raise ApiFault(400, f"{key}: an older name; use {_OLDER[key]}", key, "unsupported")
        if key in NOT_YET:
            raise ApiFault(400, f"{key}: not supported yet", key, "unsupported")
        raise ApiFault(400, f"{key}: unknown; {nearest(key, own | KNOBS)}".rstrip("; "), key, "unknown_parameter")
    body = _validate(model, {key: value for key, value in given.items() if key in own}, {})
    return body, {key: value for key, value in given.items() if key not in own}


_AnyOptions = TypeVar("_AnyOptions", bound=Options)


def _validate(model: type[_AnyOptions], values: dict[str, Any], names: Mapping[str, str]) -> _AnyOptions:
    """As JSON and strictly: a number in quotes is no number, save where JSON has no other way, as a key."""
    try:
        strict = {key: value for key, value in values.items() if key != "logit_bias"}
        result = model.model_validate_json(json.dumps(strict), strict=True)
        return result if strict == values else model.model_validate_json(json.dumps(values))
    except ValidationError as error:
        faults = [fault.removeprefix("(whole): ") for fault in describe_faults(error, model, _MOST_FAULTS)]
        message = "; ".join(dict.fromkeys(faults))
        for knob, name in names.items():
            message = re.sub(rf"\b{knob}\b", name, message)
        place = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
        param = names.get(str(place[0]), str(place[0])) if place else None
        param = param or blamed(message, [*names.values(), *values])
        raise ApiFault(400, message, param, "invalid_value") from None


def read_body(model: type[_AnyOptions], document: dict[str, Any]) -> _AnyOptions:
    """A body without knobs. Raises ApiFault."""
    inert = INERT - model.model_fields.keys()
    return _validate(
        model, {key: value for key, value in document.items() if value is not None and key not in inert}, {}
    )


def _put(knobs: dict[str, Any], names: dict[str, str], knob: str, name: str, value: Any) -> None:
    """Set a knob that the client gave under OpenAI's name; twice is once too often."""
    if value is None:
        return
    if knob in knobs:
        other = names.get(knob, knob)
        raise ApiFault(400, f"{name} and {other} say the same thing; keep one of them", name, "contradiction")
    knobs[knob], names[knob] = value, name


def _put_form(knobs: dict[str, Any], names: dict[str, str], body: Body) -> None:
    """Set json_schema or regex from whichever name the client gave it."""
    form, guided = body.response_format, body.guided_json
    if form is not None and form.type == "json_object":
        _put(knobs, names, "json_schema", "response_format", {"type": "object"} if form.form is None else form.form)
    elif form is not None and form.json_schema is not None:
        _put(knobs, names, "json_schema", "response_format", form.json_schema.form)
    elif form is not None:
        _put(knobs, names, "regex", "response_format", form.regex)
    _put(knobs, names, "json_schema", "guided_json", _schema(guided, "guided_json"))
    _put(knobs, names, "regex", "guided_regex", body.guided_regex)
    for knob, name, value in knobs_of(body, body.stop or knobs.get("stop_sequences")):
        _put(knobs, names, knob, name, _schema(value, name) if knob == "json_schema" else value)
    wanted = body.structured_outputs
    if wanted is not None and wanted.disable_any_whitespace and "json_schema" in knobs:
        knobs["json_schema"] = {**knobs["json_schema"], "x-guidance": {"whitespace_flexible": False}}


def _schema(form: Any, name: str) -> Any:
    """A schema that came as JSON, or as its text."""
    if not isinstance(form, str):
        return form
    try:
        return parse(form.encode())
    except ApiFault as fault:
        raise ApiFault(400, fault.message.replace("the body", name, 1), name, "invalid_value") from None


def _ask(
    body: Body,
    prompts: tuple[Prompt, ...],
    knobs: dict[str, Any],
    names: dict[str, str],
    given: dict[str, Any],
) -> Ask:
    if body.stream_options is not None and not body.stream:
        raise ApiFault(400, "stream_options has no effect without stream; set stream to true", "stream_options")
    _put(knobs, names, "max_new_tokens", "max_tokens", body.max_tokens)
    _put(knobs, names, "num_return_sequences", "n", body.n)
    kept = _put_best_of(knobs, names, body)
    _put(knobs, names, "stop_sequences", "stop", [body.stop] if isinstance(body.stop, str) else body.stop)
    _put_form(knobs, names, body)
    _decide_whether_to_draw(knobs)
    params = _validate(GenerationParams, knobs, names)
    include_leading = body.stream_options is not None and body.stream_options.include_leading
    if include_leading and params.num_beams == 1:
        raise ApiFault(400, "include_leading has no effect without num_beams > 1; set num_beams", "stream_options")
    return Ask(
        model=body.model,
        prompts=prompts,
        params=params,
        names=names,
        limited=any(knob in knobs for knob in _LENGTHS),
        given=tuple(given),
        stream=body.stream,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        include_leading=include_leading,
        kept=kept,
        prompt_logprobs=_prompt_logprobs(body),
    )


def _put_best_of(knobs: dict[str, Any], names: dict[str, str], body: Body) -> int | None:
    """Let as many answers be made as best_of says; how many of them are told, where that is fewer."""
    kept, name = knobs.get("num_return_sequences", 1), names.get("num_return_sequences", "num_return_sequences")
    if body.best_of is None or body.best_of == kept or type(kept) is not int:
        return None
    if body.best_of < kept:
        raise ApiFault(400, f"best_of ({body.best_of}) is less than {name} ({kept}); raise best_of", "best_of")
    if body.stream:
        message = "best_of ranks answers that have ended, which cannot be streamed; set stream to false"
        raise ApiFault(400, message, "best_of", "unsupported")
    if knobs.get("num_beams", 1) != 1:
        raise ApiFault(400, "best_of has no effect with num_beams, which ranks beams; raise num_beams", "best_of")
    knobs["num_return_sequences"], names["num_return_sequences"] = body.best_of, "best_of"
    return kept


def _prompt_logprobs(body: Body) -> int | None:
    if body.prompt_logprobs == -1:
        message = "prompt_logprobs: -1 would be the whole vocabulary at each token; at most 20 are told"
        raise ApiFault(400, message, "prompt_logprobs", "invalid_value")
    if body.prompt_logprobs is not None and body.stream:
        message = "prompt_logprobs come with a whole answer; set stream to false"
        raise ApiFault(400, message, "prompt_logprobs", "unsupported")
    return body.prompt_logprobs


def _decide_whether_to_draw(knobs: dict[str, Any]) -> None:
    temperature = knobs.get("temperature")
    is_zero = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    if is_zero and knobs.get("do_sample"):
        raise ApiFault(400, "temperature 0 draws nothing, and do_sample is true; keep one of them", "temperature")
    if is_zero:
        del knobs["temperature"]
        knobs["do_sample"] = False
        for knob in _MOOT_AT_ZERO:
            if not _faulty(knob, knobs):
                knobs.pop(knob, None)
    elif "do_sample" not in knobs:
        searches = any(knobs.get(knob) not in (None, 1, []) for knob in _SEARCHES)
        knobs["do_sample"] = temperature is not None or not searches
    if knobs["do_sample"] is False and not _faulty("seed", knobs):
        knobs.pop("seed", None)


def _faulty(knob: str, knobs: Mapping[str, Any]) -> bool:
    """Whether a knob that is about to be passed over holds a value that would be refused anyway."""
    if knob not in knobs:
        return False
    try:
        GenerationParams.model_validate_json(json.dumps({knob: knobs[knob], "do_sample": True}), strict=True)
    except ValidationError:
        return True
    return False


def schema_of(model: type[Body]) -> tuple[dict[str, Any], dict[str, Any]]:
    """JSON schema of a body with every knob, and the definitions it refers to, for the API's own description."""
    place = "#/components/schemas/{model}"
    knobs = GenerationParams.model_json_schema(ref_template=place)
    own = model.model_json_schema(ref_template=place)
    definitions = {**knobs.pop("$defs", {}), **own.pop("$defs", {})}
    own["properties"] = {**knobs["properties"], **own["properties"]}
    return own, definitions
