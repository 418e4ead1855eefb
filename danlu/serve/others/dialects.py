"""A request in another server's words: which of Danlu's knobs it has, and what they are called there.

A knob that a server lacks is an error that names the knob: other servers pass over what they do not know, and the
answer would be another one. What a client leaves out is sent as well where it has a name: servers fill gaps from the
model's generation_config.json or with taste of their own (llama.cpp draws at 0.8 among 40 tokens), and the same
request would be answered differently from one backend to the next.

Names as of vLLM 0.33, SGLang, llama.cpp's server and rtp-llm in 2026.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.generate.params import GenerationParams
from danlu.serve.faults import ApiFault
from danlu.serve.options import FlavourName
from danlu.serve.wire.messages import TALK_FIELDS, as_sent, choosing_among
from danlu.serve.wire.schema import Ask

_OPENAI = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "num_return_sequences": "n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
}
_VLLM_AND_SGLANG = _OPENAI | {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "skip_special_tokens": "skip_special_tokens",
}

# Knobs that are worded by code below, and not by a name alone.
_WORDED = {
    "do_sample", "max_new_tokens", "stop_sequences", "include_stop", "eos_token_id", "logprobs", "num_beams",
    "json_schema", "regex", "stop_token_ids",
}  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """What a kind of server understands.

    Attributes:
        knobs: Danlu's name -> the name there; a dot leads into an object.
        neutral: name there -> what switches it off, sent where the client says nothing.
        stop_ids: the name of token ids that end an answer; empty: it has none.
        stop_id_lists: they are lists of token ids; otherwise single ones.
        include_stop: the name of the switch that keeps the stop sequence; empty: it has none.
        ignore_eos: whether it can be told to go on past the model's own end.
        completions: whether it has /completions, with log-probabilities and with echo.
        beams: whether it searches with beams.
        chat_limit: what it calls the limit of a chat's answer.
        completion_schema: whether /completions reads response_format as well.
        regex: the name of an expression that the answer must match; empty: it has none.
        talk: the fields of a chat that shape its prompt and its calls.
        best_of: whether /completions ranks answers and leaves some out.
        prompt_logprobs: whether it tells vLLM's log-probabilities of a prompt.
        choices: kinds of tool_choice that it knows, beside none, auto and required.
        least_alternatives: fewer than so many likeliest tokens beside a log-probability it does not give.
        repeats_prefix: a whole answer that goes on with a message has that message in it.
    """

    name: FlavourName
    knobs: Mapping[str, str] = field(default_factory=lambda: _OPENAI)
    neutral: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: str = ""
    stop_id_lists: bool = False
    include_stop: str = ""
    ignore_eos: bool = False
    completions: bool = True
    completion_logprobs: bool = True
    echo: bool = True
    beams: bool = False
    chat_limit: str = "max_tokens"
    completion_schema: bool = False
    regex: str = ""
    talk: frozenset[str] = frozenset({"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"})
    best_of: bool = False
    prompt_logprobs: bool = False
    choices: frozenset[str] = frozenset({"function"})
    least_alternatives: int = 0
    repeats_prefix: bool = False


_NEUTRAL = {"temperature": 1.0, "top_p": 1.0}
_VLLM_NEUTRAL = _NEUTRAL | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}

DIALECTS: dict[FlavourName, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            "openai",
            neutral={"temperature": 1.0},
            chat_limit="max_completion_tokens",
            choices=frozenset({"function", "allowed_tools"}),
            best_of=True,
        ),
        Dialect(
            "vllm",
            knobs=_VLLM_AND_SGLANG
            | {
                "bad_words": "bad_words",
                "length_penalty": "length_penalty",
                "choices": "structured_outputs.choice",
            },
            neutral=_VLLM_NEUTRAL,
            stop_ids="stop_token_ids",
            include_stop="include_stop_str_in_output",
            ignore_eos=True,
            beams=True,
            completion_schema=True,
            regex="structured_outputs.regex",
            talk=frozenset(TALK_FIELDS),
            prompt_logprobs=True,
        ),
        Dialect(
            "sglang",
            knobs=_VLLM_AND_SGLANG,
            neutral=_VLLM_NEUTRAL,
            stop_ids="stop_token_ids",
            include_stop="no_stop_trim",
            ignore_eos=True,
            completion_schema=True,
            regex="regex",
            talk=frozenset(TALK_FIELDS) - {"add_generation_prompt"},
        ),
        Dialect(
            "llama.cpp",
            knobs=_OPENAI
            | {"top_k": "top_k", "min_p": "min_p", "typical_p": "typical_p", "repetition_penalty": "repeat_penalty"},
            # It penalizes the last 64 tokens only unless told of more; newer ones refuse -1, which was all of them.
            neutral=_NEUTRAL
            | {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "repeat_last_n": 131072},
            ignore_eos=True,
            completion_logprobs=False,
            echo=False,
            talk=frozenset(TALK_FIELDS),
            choices=frozenset(),  # it reads any other as auto
            least_alternatives=1,  # of none it would make 20
            repeats_prefix=True,
        ),
        Dialect(
            "rtp-llm",
            knobs={
                "temperature": "temperature",
                "top_p": "top_p",
                "top_k": "extra_configs.top_k",  # older ones pass over a top_k beside it, without a word
                "seed": "seed",
                "num_return_sequences": "n",
                "presence_penalty": "extra_configs.presence_penalty",
                "frequency_penalty": "extra_configs.frequency_penalty",
                "repetition_penalty": "extra_configs.repetition_penalty",
                "min_new_tokens": "extra_configs.min_new_tokens",
                "no_repeat_ngram_size": "extra_configs.no_repeat_ngram_size",
            },
            neutral=_NEUTRAL,
            stop_ids="extra_configs.stop_words_list",
            stop_id_lists=True,
            completions=False,
            talk=frozenset({"tools"}),
        ),
    )
}

# Of beams, vLLM knows no more than these; others would be passed over there.
_WITH_BEAMS = {"do_sample", "num_beams", "num_return_sequences", "length_penalty", "max_new_tokens", "eos_token_id"}


def worded(ask: Ask, flavour: FlavourName, chat: bool, default_max_tokens: int) -> dict[str, Any]:
    """The body to send, without the model's name. Raises ApiFault for what the server cannot do."""
    body: dict[str, Any] = _talk(ask, flavour) if chat else {"prompt": _prompts(ask)}
    if ask.stream:
        body["stream"] = True
    if ask.include_leading and flavour != "danlu":
        message = f"include_leading: {DIALECTS[flavour].name} does not say which beam leads; leave it out"
        raise ApiFault(400, message, "stream_options", "unsupported")
    wishes = {"include_usage": ask.include_usage, "include_leading": ask.include_leading}
    if any(wishes.values()):
        body["stream_options"] = {wish: True for wish, is_given in wishes.items() if is_given}
    if ask.echo:
        body["echo"] = True
    if flavour == "danlu":
        knobs = _in_our_own_words(ask, default_max_tokens)
    else:
        knobs = _Translation(ask, DIALECTS[flavour], chat, default_max_tokens).made()
    if ask.only_echo:
        knobs.pop("max_new_tokens", None)
        knobs["max_tokens"] = 0
    if ask.kept is not None:
        knobs.pop("num_return_sequences", None)
        knobs |= {"best_of": ask.params.num_return_sequences, "n": ask.kept}
    if ask.prompt_logprobs is not None:
        knobs["prompt_logprobs"] = ask.prompt_logprobs
    return body | knobs


def _talk(ask: Ask, flavour: FlavourName) -> dict[str, Any]:
    """Messages, and what else shapes their prompt."""
    messages = [as_sent(message) for message in ask.prompts[0]]
    if ask.talk is None:
        return {"messages": messages}
    if flavour == "danlu":
        return {"messages": messages, **ask.talk.given}
    dialect = DIALECTS[flavour]
    for name in ask.talk.given.keys() - dialect.talk:
        message = f"the backend {dialect.name} cannot do {name}; leave it out, or ask a server with the backend danlu, "
        raise ApiFault(400, f"{message}which can", name, "unsupported_by_backend")
    return {"messages": messages, **choosing_among(ask.talk, dialect.choices)}


def repeats_prefix(flavour: FlavourName) -> bool:
    """Whether a whole answer that goes on with a message has that message in it."""
    return flavour != "danlu" and DIALECTS[flavour].repeats_prefix


def names_there(ask: Ask, flavour: FlavourName) -> dict[str, str]:
    """What the server calls a part of the request -> what the client called it."""
    if flavour == "danlu":
        return {}
    limit = ask.names.get("max_new_tokens", "max_new_tokens")
    names = {"max_tokens": limit, "max_completion_tokens": limit}
    return names | {there: ask.names.get(knob, knob) for knob, there in DIALECTS[flavour].knobs.items()}


def given_knobs(params: GenerationParams) -> dict[str, Any]:
    """The knobs that are not at their default, as JSON has them."""
    return params.model_dump(mode="json", exclude_defaults=True)


def _prompts(ask: Ask) -> Any:
    prompts = [prompt if isinstance(prompt, str) else list(prompt) for prompt in ask.prompts]
    return prompts[0] if len(prompts) == 1 else prompts


def _limit(ask: Ask, default: int) -> int:
    return ask.params.max_new_tokens or max(default, ask.params.min_new_tokens or 0)


def _in_our_own_words(ask: Ask, default_max_tokens: int) -> dict[str, Any]:
    knobs = {**given_knobs(ask.params), "do_sample": ask.params.do_sample}
    return knobs if ask.limited else knobs | {"max_new_tokens": _limit(ask, default_max_tokens)}


class _Translation:
    """One request, knob by knob."""

    def __init__(self, ask: Ask, dialect: Dialect, chat: bool, default_max_tokens: int) -> None:
        self._ask, self._dialect, self._chat = ask, dialect, chat
        self._default = default_max_tokens
        self._given = given_knobs(ask.params)
        self._body: dict[str, Any] = {}
        self._stop_ids: list[Any] = []

    def made(self) -> dict[str, Any]:
        ask, dialect = self._ask, self._dialect
        if not self._chat and not dialect.completions:
            raise ApiFault(400, f"{dialect.name} has no /completions; ask /v1/chat/completions", code="unsupported")
        if ask.echo and not dialect.echo:
            raise self._cannot("echo")
        if ask.kept is not None and (self._chat or not dialect.best_of):
            raise self._cannot("best_of")
        if ask.prompt_logprobs is not None and not dialect.prompt_logprobs:
            raise self._cannot("prompt_logprobs")
        for knob, value in self._given.items():
            if knob not in _WORDED:
                self._put(self._name(knob), value)
        self._put(dialect.chat_limit if self._chat else "max_tokens", _limit(ask, self._default))
        worders: dict[str, Callable[[Any], None]] = {
            "stop_sequences": self._stops,
            "include_stop": self._keep_stop,
            "eos_token_id": self._ends,
            "stop_token_ids": lambda ids: self._stop_at("stop_token_ids", [[token] for token in ids]),
            "logprobs": self._logprobs,
            "json_schema": self._schema,
            "regex": self._regex,
            "num_beams": self._beams,
        }
        for knob, word in worders.items():
            if knob in self._given:
                word(self._given[knob])
        if self._stop_ids:
            self._put(dialect.stop_ids, self._stop_ids)
        self._drawing()
        return self._body

    # -- one knob each

    def _name(self, knob: str) -> str:
        if knob not in self._dialect.knobs:
            raise self._cannot(knob)
        return self._dialect.knobs[knob]

    def _stops(self, sequences: list[str | list[int]]) -> None:
        texts = [words for words in sequences if isinstance(words, str)]
        if texts:
            self._put("stop", texts)
        self._stop_at("stop_sequences", [words for words in sequences if not isinstance(words, str)])

    def _stop_at(self, knob: str, lists: list[list[int]]) -> None:
        if not lists:
            return
        if not self._dialect.stop_ids:
            raise self._cannot(knob, "as token ids")
        if self._dialect.stop_id_lists:
            self._stop_ids += lists
        elif all(len(ids) == 1 for ids in lists):
            self._stop_ids += [token for ids in lists for token in ids]
        else:
            raise self._cannot(knob, "of several token ids", "give it as text")

    def _keep_stop(self, _: bool) -> None:
        if not self._dialect.include_stop:
            raise self._cannot("include_stop")
        self._put(self._dialect.include_stop, True)

    def _ends(self, tokens: int | list[int]) -> None:
        if not self._dialect.ignore_eos:
            raise self._cannot("eos_token_id")
        self._put("ignore_eos", True)
        self._stop_at("eos_token_id", [[token] for token in ([tokens] if isinstance(tokens, int) else tokens)])

    def _logprobs(self, top: int) -> None:
        if self._chat:
            self._put("logprobs", True)
            if alternatives := max(top, self._dialect.least_alternatives):
                self._put("top_logprobs", alternatives)
        elif self._dialect.completion_logprobs:
            self._put("logprobs", top)
        else:
            raise self._cannot("logprobs", "in completions", "ask /v1/chat/completions")

    def _schema(self, schema: dict[str, Any]) -> None:
        if not self._chat and not self._dialect.completion_schema:
            raise self._cannot("json_schema", "in completions", "ask /v1/chat/completions")
        form: dict[str, Any] = {"type": "json_object"}
        if schema != {"type": "object"}:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        self._put("response_format", form)

    def _regex(self, expression: str) -> None:
        if not self._dialect.regex:
            raise self._cannot("regex")
        self._put(self._dialect.regex, expression)

    def _beams(self, beams: int) -> None:
        if not self._dialect.beams or self._ask.params.do_sample:
            raise self._cannot("num_beams", "that draw" if self._dialect.beams else "")
        for knob in self._given.keys() - _WITH_BEAMS:
            raise self._cannot(knob, "together with num_beams")
        if self._ask.stream:
            raise self._cannot("stream", "together with num_beams")
        if self._stop_ids:
            raise self._cannot("eos_token_id", "together with num_beams", "give an empty list")
        self._put("use_beam_search", True)
        self._put("n", beams)  # as many answers come as there are beams, the best first

    def _drawing(self) -> None:
        """Whether to draw, and what the client left open."""
        if not self._ask.params.do_sample:
            self._put("temperature", 0.0)
        if self._ask.params.num_beams > 1:
            return
        for name, value in self._dialect.neutral.items():
            self._body.setdefault(name, value)

    # -- helpers

    def _put(self, name: str, value: Any) -> None:
        *path, last = name.split(".")
        place = self._body
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value

    def _cannot(self, knob: str, how: str = "", instead: str = "leave it out") -> ApiFault:
        name = self._ask.names.get(knob, knob)
        what = f"{name} {how}".rstrip()
        return ApiFault(
            400,
            f"the backend {self._dialect.name} cannot do {what}; {instead}, or ask a server with the backend danlu, "
            "which can",
            name,
            "unsupported_by_backend",
        )
