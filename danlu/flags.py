"""Options as flags of the command line.

A list or a mapping takes one word or several, words or JSON, and adds up when its flag is given again:
`--stop_sequences END --stop_sequences '[[50, 51], "."]'` are three stop sequences. A mapping may also be key=value,
or stand in a file: `--json_schema @form.json`. `null` is nothing, also for a whole section: `--prove null`. Knows no
particular option; the options' own model checks the values.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator, create_model
from pydantic.fields import FieldInfo

from danlu.config import Options, describe_faults, from_yaml, section_of
from danlu.errors import ConfigError

AnyOptions = TypeVar("AnyOptions", bound=Options)
Words = Annotated[
    list[Any] | None,
    Parameter(consume_multiple=True),
    WrapValidator(lambda value, _: value),
]
NULL = ("null", "Null", "NULL", "~")


def as_flags(options: type[AnyOptions], **defaults: Any) -> type[AnyOptions]:
    """A model of the same options that holds the words as they were typed, for help and parsing.

    Give it to cyclopts, then to `from_flags`. `defaults` are shown in the help in place of the options' own.
    """
    fields: dict[str, Any] = {
        name: (_with_spellings(options, name, _flag(field)), _shown(field, defaults.get(name)))
        for name, field in options.model_fields.items()
    }
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    made = create_model(options.__name__, __config__=config, __doc__=options.__doc__, **fields)
    return cast(type[AnyOptions], made)


def _with_spellings(options: type[Options], name: str, flag: Any) -> Any:
    """The flag under the names that others have for the option as well."""
    others = [other for other, own in options.SPELLINGS.items() if own == name]
    return Annotated[flag, Parameter(alias=others)] if others else flag


def _flag(field: FieldInfo) -> Any:
    """The annotation of an option's flag: what help shows of it, and no check."""
    if section := section_of(field.annotation):
        return Annotated[as_flags(section) | None, BeforeValidator(_nothing)]
    if _kinds(field.annotation) & {tuple, list, dict}:
        return Words
    return Annotated[field.annotation, WrapValidator(lambda value, _: value)]


def _shown(field: FieldInfo, default: Any) -> Any:
    if section_of(field.annotation):
        return Field(None)
    if default is None and not field.is_required():
        default = field.get_default(call_default_factory=True)
    return Field(default or None if default in ((), {}, []) else default, description=field.description)


def _nothing(value: Any) -> Any:
    return None if isinstance(value, str) and value in NULL else value


def from_flags(options: type[AnyOptions], flags: BaseModel | None) -> AnyOptions:
    """The options that the flags say. Raises ConfigError."""
    given = _given(options, flags) if flags is not None else {}
    try:
        return options.model_validate(given)
    except ValidationError as error:
        faults = [fault.removeprefix("(whole): ") for fault in describe_faults(error, options)]
        raise ConfigError("\n".join(faults)) from None


def _given(options: type[Options], flags: BaseModel) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name in flags.model_fields_set:
        value, annotation = getattr(flags, name), options.model_fields[name].annotation
        if section := section_of(annotation):
            given[name] = _given(section, value) if isinstance(value, BaseModel) else value
        elif isinstance(value, list):
            given[name] = _joined(name, value, annotation)
        else:
            value = _nothing(value) if type(None) in get_args(annotation) else value
            given[name] = next((one for one in _choices(annotation) if str(one) == value), value)
    return given


def _kinds(annotation: Any) -> set[Any]:
    arms = (annotation, *get_args(annotation))
    bare = [get_args(arm)[0] if get_origin(arm) is Annotated else arm for arm in arms]
    return {get_origin(arm) or arm for arm in bare}


def _joined(name: str, words: Sequence[Any], annotation: Any) -> Any:
    """The value that several words make."""
    kinds = _kinds(annotation)
    if len(words) == 1 and type(None) in kinds and words[0] in NULL:
        return None
    if len(words) == 1 and words[0] in _choices(annotation):
        return words[0]
    if dict not in kinds:
        values = [_read(name, word) for word in words]
        return [item for value in values for item in (value if isinstance(value, list) else [value])]
    values = [_pair(name, _read(name, _from_file(name, word))) for word in words]
    if not all(isinstance(value, dict) for value in values):
        return values if len(values) > 1 else values[0]
    twice = [key for at, value in enumerate(values) for key in value if any(key in other for other in values[:at])]
    if twice:
        raise ConfigError(f"{name}: {twice[0]!r} is given twice", fix="leave one of them out")
    return {key: entry for value in values for key, entry in value.items()}


def _choices(annotation: Any) -> tuple[Any, ...]:
    return tuple(choice for arm in get_args(annotation) if get_origin(arm) is Literal for choice in get_args(arm))


def _pair(name: str, value: Any) -> Any:
    """key=value as a mapping of one key."""
    key, equals, text = value.partition("=") if isinstance(value, str) else ("", "", "")
    if not equals or not re.fullmatch(r"[\w:]+", key):
        return value
    try:
        return {key: from_yaml(text)}
    except ConfigError as error:
        fix = error.fix or f"put quotes around what is meant as text: '{key}=\"…\"'"
        raise ConfigError(f"{name}: {value!r:.200}: the value is {error.seen}", fix=fix) from error


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
    except RecursionError:
        raise ConfigError(f"{name}: {word!r:.200} is not valid JSON: nested too deeply") from None
    except ValueError as error:  # of JSON, or of a number of too many digits
        raise ConfigError(f"{name}: {word!r:.200} is not valid JSON: {error}", fix='quote it: \'["a", "b"]\'') from None


# -- how a message names an option ----------------------------------------------------------------------

_NAME = r"(?P<name>[a-z]\w*(?:\.[a-z]\w*)*)"
_TOLD = re.compile(rf"(?<![\w./'\"=-]){_NAME}(?:=(?P<value>\{{[^{{}}\n]*\}}|\[[^][\n]*\]|[^\s;,)]+))?(?![\w/=]|\.\w)")
_HEAD = re.compile(rf"^{_NAME}(?P<value>(?!))?(?=:)", re.MULTILINE)
# What stays as it is: a command, to be typed; a key that there is none of, as it was given, and what stands beside it.
_VERBATIM = re.compile(
    r"(danlu run [^`\n]*|^ *[^\s:]+: unknown key(?:; (?:there is|allowed|did you mean).*)?)", re.MULTILINE
)
_ENDINGS = ("json", "jsonl", "csv", "tsv", "txt", "md", "parquet")  # "data.json:3" is a place, and no option
_IDLE = re.compile(r"^[a-z_]+(, [a-z_]+)*(?= has no effect)", re.MULTILINE)


def spelt(text: str, names: Iterable[str], spell: Callable[[str, str | None], str]) -> str:
    """`text` with every option named as the reader would write it.

    Messages name an option as a recipe does (train.learning_rate=1e-4, accept_licence=true). `names` are the options
    that the command takes; `spell(name, value)` writes one, with its value if one is told. A section that the command
    does not have is left away (merge.dtype is --dtype of `danlu merge`), and one that it needs is added. What is no
    option of the command stays as it is.
    """
    known = set(names)

    def own(name: str) -> str | None:
        short = name.rpartition(".")[2]
        if name != short in _ENDINGS:
            return None
        ends = [other for other in known if other.endswith(f".{name}")] if "." not in name else []
        return next((found for found in (name, short) if found in known), ends[0] if len(ends) == 1 else None)

    def write(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        told = "." in name or "_" in name or value is not None or match.re is _HEAD
        found = own(name) if told else None
        return match.group() if found is None else spell(found, value)

    def write_idle(match: re.Match[str]) -> str:
        return ", ".join(spell(name, None) if name in known else name for name in match.group().split(", "))

    def write_all(part: str) -> str:
        return _TOLD.sub(write, _HEAD.sub(write, _IDLE.sub(write_idle, part)))

    parts = _VERBATIM.split(text)
    return "".join(part if at % 2 else write_all(part) for at, part in enumerate(parts))


def as_flag(name: str, value: str | None) -> str:
    """An option as a flag of the command line, to be pasted: {prompt: ask} is prompt=ask, [a, b] is a b."""
    if value is not None and value.startswith("{"):
        pairs = (pair.replace(": ", "=", 1) for pair in value.strip("{}").split(", "))
        return f"--{name} {shlex.join(pairs)}"
    if value is not None and value.startswith("[") and value.endswith("]"):
        return f"--{name} {shlex.join(value[1:-1].replace(', ', ',').split(','))}"
    return f"--{name}" if value in (None, "true") else f"--{name} {value}"


def as_key(name: str, value: str | None) -> str:
    """An option as a key of a recipe."""
    return name if value is None else shlex.quote(f"{name}={value}") if " " in value else f"{name}={value}"
