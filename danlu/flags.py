"""Options that are lists or mappings, as flags of the command line.

A flag holds one word, or JSON; given several times, its values add up: `--stop_sequences END --stop_sequences
'[[50, 51], "."]'` are three stop sequences. A mapping may also stand in a file: `--json_schema @form.json`. Knows no
particular option; the options' own model checks the values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel, Field, ValidationError, create_model

from danlu.config import Options, describe_faults
from danlu.errors import ConfigError

AnyOptions = TypeVar("AnyOptions", bound=Options)
Words = Annotated[list[Any] | None, Parameter(consume_multiple=False)]


def as_flags(options: type[AnyOptions]) -> type[AnyOptions]:
    """A model of the same options in which lists and mappings are words. Give it to cyclopts, then to `from_flags`."""
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in options.model_fields.items()}
    for name, field in options.model_fields.items():
        if _kinds(field.annotation) & {tuple, dict}:
            fields[name] = (Words, Field(None, description=field.description))
    return cast(type[AnyOptions], create_model(options.__name__, __config__=options.model_config, **fields))


def from_flags(options: type[AnyOptions], flags: BaseModel) -> AnyOptions:
    """The options that the flags say. Raises ConfigError."""
    given = {name: getattr(flags, name) for name in flags.model_fields_set}
    for name, value in given.items():
        kinds = _kinds(options.model_fields[name].annotation)
        if kinds & {tuple, dict}:
            given[name] = _joined(name, value, is_mapping=dict in kinds)
    try:
        return options.model_validate(given)
    except ValidationError as error:
        faults = [fault.removeprefix("(whole): ") for fault in describe_faults(error)]
        raise ConfigError("\n".join(faults)) from None


def _kinds(annotation: Any) -> set[Any]:
    return {get_origin(arm) or arm for arm in (annotation, *get_args(annotation))}


def _joined(name: str, words: Sequence[Any], is_mapping: bool) -> Any:
    values = [_read(name, _from_file(name, word) if is_mapping else word) for word in words]
    if is_mapping and all(isinstance(value, dict) for value in values):
        return {key: entry for value in values for key, entry in value.items()}
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _from_file(name: str, word: Any) -> Any:
    """The text of the file that a word such as @form.json names; any other word as it is."""
    if not isinstance(word, str) or not word.startswith("@"):
        return word
    try:
        return Path(word[1:]).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {word}: {error}", fix="@ stands before the path of a JSON file") from error


def _read(name: str, word: Any) -> Any:
    """cyclopts has read valid JSON already."""
    if not isinstance(word, str) or not word.startswith(("[", "{")):
        return word
    try:
        return json.loads(word)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}: {word!r} is not valid JSON: {error}", fix='quote it: \'["a", "b"]\'') from None
