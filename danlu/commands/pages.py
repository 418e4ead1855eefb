"""Pages to look at."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from danlu.commands.answering import ServedFlags, ServedOptions
from danlu.commands.shared import Flat, GivenPath, news, say, some
from danlu.config import Options
from danlu.errors import ConfigError
from danlu.flags import as_flags, from_flags
from danlu.generate.engine import Engine
from danlu.serve.options import ServeOptions, collections_named
from danlu.ui.options import PageOptions

PORT = 8090  # beside a server on its own 8000
ListenOptions = some("ListenOptions", ServeOptions, ("host", "port", "api_key", "api_key_file"))

if TYPE_CHECKING:
    Listening = Options
    Showing = Options
else:
    Listening = as_flags(ListenOptions, port=PORT)
    Showing = as_flags(PageOptions)


def ui(
    runs: GivenPath = Path("runs"),
    /,
    *,
    model: str | None = None,
    adapter: str | None = None,
    collection: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    options: Annotated[Showing, Flat] = Showing(),  # noqa: B008 - frozen
    listening: Annotated[Listening, Flat] = Listening(),  # noqa: B008 - frozen
    held: Annotated[ServedFlags, Flat] = ServedFlags(),  # noqa: B008 - frozen
) -> None:
    """Open pages in a browser: runs as they go, how tokens are chosen, memory, data, collections, evaluations.

    Parameters
    ----------
    runs
        folder that holds the run directories
    model
        the model whose decoding is looked at: a name, a directory, a .gguf file, or a hub id
    adapter
        directory of a LoRA adapter on that model
    collection
        NAME=FOLDER is a collection to look into; may be given several times
    """
    from danlu.ui.command import serve_pages  # the web framework is for this command alone
    from danlu.ui.site import Model, Site

    chosen = from_flags(ServedOptions, held).model_dump()
    if model is None and (adapter is not None or chosen != ServedOptions().model_dump()):
        raise ConfigError("what says how a model is held has no effect without --model", fix="name one: --model NAME")
    held_model = Model(model or "")
    site = Site(runs, from_flags(PageOptions, options), held_model, collections_named(collection or ()))
    for name, folder in site.collections.items():
        if not folder.is_dir():
            raise ConfigError(f"--collection {name}={folder}: no such folder")
    if model is not None:
        held_model.begin(partial(Engine, model, adapter=adapter, say=news, **chosen), news)
    serve_pages(site, _listening(from_flags(ListenOptions, listening)), say)


def _listening(options: Options) -> ServeOptions:
    return ServeOptions(**{"port": PORT, **options.model_dump(exclude_unset=True)})
