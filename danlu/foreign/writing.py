"""A recipe made of another tool's settings, as text: where each key comes from, and what became of the rest."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from danlu.foreign.making import Line, Making

_HEADS = {
    "differs": "Means something else here",
    "lacks": "Has no counterpart here",
    "unknown": "Is not known here as a key of {title}",
    "idle": "Is not needed here",
    "off": "Is off, as it is here",
}
_WIDTH = 116


def as_text(making: Making) -> str:
    """The recipe in YAML. What is told of keys stands above it, as comments."""
    head = [f"Made of {making.given.where}, as {making.tool.title} reads it."]
    said = "".join(f"# {line}".rstrip() + "\n" for line in [*head, *_told(making)])
    return said + "\n" + _yaml(making)


def in_short(making: Making) -> str:
    """How many keys became what."""
    counts = {verdict: len(making.told.get(verdict, ())) for verdict in _HEADS}
    given = sum(line.given for line in making.lines.values())
    return (
        f"{given} keys taken over ({counts['differs']} of them mean something else), {counts['lacks']} without a "
        f"counterpart, {counts['unknown']} unknown, {counts['idle'] + counts['off']} not needed; each is named in the "
        "recipe's head"
    )


def _told(making: Making) -> list[str]:
    lines: list[str] = []
    for verdict, head in _HEADS.items():
        told = making.told.get(verdict)
        if not told:
            continue
        lines += ["", f"{head.format(title=making.tool.title)}:"]
        by_text: dict[str, list[str]] = {}
        for key, text in told:
            by_text.setdefault(text, []).append(key)
        for text, keys in by_text.items():
            entry = f"{', '.join(keys)}: {text}" if text else ", ".join(keys)
            lines += textwrap.wrap(" ".join(entry.split()), _WIDTH, initial_indent="  ", subsequent_indent="    ",
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return lines


def _yaml(making: Making) -> str:
    order = ["kind", "name", *making.model.model_fields]
    lines: dict[str, list[str]] = {}
    for dotted, line in making.lines.items():
        top, _, below = dotted.partition(".")
        lines.setdefault(top, [])
        lines[top].append(_line(below or top, line, 2 if below else 0, nested=bool(below)))
    text = ""
    for top in sorted(lines, key=order.index):
        is_section = any(key.startswith(f"{top}.") for key in making.lines)
        text += (f"{top}:\n" if is_section else "") + "".join(lines[top])
    return text


def _line(key: str, line: Line, indent: int, nested: bool) -> str:
    return f"{' ' * indent}{key}: {_scalar(line.value)}  # {' '.join(line.origin.split())}\n"


def _scalar(value: Any) -> str:
    written = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6, sort_keys=False)
    return written.removesuffix("...\n").strip()
