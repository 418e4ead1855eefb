"""Values as files and command lines have them -> numbers, truths and lists."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from danlu.errors import ConfigError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def typed(word: str) -> Any:
    """A word of a command line as what it stands for; JSON where it is a list or a mapping."""
    lowered = word.strip().lower()
    if lowered in ("none", "null"):
        return None
    if lowered in ("true", "false"):
        return lowered == "true"
    if re.fullmatch(r"[-+]?\d+", word):
        return int(word)
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", lowered):
        return float(word)
    if word[:1] in ("{", "["):
        try:
            return json.loads(word)
        except ValueError:
            return word
    return word


def number(value: Any) -> float | None:
    """A number, also where YAML took it for text (1e-5)."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        raise ConfigError(f"{value!r} is no number")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{value!r:.100} is no number") from None
    if not math.isfinite(found):
        raise ConfigError(f"{value!r:.100} is no finite number")
    return found


def whole(value: Any) -> int | None:
    """A whole number."""
    found = number(value)
    if found is not None and found != int(found):
        raise ConfigError(f"{value!r} is no whole number")
    return None if found is None else int(found)


def above_zero(value: Any) -> int | None:
    """A whole number; -1 and 0 say that there is none."""
    found = whole(value)
    return found if found is not None and found > 0 else None


def truth(value: Any) -> bool | None:
    """True or false."""
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise ConfigError(f"{value!r:.100} is neither true nor false")
    return word in _TRUE


def listed(value: Any) -> list[Any]:
    """A list, or words with commas between."""
    if value is None or value == "":
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else [value]


def mapping(value: Any) -> Mapping[str, Any]:
    """Keys and values, also as JSON."""
    found = typed(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ConfigError(f"{value!r:.100} is no mapping of keys to values")
    return found


def one_of(value: Any, allowed: Mapping[str, str]) -> str:
    """What a word stands for."""
    word = str(value).lower()
    if word not in allowed:
        raise ConfigError(f"{value!r:.100}", allowed=", ".join(allowed))
    return allowed[word]


def is_off(value: Any) -> bool:
    """Whether a key is set to what it would be without it."""
    return value in (None, False, 0, "", [], {}) or str(value).lower() in ("none", "null", "false", "no")


def layers(value: Any) -> Any:
    """Names of layers that get an adapter."""
    names = [str(name) for name in listed(value)]
    others = [name for name in names if name not in ("all", "all-linear", "all_linear")]
    if others and len(others) < len(names):
        raise ConfigError(
            f"{', '.join(names)}", allowed="all linear layers alone, or names alone; lora.head=true adds the head"
        )
    return "all-linear" if len(others) < len(names) else names or None
