"""The page of decoding: one prompt, answered under knobs that were typed in, with what each token was chosen from."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from danlu.config import Options
from danlu.errors import ConfigError
from danlu.generate.engine import Engine, Prompt
from danlu.generate.params import GenerationParams
from danlu.generate.scores.text import TokenNames
from danlu.generate.watching.trace import TracedAnswer
from danlu.generate.words import Words as Phrase
from danlu.ui.forms import fields_of, read
from danlu.ui.guard import ROOT
from danlu.ui.requests import as_json, asked_language, at_work, read_body
from danlu.ui.site import Site
from danlu.ui.words import dictionary

NEW_TOKENS = 24  # where the page asks for no limit: each token is drawn with all its candidates
MOST_TOKENS = 4096  # rows times tokens of one request
_AT_ONCE = 2  # requests that are traced; others wait

# Knobs by what they do, in the order of the form; what is not named here stands last.
GROUPS = {
    "length": ("max_new_tokens", "min_new_tokens", "stop_sequences", "include_stop"),
    "drawing": (
        "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "num_return_sequences",
    ),
    "penalties": (
        "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "bad_words",
        "logit_bias",
    ),
    "beams": ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping"),
    "words": ("force_words", "regex", "choices", "json_schema", "grammar"),
}  # fmt: skip
# What a slider spans where the declaration's own bounds are too wide to be dragged: (from, to, step).
_SPANS = {
    "max_new_tokens": (1, 128, 1), "min_new_tokens": (0, 64, 1), "temperature": (0.05, 2, 0.05), "top_k": (1, 100, 1),
    "top_p": (0.05, 1, 0.01), "min_p": (0, 1, 0.01), "typical_p": (0.05, 1, 0.01), "repetition_penalty": (0.8, 2, 0.05),
    "presence_penalty": (-2, 2, 0.1), "frequency_penalty": (-2, 2, 0.1), "no_repeat_ngram_size": (0, 8, 1),
    "num_beams": (1, 12, 1), "num_beam_groups": (1, 6, 1), "diversity_penalty": (0, 5, 0.1),
    "length_penalty": (-2, 3, 0.1), "num_return_sequences": (1, 12, 1),
}  # fmt: skip


class DecodeBody(Options):
    """What the page asks.

    Attributes:
        raw: the prompt is continued as it is.
        begin: token ids that the answer begins with: those that were kept, and the one that was clicked.
        knobs: name -> what was typed in, as YAML.
    """

    prompt: str = Field(max_length=200_000)
    system: str = Field("", max_length=200_000)
    raw: bool = False
    begin: tuple[int, ...] = Field((), max_length=MOST_TOKENS)
    knobs: dict[str, str] = Field(default_factory=dict, max_length=64)
    top: int = Field(8, ge=1, le=20)


def add(app: FastAPI, site: Site) -> None:
    """Routes below /ui/api/decode."""
    free = asyncio.Semaphore(_AT_ONCE)

    @app.get(f"{ROOT}/api/decode")
    async def form(request: Request) -> Response:
        model = site.model
        head = {"model": model.name, "state": model.state, "fault": model.fault}
        kind = (await model.engine.akind()).kind if model.state == "ready" else None
        return as_json({**head, "kind": kind, "groups": _form(asked_language(request))})

    @app.post(f"{ROOT}/api/decode")
    async def decode(request: Request) -> Response:
        body = await read_body(request, DecodeBody)
        async with free:
            return as_json(await at_work(partial(traced, site.model.engine, site.model.name, body)))


def _form(language: str) -> list[dict[str, Any]]:
    """Groups of fields, each with its span and the notes' advice."""
    words = dictionary(language)
    fields = {field["name"]: field for field in fields_of(GenerationParams, language)}
    for name, field in fields.items():
        if name in _SPANS:
            field["span"] = _SPANS[name]
        if (advice := f"advice.{name}") in words:
            field["advice"] = words[advice]
    fields["max_new_tokens"]["default"] = str(NEW_TOKENS)
    named = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "rest": tuple(name for name in fields if name not in named)}
    return [{"name": name, "fields": [fields[one] for one in names]} for name, names in groups.items()]


def traced(engine: Engine, model: str, body: DecodeBody) -> dict[str, Any]:
    """The trace, where forced phrases stand in its answers, and the request as programs would write it."""
    params = read(GenerationParams, body.knobs, "the knobs")
    if params.max_new_tokens is None and params.max_length is None:
        params = params.model_copy(update={"max_new_tokens": NEW_TOKENS})
    _check_size(engine, params)
    asked = _asked(engine, body)
    ids = [*engine.token_ids(asked), *body.begin]
    started = time.perf_counter()
    trace = engine.trace(ids, params, body.top)
    seconds = time.perf_counter() - started
    names = TokenNames(engine.chat.tokenizer)
    return {
        "trace": {**asdict(trace), "has_beams": trace.has_beams},
        "begin": [{"id": token, "text": names.data(token).decode("utf-8", "backslashreplace")} for token in body.begin],
        "forced": [list(_places(answer, params, names)) for answer in trace.answers],
        "seconds": seconds,
        "model": model,
        "messages": None if isinstance(asked, str) else asked,
        "knobs": params.model_dump(mode="json", exclude_defaults=True),
    }


def _asked(engine: Engine, body: DecodeBody) -> Prompt:
    if body.raw or engine.kind().is_base:
        return body.prompt
    system = [{"role": "system", "content": body.system}] if body.system else []
    return [*system, {"role": "user", "content": body.prompt}]


def _check_size(engine: Engine, params: GenerationParams) -> None:
    """Raise ConfigError for more than a page can show."""
    tokens = engine.rows(params) * (params.max_new_tokens or params.max_length or 0)
    if tokens > MOST_TOKENS:
        raise ConfigError(
            f"{tokens:,} tokens with their candidates",
            allowed=f"{MOST_TOKENS:,} on a page: beams or answers, times max_new_tokens",
            fix="lower max_new_tokens; danlu generate --show_json has no such limit",
        )


def _places(answer: TracedAnswer, params: GenerationParams, names: TokenNames) -> Iterator[tuple[int, int]]:
    """From which token to which (without it) each forced phrase stands, where it does."""
    for alternatives in params.forced:
        found = (_place(answer, phrase, names) for phrase in alternatives)
        yield from [place for place in found if place is not None][:1]


def _place(answer: TracedAnswer, phrase: Phrase, names: TokenNames) -> tuple[int, int] | None:
    ids = [token.id for token in answer.tokens]
    if isinstance(phrase, str):
        return _place_of_text([names.data(token) for token in ids], phrase.encode())
    starts = (at for at in range(len(ids)) if tuple(ids[at : at + len(phrase)]) == tuple(phrase))
    return next(((at, at + len(phrase)) for at in starts), None)


def _place_of_text(parts: Sequence[bytes], phrase: bytes) -> tuple[int, int] | None:
    """As bytes: a token may tear a character."""
    at = b"".join(parts).find(phrase)
    if at < 0:
        return None
    ends = list(accumulate(map(len, parts)))
    return bisect_right(ends, at), bisect_left(ends, at + len(phrase)) + 1
