"""The page that starts a run: a form made of the recipe's own declaration, and the YAML that it says."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from danlu.chain import Chain
from danlu.config import Options
from danlu.errors import ConfigError
from danlu.journal import is_run
from danlu.ui import starting
from danlu.ui.forms import fields_of
from danlu.ui.guard import ROOT
from danlu.ui.requests import as_json, asked_language, at_work, read_body
from danlu.ui.runs import Runs
from danlu.ui.series import Kept
from danlu.ui.site import Site


class StartBody(Options):
    """A form: its kind and what was typed in; or a recipe as YAML, which is then taken as it is."""

    kind: str = Field("sft", max_length=40)
    typed: dict[str, str] = Field(default_factory=dict, max_length=500)
    text: str | None = Field(None, max_length=200_000)
    replace: bool = False


class RunBody(Options):
    """A run of the folder."""

    run: str = Field(max_length=300)


def add(app: FastAPI, site: Site) -> None:
    """Routes below /ui/api/start. Those that do something refuse where nobody has asked for them."""
    runs = Runs(site.runs, Kept())

    def check() -> None:
        if not site.options.start_runs:
            raise ConfigError(
                "these pages start no runs", fix="danlu ui --start_runs; who sees the pages can do it then"
            )

    @app.get(f"{ROOT}/api/start")
    async def form(request: Request, kind: str = "sft") -> Response:
        fields = await at_work(partial(_fields, kind, asked_language(request)))
        head = {"kinds": starting.kinds(), "templates": starting.templates(), "runs": str(site.runs)}
        return as_json({**head, "allowed": site.options.start_runs, "fields": fields})

    @app.get(f"{ROOT}/api/start/template")
    async def template(name: str) -> Response:
        return as_json(await at_work(partial(starting.typed_of, name)))

    @app.post(f"{ROOT}/api/start/check")
    async def checked(request: Request) -> Response:
        body = await read_body(request, StartBody)
        return as_json(await at_work(partial(_read, body, site)))

    @app.post(f"{ROOT}/api/start")
    async def start(request: Request) -> Response:
        check()
        body = await read_body(request, StartBody)
        return as_json(await at_work(partial(_start, body, site)))

    @app.post(f"{ROOT}/api/start/stop")
    async def stop(request: Request) -> Response:
        check()
        body = await read_body(request, RunBody)
        await at_work(lambda: starting.stop(runs.at(body.run)))
        return as_json({"run": body.run})

    @app.post(f"{ROOT}/api/start/resume")
    async def resume(request: Request) -> Response:
        check()
        body = await read_body(request, RunBody)
        return as_json({"process": await at_work(lambda: starting.resume(runs.at(body.run), site.runs))})

    @app.get(f"{ROOT}/api/start/printed")
    async def printed(name: str) -> Response:
        if re.fullmatch(r"\w[\w.-]*", name) is None:
            raise ConfigError(f"no run is called {name!r:.100}")
        text = await at_work(partial(starting.printed, name, site.runs))
        return as_json({"text": text, "is_there": is_run(site.runs / name)})


def _fields(kind: str, language: str) -> list[dict[str, Any]]:
    hidden = ("kind", "runs", "resume")
    return [field for field in fields_of(starting.recipe_model(kind), language) if field["name"] not in hidden]


def _read(body: StartBody, site: Site) -> dict[str, Any]:
    if body.text is None:
        recipe, text = starting.recipe_of(body.kind, body.typed, site.runs)
        return {"yaml": text, "name": recipe.name, "exists": is_run(recipe.directory)}
    found, text = starting.read_text(body.text, site.runs)
    return {"yaml": text, "name": found.name, "exists": is_run(found.directory)}


def _start(body: StartBody, site: Site) -> dict[str, Any]:
    """An earlier run of that name is moved aside only where that was said; a chain goes on with its own."""
    if body.text is None:
        recipe, text = starting.recipe_of(body.kind, body.typed, site.runs)
    else:
        found, text = starting.read_text(body.text, site.runs)
        recipe = found  # type: ignore[assignment]
    if is_run(recipe.directory) and not body.replace and not isinstance(recipe, Chain):
        raise ConfigError(
            f"a run {recipe.name} is there", fix="choose another name, or say that it is to be moved aside"
        )
    return {"process": starting.start(recipe.name, text, site.runs), "run": recipe.name}
