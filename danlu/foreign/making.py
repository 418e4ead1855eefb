"""Keys of a tool and its table -> a recipe that validates, and what is told of each key.

Whether a recipe has a key is asked of the recipe's own model, so a key that Danlu comes to know is written from then
on. A value that the model refuses is left out and told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from danlu.config import Options, describe_faults, option_names, section_of
from danlu.errors import ConfigError, nearest
from danlu.foreign.table import Given, Tool, Verdict
from danlu.foreign.values import is_off
from danlu.recipe import TrainingRecipe
from danlu.steps.kinds import KINDS


@dataclass(frozen=True)
class Line:
    """A key of the recipe: its value, what it comes from, and whether that is a key of the file."""

    value: Any
    origin: str
    given: bool


@dataclass
class Making:
    """A recipe under way.

    Attributes:
        model: the recipe's, of the kind that is trained.
        lines: dotted key -> its line.
        told: verdict -> (key of theirs, what is said of it).
    """

    tool: Tool
    kind: str
    given: Given
    model: type[TrainingRecipe]
    lines: dict[str, Line] = field(default_factory=dict)
    told: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def default(self) -> str:
        """The origin of what the file does not say."""
        return f"{self.tool.title}'s default"

    def said(self, theirs: str) -> str:
        """The origin of a value: the key, if the file has it."""
        return self.default if self.given.get(theirs) is None else theirs

    def knows(self, ours: str) -> bool:
        """Whether a recipe of this kind has the key."""
        return ours in option_names(self.model)

    def put(self, ours: str, value: Any, origin: str) -> None:
        """Write a key, unless it says nothing else than Danlu does without it."""
        from_file = not self.given.values.keys().isdisjoint(re.split(r"[ :,]+", origin))
        if not self.knows(ours):
            if origin != self.default and not is_off(value):
                self.lacks(origin, f"a recipe of kind {self.kind} has no {ours}")
            return
        if origin != self.default or value != default_of(self.model, ours):
            self.lines[ours] = Line(value, origin, from_file)

    def name(self, output: Any) -> None:
        """The run's name, from the folder that the tool was to write."""
        parts = [part for part in re.split(r"[/\\]", str(output or "")) if part.strip(".")]
        name = re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-.")
        if name:
            self.put("name", name, "output_dir")

    def differs(self, key: str, text: str) -> None:
        self.tell("differs", key, text)

    def lacks(self, key: str, text: str) -> None:
        self.tell("lacks", key, text)

    def idle(self, key: str, text: str) -> None:
        self.tell("idle", key, text)

    def tell(self, verdict: Verdict | str, key: str, text: str) -> None:
        if (key, text) not in self.told.setdefault(verdict, []):
            self.told[verdict].append((key, text))


def made(tool: Tool, given: Given) -> tuple[TrainingRecipe, Making]:
    """(the recipe, how it came about). Raises ConfigError for what is no training that Danlu has."""
    kind = tool.stage(given)
    alone = KINDS[kind].alone
    assert alone is not None, "a stage is a training"
    making = Making(tool, kind, given, alone.recipe)
    if kind != "sft":
        making.put("kind", kind, "the stage")
    for row in tool.rows:
        if row.ours and "*" not in row.theirs:
            _put_row(making, row.theirs, row.ours, row.convert, row.default)
    tool.read(given, making)
    for key, value in given.values.items():
        _tell_key(making, key, value)
    for key, why in given.unread.items():
        making.lacks(key, why)
    return _validated(making), making


def _put_row(making: Making, theirs: str, ours: str, convert: Callable[[Any], Any], default: Any) -> None:
    value = making.given.get(theirs)
    if value is None and default is None:
        return
    converted = making.given.read(theirs, convert, default)
    if converted is not None and (value is not None or ours not in making.lines):
        making.put(ours, converted, making.default if value is None else theirs)


def _tell_key(making: Making, key: str, value: Any) -> None:
    if key in making.tool.own:
        if is_off(value) and not any(key in line.origin for line in making.lines.values()):
            making.tell("off", key, "")
        return
    row = making.tool.row(key)
    if row is None:
        hint = nearest(key, making.tool.names())
        making.tell("unknown", key, f"{value!r:.60} {hint}".rstrip())
    elif row.verdict is None:
        if is_off(value) and row.ours not in making.lines:
            making.tell("off", key, "")
    elif row.verdict != "differs" and is_off(value):
        making.tell("off", key, "")
    elif row.verdict != "differs" or (row.ours in making.lines and not is_off(value)):
        making.tell(row.verdict, key, row.remark)


def default_of(model: type[Options], dotted: str) -> Any:
    """What a recipe has where it does not say; None where it has to."""
    value: Any = None
    section: Any = model
    for name in dotted.split("."):
        if isinstance(section, type) and issubclass(section, Options):
            found = section.model_fields[name]
            value = None if found.is_required() else found.get_default(call_default_factory=True)
            section = value if value is not None else section_of(found.annotation)
        else:
            value = section = getattr(section, name, None)
    return list(value) if isinstance(value, tuple) else value


def document_of(lines: Mapping[str, Line]) -> dict[str, Any]:
    """Dotted keys as groups."""
    document: dict[str, Any] = {}
    for dotted, line in lines.items():
        *groups, last = dotted.split(".")
        node = document
        for group in groups:
            inner = node.get(group)
            node[group] = inner if isinstance(inner, dict) else {}
            node = node[group]
        node[last] = line.value
    return document


def _validated(making: Making) -> TrainingRecipe:
    """The recipe. What the model refuses is left out, as long as there is something that can be."""
    _drop_below_null(making)
    while True:
        try:
            return making.model.model_validate(document_of(making.lines))
        except ValidationError as error:
            faults = describe_faults(error, making.model)
            refused = [key for fault in error.errors() for key in _refused(making, fault)]
            if not refused:
                lines = "\n".join(f"  {fault}" for fault in faults)
                raise ConfigError(f"{making.given.where}: no recipe can be made of it:\n{lines}") from None
        for key in dict.fromkeys(refused):
            line = making.lines.pop(key)
            said = next((fault for fault in faults if fault.startswith(key)), faults[0])
            making.lacks(line.origin, f"{said}; {key} is left to Danlu's default")


def _drop_below_null(making: Making) -> None:
    """`lora: null` has no keys below it."""
    for section in [key for key, line in making.lines.items() if line.value is None]:
        for key in [key for key in making.lines if key.startswith(f"{section}.")]:
            line = making.lines.pop(key)
            if line.given:
                making.idle(line.origin, f"{section}: null has no {key.rpartition('.')[2]}")


def _refused(making: Making, fault: Any) -> list[str]:
    """The lines that a fault speaks of: by its place, or, for a pair of keys, by the names in its words."""
    place = [str(part) for part in fault["loc"]]
    for size in range(len(place), 0, -1):
        if (key := ".".join(place[:size])) in making.lines:
            return [key]
    named = [key for key in making.lines if re.search(rf"\b{key.rpartition('.')[2]}\b", str(fault["msg"]))]
    return named[:1]
