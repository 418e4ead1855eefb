"""`danlu serve`: options -> a backend and an embedder -> a server that runs until it is told to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fastapi import FastAPI

from danlu.device import QUANTIZED
from danlu.errors import ConfigError, size_in_words
from danlu.generate.engine import Engine
from danlu.hub import EMBEDDERS, Say, cache_directory, resolve
from danlu.model.named import ModelOptions
from danlu.recall.embed import Embedder
from danlu.serve.api import make_app_over
from danlu.serve.backends import Backend, OwnEngine
from danlu.serve.embeddings import Embeddings
from danlu.serve.keys import with_key
from danlu.serve.options import BackendOptions, ServeOptions
from danlu.serve.others.remote import KEY_VARIABLE, Remote, only_model
from danlu.serve.others.vllm import START_TIMEOUT_SECONDS, vllm_server
from danlu.serve.recalls import Recalls
from danlu.serve.server import listen, serve
from danlu.serve.service import Service

# The pages beside a backend; whoever asks for them makes them, as they stand above this room.
MakePages = Callable[[Backend, ServeOptions], FastAPI]

_LENGTH = 2048  # tokens of a text, where it is told how many fit


def serve_model(
    loading: ModelOptions,
    named: Mapping[str, str],
    options: ServeOptions,
    chosen: BackendOptions,
    collections: Mapping[str, Path],
    pages: MakePages | None = None,
    *,
    say: Say,
    news: Say,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        loading: which model; its name is empty where none was given.
        named: further adapters, name -> directory.
        collections: those that clients may ask, name -> folder.
        pages: what answers at /ui.
        say: hears when the server is ready.
        news: hears of slow work before.

    Raises ConfigError for options without effect, and what making the backend raises.
    """
    _check(loading, named, chosen)
    options = with_key(options, os.environ)
    embeddings = _embeddings(chosen, options, news)
    recalls = Recalls(collections, options) if collections else None  # a slip in a path shows now
    try:
        with listen(options) as taken, _backend(loading, named, options, chosen, news) as backend:
            if embeddings is not None and embeddings.name not in EMBEDDERS:
                embeddings.load()  # a slip in a name or a path shows now
            beside = None if pages is None else pages(backend, options)
            serve(make_app_over(backend, embeddings, recalls, beside), options, taken, say)
    finally:
        for one in (embeddings, recalls):
            if one is not None:
                one.close()


def _check(loading: ModelOptions, named: Mapping[str, str], chosen: BackendOptions) -> None:
    if chosen.backend != "openai" and not loading.name:
        raise ConfigError("no model given", fix="danlu serve MODEL; `danlu models` lists names")
    vain = {
        "openai": ("dtype", "adapter", "kind", "accept_licence"), "vllm": ("adapter", "kind"), "danlu": (),
    }[chosen.backend]  # fmt: skip
    if chosen.backend == "vllm" and loading.dtype in QUANTIZED:
        raise ConfigError(f"--dtype {loading.dtype} with --backend vllm", allowed="auto, float32, bfloat16, float16")
    for name in vain:
        if getattr(loading, name) != ModelOptions.model_fields[name].default or (name == "adapter" and named):
            fix = "danlu merge makes one model of base and adapter" if name == "adapter" else "leave it out"
            raise ConfigError(f"--{name} has no effect with --backend {chosen.backend}", fix=fix)


def _embeddings(chosen: BackendOptions, options: ServeOptions, news: Say) -> Embeddings | None:
    if chosen.embedder == "none":
        return None
    return Embeddings(_short(chosen.embedder), lambda: Embedder(chosen.embedder, say=news), options)


@contextmanager
def _backend(
    loading: ModelOptions, named: Mapping[str, str], options: ServeOptions, chosen: BackendOptions, news: Say
) -> Iterator[Backend]:
    """The backend, ended on the way out."""
    name = options.served_model_name or _short(loading.name)
    if chosen.backend == "openai":
        assert chosen.base_url is not None, "checked by the options"
        key = os.environ.get(KEY_VARIABLE) or None
        upstream = loading.name or only_model(chosen.base_url, key)
        yield Remote(
            chosen.base_url,
            options,
            flavour=chosen.flavour or "openai",
            upstream_name=upstream,
            model_name=options.served_model_name or upstream,
            key=key,
        )
    elif chosen.backend == "vllm":
        directory = resolve(loading.name, cache=cache_directory(), say=news, accept_licence=loading.accept_licence)
        seconds = chosen.start_timeout_seconds or START_TIMEOUT_SECONDS
        with vllm_server(directory, name, loading.dtype, chosen.vllm_arguments or "", seconds, news) as running:
            yield Remote(
                running.base_url,
                options,
                flavour="vllm",
                upstream_name=name,
                model_name=name,
                why_down=running.why_down,
            )
    else:
        engine = Engine(
            loading.name,
            dtype=loading.dtype,
            adapter=loading.adapter,
            kv_dtype=chosen.kv_dtype,
            kind=loading.kind,
            accept_licence=loading.accept_licence,
            say=news,
        )
        try:
            for adapter, place in named.items():
                engine.load_adapter(adapter, place)
            service = Service(engine, options, name)
            for note in [*room_of(engine), *service.notes()]:
                news(note)
            yield OwnEngine(service)
        finally:
            engine.close()


def room_of(engine: Engine) -> list[str]:
    """How many texts the memory for keys and values holds; counted as `danlu plan memory` counts it.

    Nothing for a model that reads each text by itself, and keeps nothing of it.
    """
    if engine.core.why_alone:
        return []
    store = engine.core.store
    each = store.shape.slot_bytes(1, _LENGTH)
    return [
        f"keys and values may take {size_in_words(store.budget_bytes)}: {store.budget_bytes // each:,} texts of "
        f"{_LENGTH:,} tokens at once, {each / _LENGTH:,.0f} bytes a token"
    ]


def _short(name: str) -> str:
    """What clients call a model: its directory's name, or the name itself."""
    return Path(name).resolve().name if Path(name).exists() else name
