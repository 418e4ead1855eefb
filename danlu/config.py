"""Recipe text and overrides -> a validated pydantic model.

Knows YAML, dotted keys and pydantic's errors. Knows no particular recipe: each option is declared
once, in a model beside the code that uses it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Hashable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from danlu.errors import ConfigError, nearest


class Options(BaseModel):
    """Base of every set of options: unknown keys are refused, values do not change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


AnyOptions = TypeVar("AnyOptions", bound=Options)

# Names that users bring from elsewhere, and what they are called here.
RENAMED = {
    "per_device_train_batch_size": "batch_size counts the examples of one optimizer step, over all micro-batches",
    "gradient_accumulation_steps": "batch_size counts the examples of one optimizer step; Danlu accumulates as needed",
    "num_epochs": "the key is num_train_epochs",
    "lr": "the key is learning_rate",
    "rank": "the key is r",
    "max_seq_length": "the key is max_length",
}


_LONGEST_SEEN = 200  # characters of a value that an error quotes

# What pydantic calls an arm of a union: types, validators, constrained types.
_ARM = re.compile(r"(str|int|float|bool|list|tuple|dict|none|constrained-\w+|.*\[.*\])$")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, which plain YAML would silently drop."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key!r} is given twice", fix="keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


def recipe_names() -> list[str]:
    """Names of the recipes that ship inside the package."""
    folder = resources.files("danlu") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The mapping of a shipped recipe or of a YAML file.

    Raises ConfigError for an unknown name, unreadable text, or a document that is no mapping.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"no such recipe file: {path}", fix=f"shipped recipes: {', '.join(recipe_names())}")
        text = _read_text(path)
    elif name_or_path in recipe_names():
        text = (resources.files("danlu") / "recipes" / f"{name_or_path}.yaml").read_text("utf-8")
    else:
        raise ConfigError(
            f"unknown recipe: {name_or_path!r}",
            allowed=f"{', '.join(recipe_names())}, or the path of a .yaml file",
            fix=nearest(name_or_path, recipe_names()),
        )
    return parse_yaml(text, where=name_or_path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})", fix="save the recipe as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """One YAML mapping, or ConfigError with the line of the fault."""
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.seen}", fix=error.fix) from error
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: a recipe is a mapping of keys, this is {type(document).__name__}")
    return document


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `document` with each `dotted.key=value` set; values are read as YAML."""
    result = dict(document)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"not an override: {override!r}", allowed="key=value, such as train.learning_rate=1e-4")
        parts = key.split(".")
        node = result
        for part in parts[:-1]:
            inner = node.get(part)
            if inner is not None and not isinstance(inner, dict):
                raise ConfigError(f"override {override!r}: {part!r} holds a value, not a group of keys")
            node[part] = dict(inner or {})
            node = node[part]
        try:
            node[parts[-1]] = yaml.load(value, Loader=_StrictLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    return result


def validate(model: type[AnyOptions], document: dict[str, Any], where: str) -> AnyOptions:
    """`document` as `model`, or a ConfigError that names every fault and the nearest valid key."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = [f"  {fault}" for fault in describe_faults(error, model)]
        raise ConfigError("\n".join([f"{where}: {len(faults)} fault(s)", *faults])) from None


def describe_faults(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """pydantic's faults in our words, one a line, with the nearest valid key for an unknown one of `model`."""
    return [_describe(model, dict(fault)) for fault in error.errors()]


def load(model: type[AnyOptions], name_or_path: str, overrides: Sequence[str] = ()) -> AnyOptions:
    """A recipe, with its overrides, as `model`."""
    return validate(model, apply_overrides(read_recipe(name_or_path), overrides), where=name_or_path)


def _describe(model: type[BaseModel] | None, fault: dict[str, Any]) -> str:
    place = _place_of(fault["loc"]) or "(whole)"
    if fault["type"] == "extra_forbidden":
        key = str(fault["loc"][-1])
        names = _field_names(model, fault["loc"][:-1]) if model else []
        hint = RENAMED.get(key) or nearest(key, names)
        return f"{place}: unknown key; {hint or 'allowed: ' + ', '.join(names)}"
    if fault["type"] == "missing":
        return f"{place}: required, but not given"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error" and isinstance(fault["input"], dict | list):
        return f"{place}: {message}"
    seen = repr(fault["input"])
    return f"{place}: {message} (seen: {seen[:_LONGEST_SEEN] + ' …' if len(seen) > _LONGEST_SEEN else seen})"


def _place_of(path: Sequence[Any]) -> str:
    """Keys and numbers that lead to a fault, without pydantic's names for the arms of a union."""
    return ".".join(str(part) for at, part in enumerate(path) if at == 0 or not _ARM.match(str(part)))


def _field_names(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the fields of the model found by following `path`; union arms and lists are looked through."""
    for part in path:
        field = model.model_fields.get(str(part)) if isinstance(part, str) else None
        inner = _inner_model(field.annotation) if field else None
        model = inner or model
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return next((found for arg in get_args(annotation) if (found := _inner_model(arg))), None)
    return None
