"""Recipe text and overrides -> a validated pydantic model.

Knows YAML, dotted keys and pydantic's errors. Knows no particular recipe: each option is declared
once, in a model beside the code that uses it.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from danlu.errors import ConfigError, nearest


class Options(BaseModel):
    """Base of every set of options: unknown keys are refused, values do not change afterwards."""

    # Names under which others know some of these options, where a section takes them -> the name here.
    SPELLINGS: ClassVar[Mapping[str, str]] = {}

    # Defaults are validated as well: 16 and 16.0 are one value of a number with a point, given or not.
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, validate_default=True
    )


AnyOptions = TypeVar("AnyOptions", bound=Options)

# The text of a path. A leading ~ is the home directory, which no shell fills in inside a file or behind an "=".
PathText = Annotated[str, AfterValidator(os.path.expanduser)]

_T = TypeVar("_T")
# A list from whoever may ask: of a hundred thousand faulty entries the first one is told, and no other is looked at.
Some = Annotated[tuple[_T, ...], Field(fail_fast=True)]

# Names that users bring from elsewhere, and what they are called here.
RENAMED = {
    "bf16": "write model.dtype: bfloat16; auto takes it by itself where the hardware has it",
    "fp16": "write model.dtype: float16; its loss is scaled as needed",
    "fp32": "write model.dtype: float32",
    "tf32": "write model.dtype: float32; torch decides how its products are made",
    "num_stable_steps": "give num_decay_steps; what is left after warmup is stable",
    "num_epochs": "the key is num_train_epochs",
    "lr": "the key is learning_rate",
    "rank": "the key is r",
    "max_seq_length": "the key is max_length",
}


_LONGEST_SEEN = 200  # characters of a value that an error quotes


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, which plain YAML would silently drop."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a list or a mapping as a key", allowed="text")
            key = key_node.value
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key!r} is given twice", fix="keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """Words that YAML 1.1 makes another number or a day of stay as written; the option given them reads them."""
        if kind is yaml.ScalarNode and implicit[0] and _AS_WRITTEN.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


# 010 (8 in YAML 1.1, 10 in YAML 1.2), 12:30 (750) and 2024-01-01.
_AS_WRITTEN = re.compile(
    r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?|[0-9]{4}-[0-9]{1,2}-[0-9].*", re.DOTALL
)


def shipped(folder: str) -> list[str]:
    """Names of the YAML files in a folder of the package."""
    place = resources.files("danlu") / folder
    return sorted(entry.name.removesuffix(".yaml") for entry in place.iterdir() if entry.name.endswith(".yaml"))


def read_named(name_or_path: str, folder: str, kind: str, called: str) -> dict[str, Any]:
    """The mapping of a YAML file, or of one in a folder of the package by its name.

    Args:
        kind: what the files hold, as messages say it. called: what a name is a name of.

    Raises ConfigError for an unknown name, unreadable text, or a document that is no mapping.
    """
    path, names = Path(name_or_path), shipped(folder)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"no such {kind} file: {path}", fix=f"shipped {kind}s: {', '.join(names)}")
        text = _read_text(path, kind)
    elif name_or_path in names:
        text = (resources.files("danlu") / folder / f"{name_or_path}.yaml").read_text("utf-8")
    else:
        raise ConfigError(
            f"unknown {called}: {name_or_path!r}",
            allowed=f"{', '.join(names)}, or the path of a .yaml file",
            fix=nearest(name_or_path, names),
        )
    return parse_yaml(text, where=name_or_path)


def recipe_names() -> list[str]:
    """Names of the recipes that ship inside the package."""
    return shipped("recipes")


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The mapping of a shipped recipe or of a YAML file. Raises ConfigError, as `read_named`."""
    return read_named(name_or_path, "recipes", "recipe", "recipe")


def _read_text(path: Path, kind: str) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})", fix=f"save the {kind} as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """One YAML mapping, or ConfigError with the line of the fault."""
    try:
        document = from_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.seen}", allowed=error.allowed, fix=error.fix) from error
    if not isinstance(document, dict):
        kind = "empty" if document is None else type(document).__name__
        raise ConfigError(f"{where}: a recipe is a mapping of keys, this is {kind}")
    return document


def from_yaml(text: str) -> Any:
    """What the text holds. Raises ConfigError, for values as well that only look like a date or a number."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {_yaml_fault(error)}") from error
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deeply") from None
    except (ValueError, TypeError, AttributeError) as error:  # from what makes values of the words
        reason = str(error).partition(";")[0]
        raise ConfigError(f"not valid YAML: {reason}", fix="put quotes around what is meant as text") from None


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Where and what, without the text around it: its words would be taken for options of ours."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def apply_overrides(
    document: dict[str, Any], overrides: Sequence[str], model: type[BaseModel] | None = None
) -> dict[str, Any]:
    """A copy of `document` with each `dotted.key=value` set; values are read as YAML.

    What stands for text in `model` stays text (name=2024). A key given twice is an error, not the last one's victory.
    """
    result = dict(document)
    given: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"not an override: {override!r}", allowed="key=value, such as train.learning_rate=1e-4")
        if other := next((other for other in given if _overlap(key, other)), None):
            seen = f"{key} is given twice" if key == other else f"{other} and {key} are both given"
            raise ConfigError(seen, allowed="a key once; a list as key=[a, b]", fix="leave one of them out")
        given.append(key)
        parts = key.split(".")
        node = result
        for part in parts[:-1]:
            inner = node.get(part)
            if inner is not None and not isinstance(inner, dict):
                raise ConfigError(f"override {override!r}: {part!r} holds a value, not a group of keys")
            node[part] = dict(inner or {})
            node = node[part]
        for name in _spellings(model, parts):
            node.pop(name, None)
        node[parts[-1]] = _read_value(override, value, _field(model, parts))
    return result


def _spellings(model: type[BaseModel] | None, path: Sequence[str]) -> list[str]:
    """The names of the option that `path` leads to, where its section knows some of others."""
    field = _field(model, path[:-1])
    section = section_of(field.annotation) if field else None
    if section is None:
        return []
    own = section.SPELLINGS.get(path[-1], path[-1])
    return [own, *(name for name, meant in section.SPELLINGS.items() if meant == own)]


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _read_value(override: str, text: str, field: FieldInfo | None) -> Any:
    try:
        value = from_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"override {override!r:.200}: the value is {error.seen}", fix=error.fix) from error
    if value is None or isinstance(value, (str, list, dict)):
        return value
    told = (field.annotation, *get_args(field.annotation)) if field else ()
    arms = {get_args(arm)[0] if get_origin(arm) is Annotated else arm for arm in told}
    return text if str in arms and type(value) not in arms else value


def validate(model: type[AnyOptions], document: dict[str, Any], where: str) -> AnyOptions:
    """`document` as `model`, or a ConfigError that names every fault and the nearest valid key."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = [f"  {fault}" for fault in describe_faults(error, model)]
        fix = "put quotes around what is meant as text" if any(map(_wants_text, error.errors())) else ""
        raise ConfigError("\n".join([f"{where}: {len(faults)} fault(s)", *faults]), fix=fix) from None


def _wants_text(fault: Any) -> bool:
    """Whether text was due where there is a number or, as YAML reads on, off, yes and no, true or false."""
    numbers = {"string_type": bool | int | float, "literal_error": bool}
    return isinstance(fault["input"], numbers.get(fault["type"], ()))


# So many of pydantic's faults are looked at where a few are told; a place may have several.
_FAULTS_A_PLACE = 16


def describe_faults(error: ValidationError, model: type[BaseModel] | None = None, most: int | None = None) -> list[str]:
    """pydantic's faults in our words, one a place, with the nearest valid key for an unknown one of `model`.

    Args:
        most: so many are wanted; a large document can have a fault in each of its parts.
    """
    found = [
        dict(fault) for fault in error.errors(include_url=False)[: None if most is None else most * _FAULTS_A_PLACE]
    ]
    places: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for fault in [fault for fault in found if not _follows(fault)] or found:
        places.setdefault(_place(fault), []).append(fault)
    return [_describe(model, path, places[path]) for path in _proper(places)[:most]]


def _proper(places: Mapping[tuple[Any, ...], list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    """Places without those at which an arm of a union complains that another arm read further, or that is too long."""
    sized = {path for path, faults in places.items() if any(fault["type"] in _SIZES for fault in faults)}
    kept = [path for path in places if not any(path[:size] in sized for size in range(len(path)))]
    passed = {path[:size] for path in kept for size in range(len(path))}
    return [path for path in kept if path not in passed]


def _follows(fault: dict[str, Any]) -> bool:
    """Whether a list is called too short only because one of its entries was refused."""
    return fault["type"] == "too_short" and bool(len(fault["input"]) >= fault["ctx"]["min_length"])


def load(model: type[AnyOptions], name_or_path: str, overrides: Sequence[str] = ()) -> AnyOptions:
    """A recipe, with its overrides, as `model`."""
    return validate(model, apply_overrides(read_recipe(name_or_path), overrides, model), where=name_or_path)


# What pydantic calls the arms of a union in the place of a fault, and how it names kinds of values.
_ARM = re.compile(r"str|int|float|bool|constrained-\w+|[\w-]*\[.*\]|[A-Z]\w*", re.DOTALL)
_WORDS = (
    (re.compile(r"valid dictionary or instance of \w+"), "group of keys"),
    (re.compile(r"valid (tuple|list|array)"), "list"),
    (re.compile(r"valid string"), "text"),
    (re.compile(r"String should"), "Text should"),
)
# Faults of a value that is of the right kind, and too long or too short: what is counted, and where the bound stands.
_SIZES = {
    "too_long": ("at most", "max_length", "item"),
    "too_short": ("at least", "min_length", "item"),
    "string_too_long": ("at most", "max_length", "character"),
    "string_too_short": ("at least", "min_length", "character"),
}


def _place(fault: Any) -> tuple[Any, ...]:
    """Keys and numbers that lead to a fault."""
    *path, last = fault["loc"] or ("",)
    unknown = fault["type"] == "extra_forbidden"
    kept = [part for part in path if not (isinstance(part, str) and _ARM.fullmatch(part))]
    return (*kept, last) if unknown or not (isinstance(last, str) and _ARM.fullmatch(last)) else tuple(kept)


def _describe(model: type[BaseModel] | None, path: tuple[Any, ...], faults: list[dict[str, Any]]) -> str:
    place = ".".join(str(part) for part in path if part != "") or "(whole)"
    fault = faults[0]
    field = _field(model, path)
    if fault["type"] == "extra_forbidden":
        key = str(path[-1])
        names = _field_names(model, path[:-1]) if model else []
        hint = RENAMED.get(key) or _elsewhere(model, key) or nearest(key, names)
        return f"{place}: unknown key; {hint or 'allowed: ' + ', '.join(names)}"
    if fault["type"] == "missing":
        section = _inner_model(field.annotation) if field else None
        such = f"; such as {place}.{next(iter(section.model_fields))}" if section else ""
        return f"{place}: required, but not given{such}"
    if fault["type"] == "string_pattern_mismatch" and field is not None:
        return f"{place}: {field.description} (seen: {fault['input']!r})"
    if sized := next((fault for fault in faults if fault["type"] in _SIZES), None):
        return f"{place}: {_size(sized)}"
    messages = dict.fromkeys(_in_words(str(fault["msg"])) for fault in faults)
    head, *others = messages
    message = " or ".join([head, *(other.removeprefix("Input should be ") for other in others)])
    if fault["type"] == "value_error" and isinstance(fault["input"], dict | list):
        return f"{place}: {message}"
    seen = repr(fault["input"])
    return f"{place}: {message} (seen: {seen[:_LONGEST_SEEN] + ' …' if len(seen) > _LONGEST_SEEN else seen})"


def _size(fault: dict[str, Any]) -> str:
    """Other arms of a union only say that the value is none of theirs."""
    bound, name, part = _SIZES[fault["type"]]
    count = fault["ctx"][name]
    return f"{bound} {count} {part}{'s' * (count != 1)}; seen {len(fault['input'])}"


def _in_words(message: str) -> str:
    for pattern, word in _WORDS:
        message = pattern.sub(word, message)
    return message.removeprefix("Value error, ")


def _field(model: type[BaseModel] | None, path: Sequence[Any]) -> FieldInfo | None:
    """The field of `model` that `path` leads to, if it is one."""
    field = None
    for part in path:
        field = model.model_fields.get(part) if model is not None and isinstance(part, str) else None
        if field is None:
            return None
        model = _inner_model(field.annotation)
    return field


def option_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of `model`, dotted, sections and what is in them."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if section := section_of(field.annotation):
            names += option_names(section, f"{prefix}{name}.")
    return names


def described(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Of every key: (its dotted name, its default as YAML, nothing where it has to be given, what it means)."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        shown = "" if field.is_required() or (section and default is not None) else _as_yaml(default)
        yield prefix + name, shown, " ".join((field.description or "").split())
        if section:
            yield from described(section, f"{prefix}{name}.")


def _as_yaml(value: Any) -> str:
    written = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(written, allow_unicode=True, default_flow_style=True).removesuffix("...\n").strip()


def section_of(annotation: Any) -> type[Options] | None:
    """The class of options that a field holds, if it is a section."""
    arms = (annotation, *get_args(annotation)) if get_origin(annotation) in (None, Union, types.UnionType) else ()
    return next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, Options)), None)


def _field_names(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the fields of the model found by following `path`; union arms and lists are looked through."""
    for part in path:
        field = model.model_fields.get(str(part)) if isinstance(part, str) else None
        inner = _inner_model(field.annotation) if field else None
        model = inner or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _elsewhere(model: type[BaseModel] | None, key: str) -> str:
    """Where a recipe has such a key, in words: at its top, or in one of its groups; empty where it has none."""
    if model is None:
        return ""
    groups = {name: _inner_model(field.annotation) for name, field in model.model_fields.items()}
    places = [key] if key in groups else []
    places += [f"{name}.{key}" for name, inner in groups.items() if inner is not None and key in inner.model_fields]
    return f"there is {' and '.join(places)}" if places else ""


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return _inner_model(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return next((found for arg in get_args(annotation) if (found := _inner_model(arg))), None)
    return None
