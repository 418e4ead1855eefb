"""Answers: one, a talk, or a server's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from danlu.answering import begun, check_prefill, no_talk, notes_on_end, prompt_for, system_message
from danlu.commands.shared import OUT, Flat, GivenPath, news, say, some
from danlu.config import Options
from danlu.errors import ConfigError, disk_faults
from danlu.flags import as_flags, from_flags
from danlu.generate.batch.eight_bit import KvDtype
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.model.named import ModelOptions
from danlu.report.decoding import TOKENS, show_trace
from danlu.serve.options import BackendOptions, ServeOptions, adapters_named, collections_named
from danlu.terminal import show
from danlu.ui.options import PageOptions

# A command line wants a whole answer where the engine, like transformers, would stop after 20 tokens.
ANSWER_TOKENS = 256

# How a model is held; its name stands before the flags.
_HELD = ("dtype", "adapter", "kind", "accept_licence")
HeldOptions = some("HeldOptions", ModelOptions, _HELD)
ServedOptions = some("ServedOptions", ModelOptions, [name for name in _HELD if name != "adapter"])

if TYPE_CHECKING:
    from fastapi import FastAPI

    from danlu.serve.backends import Backend

    Knobs = GenerationParams
    Serving = ServeOptions
    Backends = BackendOptions
    Showing = PageOptions
    HeldFlags = Options
    ServedFlags = Options
else:
    Knobs = as_flags(GenerationParams, max_new_tokens=ANSWER_TOKENS)
    Serving, Backends, Showing = map(as_flags, (ServeOptions, BackendOptions, PageOptions))
    HeldFlags, ServedFlags = map(as_flags, (HeldOptions, ServedOptions))


def generate(
    model: str,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    params: Annotated[Knobs, Flat] = Knobs(),  # noqa: B008 - frozen
    system: str | None = None,
    prefill: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    raw: bool = False,
    show: bool = False,
    show_tokens: int | None = None,
    show_json: GivenPath | None = None,
    kv_dtype: KvDtype = "auto",
    held: Annotated[HeldFlags, Flat] = HeldFlags(),  # noqa: B008 - frozen
) -> None:
    """Answer one prompt. A base model continues it as it is.

    Parameters
    ----------
    model
        a name that `danlu models` lists, a directory, a .gguf file, or a hub id
    prompt
        what the user says, or a text to go on with; "-" reads it from standard input
    system
        a system message before it
    prefill
        how the answer begins; the model goes on from there
    raw
        continue the prompt as plain text, without the chat template
    show
        draw what each token was chosen from and which knob dropped what, and beams as a tree
    show_tokens
        of each answer, draw so many tokens; 8 without it
    show_json
        file for what --show draws, whole and as JSON
    kv_dtype
        what keys and values are held in: auto is the model's own format, int8 takes about half of it
    """
    knobs = knobs_of(params)
    check_prefill(prefill)
    for flag, given in (("--system", system), ("--prefill", prefill)):
        if raw and given is not None:
            raise ConfigError(f"{flag} has no effect with --raw", fix="leave one of them out")
    if show_tokens is not None and not (show and show_tokens > 0):
        raise ConfigError(f"--show_tokens {show_tokens}", allowed="1 or more, beside --show")
    text = _standard_input() if prompt == "-" else prompt
    adapter, engine = engine_of(model, held, kv_dtype)
    asked = text if raw else prompt_for(engine, adapter or model, text, system, news, prefill)
    if not (show or show_json):
        streamed(engine, asked, knobs, prefill or "")
        return
    trace = engine.trace(asked, knobs)
    for answer in trace.answers:
        say((prefill or "") + answer.text)
        _tell(notes_on_end(len(answer.tokens), answer.finish_reason, knobs))
    if show_json:
        with disk_faults(show_json, "the trace"):
            show_json.write_text(trace.to_json(), encoding="utf-8")
    if show:
        show_trace(OUT, trace, show_tokens or TOKENS)


def engine_of(model: str, held: Options, kv_dtype: KvDtype) -> tuple[str | None, Engine]:
    """The adapter that is named, and the engine with it."""
    chosen = from_flags(HeldOptions, held).model_dump()
    return chosen["adapter"], Engine(model, say=news, kv_dtype=kv_dtype, **chosen)


def chat(
    model: str,
    /,
    *,
    params: Annotated[Knobs, Flat] = Knobs(),  # noqa: B008 - frozen
    system: str | None = None,
    prefill: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    kv_dtype: KvDtype = "auto",
    held: Annotated[HeldFlags, Flat] = HeldFlags(),  # noqa: B008 - frozen
) -> None:
    """Talk with a model. An empty line or Ctrl-D ends the talk; /new starts another.

    Parameters
    ----------
    model
        a name that `danlu models` lists, a directory, a .gguf file, or a hub id
    system
        a system message at the beginning
    prefill
        how each answer begins; the model goes on from there
    kv_dtype
        what keys and values are held in: auto is the model's own format, int8 takes about half of it
    """
    knobs = knobs_of(params)
    check_prefill(prefill)
    adapter, engine = engine_of(model, held, kv_dtype)
    if (finding := engine.kind()).is_base:
        raise no_talk(adapter or model, finding)
    news("an empty line or Ctrl-D ends the talk; /new starts another")
    messages = system_message(system)
    while line := _ask():
        if line == "/new":
            messages = system_message(system)
            continue
        messages.append({"role": "user", "content": line})
        asked = begun(engine, messages, prefill)
        messages.append({"role": "assistant", "content": streamed(engine, asked, knobs, prefill or "")})


def serve(
    model: str | None = None,
    /,
    *,
    options: Annotated[Serving, Flat] = Serving(),  # noqa: B008 - frozen
    backend: Annotated[Backends, Flat] = Backends(),  # noqa: B008 - frozen
    held: Annotated[ServedFlags, Flat] = ServedFlags(),  # noqa: B008 - frozen
    adapter: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    collection: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    ui: GivenPath | None = None,
    pages: Annotated[Showing, Flat] = Showing(),  # noqa: B008 - frozen
) -> None:
    """Answer over HTTP as OpenAI's API does. Ctrl-C ends it when running requests are done; a second one, at once.

    Parameters
    ----------
    model
        a name that `danlu models` lists, a directory, a .gguf file, or a hub id; with --backend openai the other
        server's name for its model, needed where it has several
    adapter
        NAME=DIRECTORY serves a LoRA adapter beside the model, as a model of that name; may be given several times.
        DIRECTORY alone puts a PEFT adapter on the model itself; the model without it is then served as "base"
    collection
        NAME=FOLDER lets clients ask that collection, at /v1/recall and in chats; may be given several times.
        Others are not to be reached
    ui
        folder of run directories: shows pages under /ui as well, about its runs, this model and these collections
    """
    from danlu.serve.command import serve_model  # the web framework is for this command alone

    own, named = adapters_named(adapter or ())
    chosen = from_flags(ServedOptions, held).model_dump()
    loading = ModelOptions(name=model or "", adapter=own, **chosen)
    listening, answering = from_flags(ServeOptions, options), from_flags(BackendOptions, backend)
    shelves = collections_named(collection or ())
    showing = from_flags(PageOptions, pages)
    if ui is None and showing != PageOptions():
        raise ConfigError("what says how pages are shown has no effect without --ui", fix="name the folder: --ui runs")
    beside = None if ui is None else partial(_pages, ui, showing, shelves)
    serve_model(loading, named, listening, answering, shelves, beside, say=say, news=news)


def _pages(
    runs: Path, options: PageOptions, collections: Mapping[str, Path], backend: Backend, listening: ServeOptions
) -> FastAPI:
    """The pages of `danlu serve`: their model is the one that is served, where it is in this process."""
    from danlu.serve.backends import OwnEngine
    from danlu.ui.app import make_pages
    from danlu.ui.site import Model, Site

    service = backend.service if isinstance(backend, OwnEngine) else None
    model = Model() if service is None else Model(service.model_name, service.engine)
    return make_pages(Site(runs, options, model, collections), listening)


def _ask() -> str:
    try:
        return OUT.input("[bold]you[/] ", markup=True).strip()
    except EOFError:
        return ""


def _standard_input() -> str:
    import sys

    return sys.stdin.read()


def knobs_of(flags: GenerationParams) -> GenerationParams:
    params = from_flags(GenerationParams, flags)
    if params.max_new_tokens is None and params.max_length is None:
        return params.model_copy(update={"max_new_tokens": ANSWER_TOKENS})
    return params


def streamed(engine: Engine, prompt: Any, params: GenerationParams, prefill: str = "") -> str:
    """Print an answer as it grows, after what it begins with; returns the whole."""
    answers = []
    if params.num_return_sequences == 1:
        show(OUT, prefill, end="")
    for event in engine.stream(prompt, params):
        if params.num_return_sequences == 1:
            show(OUT, event.text, end="")
        if event.answer is not None:
            answers.append(prefill + event.answer.text)
            show(OUT, "" if params.num_return_sequences == 1 else answers[-1])
            made = event.answer
            _tell(notes_on_end(len(made.token_ids), made.finish_reason, params, made.forced))
    return answers[0]


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        news(note)
