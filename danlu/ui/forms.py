"""A declaration of options -> the fields of a form, and what was typed into it -> the options.

What stands in a field is the text of a YAML value, as behind the = of a command line: a form, a recipe and an override
say the same thing in the same way, and are read by the same code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from danlu.config import AnyOptions, apply_overrides, described, section_of, validate
from danlu.help import options

_NUMBERS = {"integer", "number"}


def fields_of(model: type[BaseModel], language: str, prefix: str = "") -> list[dict[str, Any]]:
    """A form's fields, in the order of their declaration.

    Each: name (dotted), kind (bool, choice, int, float, text, lines, yaml or section), default as YAML, meaning in the
    language, bounds where there are any; of a section, its fields, and whether it may be left out.
    """
    schema = model.model_json_schema()
    meanings = {name: (default, meaning) for name, default, meaning in described(model)}
    found = []
    for name, field in model.model_fields.items():
        default, meaning = meanings[name]
        said = meaning if language == "en" else options().get(meaning, meaning)
        one: dict[str, Any] = {"name": prefix + name, "default": default, "meaning": said}
        section = section_of(field.annotation)
        if section is not None:
            is_out = not field.is_required() and field.get_default(call_default_factory=True) is None
            inner = fields_of(section, language, f"{prefix}{name}.")
            found.append({**one, "kind": "section", "fields": inner, "is_out": is_out})
        else:
            found.append({**one, "required": field.is_required(), **_kind(schema["properties"][name], schema)})
    return found


def _kind(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """What a value may be, by its JSON schema."""
    arms = [_resolved(arm, root) for arm in schema.get("anyOf", [schema])]
    may_be_null = any(arm.get("type") == "null" for arm in arms)
    arms = [arm for arm in arms if arm.get("type") != "null"]
    kinds = {str(arm.get("type")) for arm in arms}
    choices = [json.dumps(value) if isinstance(value, bool) else str(value) for arm in arms for value in _values(arm)]
    if choices and all(_values(arm) for arm in arms):
        kind: dict[str, Any] = {"kind": "bool"} if choices == ["false", "true"] else {"kind": "choice"}
        kind |= {} if kind["kind"] == "bool" else {"choices": choices}
    elif len(arms) == 1 and kinds <= _NUMBERS:
        kind = {"kind": "int" if kinds == {"integer"} else "float", **_bounds(arms[0])}
    elif kinds == {"string"}:
        kind = {"kind": "text"}
    elif len(arms) == 1 and kinds == {"array"} and _resolved(arms[0].get("items", {}), root).get("type") == "string":
        kind = {"kind": "lines"}
    else:
        kind = {"kind": "yaml"}
    return {**kind, "null": may_be_null}


def _values(arm: Mapping[str, Any]) -> list[Any]:
    if arm.get("type") == "boolean":
        return [False, True]
    return list(arm.get("enum", [arm["const"]] if "const" in arm else []))


def _bounds(arm: Mapping[str, Any]) -> dict[str, float]:
    names = {"minimum": "min", "maximum": "max", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    return {ours: arm[theirs] for theirs, ours in names.items() if theirs in arm}


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    return root["$defs"][reference.rpartition("/")[2]] if reference else schema


def read(model: type[AnyOptions], typed: Mapping[str, str], where: str) -> AnyOptions:
    """The options that were typed in. Raises ConfigError that names each faulty field."""
    return validate(model, document_of(model, typed), where=where)


def document_of(model: type[BaseModel], typed: Mapping[str, str]) -> dict[str, Any]:
    """What was typed in, as a recipe has it. Raises ConfigError for what is no YAML."""
    return apply_overrides({}, [f"{name}={text}" for name, text in typed.items()], model)
