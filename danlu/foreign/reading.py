"""A file of another tool, or a command line -> which tool's it is, and what it says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from danlu.config import parse_yaml
from danlu.errors import ConfigError, nearest
from danlu.foreign.axolotl import AXOLOTL
from danlu.foreign.llama_factory import LLAMA_FACTORY
from danlu.foreign.ms_swift import MS_SWIFT
from danlu.foreign.python_source import read_python
from danlu.foreign.shell import Command, commands
from danlu.foreign.table import Given, Tool
from danlu.foreign.trl import TRL
from danlu.foreign.values import typed
from danlu.recipe import TrainingRecipe

TOOLS: dict[str, Tool] = {tool.name: tool for tool in (LLAMA_FACTORY, AXOLOTL, MS_SWIFT, TRL)}
_STAGES_OF_SWIFT = ("sft", "pt", "rlhf")
_STAGES_OF_TRL = ("sft", "dpo", "reward", "grpo", "rloo", "kto")
# Groups whose keys are the tool's own, each for itself.
_GROUPS = {"axolotl": ("trl", "peft")}


def read(source: str, tool: str | None = None) -> tuple[Tool, Given]:
    """What a path, or the text of a command line, says.

    Raises ConfigError where there is no such file, where its text cannot be read, or where it may be of several tools.
    """
    if tool is not None and tool not in TOOLS:
        raise ConfigError(f"--as {tool}", allowed=", ".join(TOOLS), fix=nearest(tool, TOOLS))
    path = Path(source).expanduser()
    if _is_command(source) and not _exists(path):
        return _of_commands(source, "the command line", Path(), tool)
    if not path.is_file():
        raise ConfigError(
            f"no such file: {source}", allowed="a file, or a command line in quotes: 'swift sft --model …'"
        )
    return _of_text(_text(path), path, tool)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name may be
        return False


def _is_command(source: str) -> bool:
    return bool(re.search(r"\s", source.strip()))


def _of_text(text: str, path: Path, tool: str | None) -> tuple[Tool, Given]:
    suffix, where = path.suffix.lower(), path.name
    if suffix == ".py":
        if tool not in (None, "trl"):
            raise ConfigError(f"{where}: Python is read as TRL's alone, and --as says {tool}")
        stage, values, unread = read_python(text, where)
        given = Given(values, where, path.parent, stage, unread=unread)
        if not values:
            raise ConfigError(f"{where}: holds no configuration of TRL", allowed="SFTConfig(…), DPOConfig(…), a dict")
        return TRL, given
    if suffix == ".json":
        return _recognised(Given(_json(text, where), where, path.parent), tool)
    if suffix in (".yaml", ".yml"):
        return _recognised(Given(parse_yaml(text, where), where, path.parent), tool)
    return _of_commands(text, where, path.parent, tool)


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {type(values).__name__}", allowed="an object of keys and values")
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", fix="save it as UTF-8") from error


# -- which tool --------------------------------------------------------------------------------------------


def _recognised(given: Given, tool: str | None) -> tuple[Tool, Given]:
    """The tool that knows the most keys that no other one knows."""
    chosen = TOOLS[tool] if tool is not None else _by_keys(given)
    return chosen, replace(given, values=_flat(given.values, chosen.name))


def _by_keys(given: Given) -> Tool:
    marks = {
        name: sorted(key for key in given.values if key in one.names() and not _of_another(key, name))
        for name, one in TOOLS.items()
    }
    known = {name: sum(key in one.names() for key in given.values) for name, one in TOOLS.items()}
    ranked = sorted(TOOLS, key=lambda name: (len(marks[name]), known[name]), reverse=True)
    first, second = ranked[:2]
    if marks[first] and len(marks[first]) > len(marks[second]):
        return TOOLS[first]
    if set(given.values) <= {"steps", *TrainingRecipe.model_fields} and given.values:
        raise ConfigError(f"{given.where} is a recipe of Danlu already", fix=f"danlu run {given.where}")
    told = [f"of {TOOLS[name].title}: {', '.join(keys)}" for name, keys in marks.items() if keys]
    seen = "keys " + "; ".join(told) if told else f"keys that no tool has alone: {', '.join(given.values)}"[:300]
    raise ConfigError(
        f"{given.where}: which tool's it is cannot be told: {seen}", fix=f"say it with --as: {', '.join(TOOLS)}"
    )


def _of_another(key: str, name: str) -> bool:
    return any(key in other.names() for other in TOOLS.values() if other.name != name)


def _flat(values: Mapping[str, Any], tool: str) -> dict[str, Any]:
    """Groups that hold keys of the tool as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in _GROUPS.get(tool, ()) and isinstance(value, Mapping):
            found |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            found[str(key)] = value
    return found


# -- command lines -----------------------------------------------------------------------------------------


def _of_commands(text: str, where: str, folder: Path, tool: str | None) -> tuple[Tool, Given]:
    """The one command of a text that trains."""
    found = [(known, command) for command in commands(text, where) if (known := _training(command.words))]
    if not found:
        raise ConfigError(
            f"{where}: no command that trains was found",
            allowed="swift sft|pt|rlhf, trl sft|dpo|reward|grpo|rloo, llamafactory-cli train, axolotl train",
        )
    if len(found) > 1:
        shown = "; ".join(" ".join(command.words[:4]) for _, command in found)
        raise ConfigError(f"{where}: {len(found)} commands train: {shown}", fix="give one, in quotes or in its file")
    (name, stage, rest), command = found[0]
    if tool is not None and tool != name:
        raise ConfigError(f"{where}: the command is {TOOLS[name].title}'s, and --as says {tool}")
    return _of_words(TOOLS[name], stage, rest, command, where, folder)


def _training(words: Sequence[str]) -> tuple[str, str, list[str]] | None:
    """(tool, stage, the words behind them) of a command that trains; None for any other."""
    for at, word in enumerate(words):
        name, behind = os.path.basename(word), list(words[at + 1 :])
        after = behind[0] if behind else ""
        if name == "swift" and after in _STAGES_OF_SWIFT:
            return "ms-swift", after, behind[1:]
        if match := re.search(r"swift[/.]cli[/.](sft|pt|rlhf)(?:\.py)?$", word):
            return "ms-swift", match[1], behind
        if name == "trl" and after in _STAGES_OF_TRL:
            return "trl", after, behind[1:]
        if match := re.search(rf"(?:scripts|trl)/({'|'.join(_STAGES_OF_TRL)})\.py$", word):
            return "trl", match[1], behind
        if name in ("llamafactory-cli", "lmf") and after == "train":
            return "llama-factory", "", behind[1:]
        if name in ("train_bash.py", "train.py") and "--stage" in behind:
            return "llama-factory", "", behind
        if name == "axolotl" and after in ("train", "preprocess"):
            return ("axolotl", "", behind[1:]) if after == "train" else None
        if word == "axolotl.cli.train":
            return "axolotl", "", behind
    return None


_PROCESSES = re.compile(r"--(?:nproc[_-]per[_-]node|num[_-]processes)(?:=(\d+))?$")


def _of_words(
    tool: Tool, stage: str, words: list[str], command: Command, where: str, folder: Path
) -> tuple[Tool, Given]:
    """The options of a command, over those of the file that it names."""
    file, options = _options(words)
    named = options.pop("config", None)
    values: dict[str, Any] = {}
    if path := file or (str(named) if named else ""):
        values = _of_file(path, folder, where)
    values |= options
    unset = {key: f"{value!r:.60} holds a variable that the text does not set: set the key itself"
             for key, value in values.items() if _is_unset(value)}  # fmt: skip
    known = {key: value for key, value in _flat(values, tool.name).items() if key not in unset}
    return tool, Given(known, where, folder, stage, command.environment, _processes(command), unset)


def _is_unset(value: Any) -> bool:
    words = value if isinstance(value, list) else [value]
    return any(isinstance(word, str) and re.search(r"\$\{?\w|\$\(", word) for word in words)


def _of_file(path: str, folder: Path, where: str) -> dict[str, Any]:
    above = [parent / path for parent in folder.resolve().parents]
    place = next((one for one in (Path(path), folder / path, *above) if one.is_file()), None)
    if place is None:
        raise ConfigError(f"{where}: names {path}, and there is no such file", fix="name the file itself")
    return (_json if place.suffix == ".json" else parse_yaml)(_text(place), str(place))


def _options(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(a file named first, --key value … as keys and values). Several words behind a key are a list."""
    file, key = "", ""
    options: dict[str, Any] = {}
    many: dict[str, list[Any]] = {}
    for word in words:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            many[key] = [typed(value)] if equals else []
        elif key:
            many[key].append(typed(word))
        elif "=" in word and not word.endswith((".yaml", ".yml", ".json")):
            name, _, value = word.partition("=")
            many[name] = [typed(value)]
        else:
            file = word
    for name, values in many.items():
        if not values and name.startswith("no_"):
            options[name.removeprefix("no_")] = False
        else:
            options[name] = True if not values else values[0] if len(values) == 1 else values
    return file, options


def _processes(command: Command) -> int:
    """In how many processes it would run, where it says so."""
    for at, word in enumerate(command.words):
        if match := _PROCESSES.match(word):
            said = match[1] or (command.words[at + 1] if at + 1 < len(command.words) else "")
            return int(said) if said.isdigit() else 1
    said = command.environment.get("NPROC_PER_NODE", "")
    return int(said) if said.isdigit() and int(said) > 0 else 1
