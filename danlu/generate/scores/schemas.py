"""JSON schemas as llguidance takes them: what it reads too loosely is written out, what says nothing is left away.

Knows no model. A schema that cannot be followed is not judged here; grammar.py has the words for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from danlu.errors import ConfigError

# Between the parts of JSON: enough for an indented line, and no way to go on for ever with blanks.
_BLANKS = r"[\x20\x0A\x0D\x09]{1,32}"

# RFC 3339 with the calendar: 29 February in leap years alone (every fourth year, of full centuries every fourth).
# No leap seconds: few programs read them.
_FOURTHS = "[02468][048]|[13579][26]"
_LEAP_YEAR = f"(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:{_FOURTHS})00)"
_DATE = (
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[Tt]{_TIME}$"}

# Where schemas stand in a schema.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")


def settled(schema: dict[str, Any], *, watched: bool = False) -> dict[str, Any]:
    """The schema with what it leaves open to llguidance; what that cannot check is always refused.

    Args:
        watched: somebody else sees to it that items differ (unique.py).

    Raises ConfigError for settings that would let an answer be no JSON.
    """
    given = schema.get("x-guidance", {})
    if not isinstance(given, dict) or not given.keys() <= {"whitespace_flexible"}:
        raise ConfigError(f"json_schema: x-guidance is {given!r:.200}", allowed='{"whitespace_flexible": false}')
    if not isinstance(given.get("whitespace_flexible", True), bool):
        raise ConfigError("json_schema: x-guidance.whitespace_flexible is neither true nor false")
    blanks = given or {"whitespace_pattern": _BLANKS}
    plain = _rewritten({key: value for key, value in schema.items() if key != "x-guidance"}, watched)
    return {**plain, "x-guidance": {**blanks, "lenient": False}}


def _rewritten(schema: Any, watched: bool) -> Any:
    """A schema, and those in it."""
    if not isinstance(schema, dict):
        return schema
    result = {key: _inside(key, watched)(value) for key, value in schema.items()}
    unique = result.get("uniqueItems")
    if unique is False or (unique is True and watched) or holds_one(result):
        result.pop("uniqueItems", None)
    pattern = _FORMATS.get(result["format"]) if isinstance(result.get("format"), str) else None
    if pattern is not None and "pattern" not in result:
        del result["format"]
        result["pattern"] = pattern
    return result


def holds_one(schema: dict[str, Any]) -> bool:
    """Whether an array has one item at most, which differs from all others."""
    most = schema.get("maxItems")
    return isinstance(most, int) and most <= 1


def _inside(key: str, watched: bool) -> Callable[[Any], Any]:
    """How what stands under a keyword is rewritten."""
    if key in _SINGLE:
        return lambda part: _rewritten(part, watched)
    if key in _LISTED:
        return lambda parts: [_rewritten(part, watched) for part in parts] if isinstance(parts, list) else parts
    if key in _NAMED:
        return lambda parts: (
            {name: _rewritten(part, watched) for name, part in parts.items()} if isinstance(parts, dict) else parts
        )
    return lambda value: value


def pointed(schema: Any, reference: str) -> Any:
    """What a reference inside a schema points to; None where there is nothing."""
    found = schema
    for key in unquote(reference).removeprefix("#").split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(key)] if key.isdigit() and int(key) < len(found) else None
        else:
            found = found.get(key) if isinstance(found, Mapping) else None
    return found
