"""What the commands share: where they write, and options as flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token
from pydantic import create_model

from danlu.config import Options
from danlu.terminal import new_console, show

Flat = Parameter(name="*")
Several = Parameter(consume_multiple=True)


def _from_home(_: Any, tokens: Sequence[Token]) -> Path:
    return Path(tokens[0].value).expanduser()


# A shell leaves the ~ of --held_out=~/rows.jsonl as it is.
GivenPath = Annotated[Path, Parameter(converter=_from_home)]

DEFAULT_MODEL = "smollm2-135m"

OUT = new_console()
ERRORS = new_console(stderr=True)


def say(text: str) -> None:
    show(OUT, text)


def news(text: str) -> None:
    """A line about the work, apart from what the command was asked for."""
    show(ERRORS, text)


def some(name: str, of: type[Options], names: Iterable[str]) -> type[Options]:
    """Options of these names, declared where `of` is."""
    declared: dict[str, Any] = {key: (of.model_fields[key].annotation, of.model_fields[key]) for key in names}
    return create_model(name, __base__=Options, **declared)
