"""What is wrong with a form, in words: llguidance's, and where in a JSON schema they apply. Knows no tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher

from danlu.errors import ConfigError
from danlu.generate.scores.schemas import settled

# A fault is looked for so many parts down; what is nested deeper is mostly a fault of nesting.
_DEEPEST_PLACE = 12

# What llguidance calls the schema that it was given.
_OWN_ADDRESS = "json-schema:///"


def json_grammar(schema: dict[str, Any]) -> str:
    """The grammar of a JSON schema. Raises ConfigError for what JSON cannot hold."""
    try:
        return LLMatcher.grammar_from_json_schema(settled(schema, watched=True))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema: {error}", fix="give what JSON can hold") from error


# In llguidance's words: where in a grammar, and the lines of the grammar.
_WHERE, _LISTING = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?"), re.compile(r"\n +\d+ \| ")


def short(error: str, *, is_users: bool = False) -> str:
    """llguidance's words; a regex with the place of its fault below it.

    Args:
        is_users: the grammar is the user's own; else it is ours and nobody knows it, so its lines are left away.
    """
    found = re.search(r"regex parse error:\n(.*?)\nerror: ([^\n]*)", error, re.DOTALL)
    if found:
        return f"{found[2]}\n{found[1]}"
    error = re.sub(r"Resource '(.*?)' is not present in a registry.*", r"$ref '\1': nothing is fetched here", error)
    said = error.split("\n<non-verbose/>")[0].replace(_OWN_ADDRESS, "").strip()
    return said if is_users else _WHERE.sub("", _LISTING.split(said)[0])


def schema_fault(schema: Any, error: str) -> ConfigError:
    """The error of a schema that llguidance has refused in these words."""
    place = "/".join(_place(schema, schema, error, _DEEPEST_PLACE)) or "the schema itself"
    return ConfigError(f"json_schema: {short(error)} (at {place})", fix="see docs/generation.md for what can be asked")


def _place(root: Any, schema: Any, error: str, depth: int) -> list[str]:
    """The keys that lead to the innermost part which has this fault on its own, `depth` steps down at most."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    for keys, part in _parts(schema) if depth else ():
        alone = shared | part
        if LLMatcher.validate_grammar(json_grammar(alone)) == error:
            return [*keys, *_place(root, part, error, depth - 1)]
    return []


def _parts(schema: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The schemas directly inside one, each with its keys."""
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
            yield from (([key, name], part) for name, part in value.items() if isinstance(part, dict))
        elif isinstance(value, list):
            yield from (([key, str(at)], part) for at, part in enumerate(value) if isinstance(part, dict))
        elif isinstance(value, dict) and key not in ("const", "default", "x-guidance"):
            yield [key], value
