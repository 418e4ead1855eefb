"""uniqueItems in a JSON schema: which arrays ask for it, and what their items can be where that is known.

Where a text stands, and which tokens may follow, is doubles.py's. Knows no token.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from danlu.errors import ConfigError
from danlu.generate.scores.schemas import holds_one, pointed

# Values of an item are known up to so many, of so many characters, and structures of values up to this depth.
_MOST_VALUES, _LONGEST, _DEEPEST = 256, 1024, 4

# What gives strings an end.
_LIMITS = {"pattern", "maxLength", "format"}

_COMBINED = ("anyOf", "oneOf", "allOf")
Schemas = tuple[dict[str, Any], ...]


class Uniques:
    """The arrays of a schema whose items must differ.

    Where several schemas may hold for an array, its items differ if one of them asks for it.

    Args:
        schema: one that asks for it somewhere.

    Raises ConfigError for references that are not followed here, and for arrays that cannot have so many items.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._children: dict[tuple[tuple[int, ...], int | str | None], Schemas] = {}
        self._values: dict[tuple[tuple[int, ...], int], tuple[str, ...] | None] = {}
        for part in _all_parts(schema):
            if _is_named(part, part is schema):
                raise ConfigError(
                    "json_schema: uniqueItems, and a part is referred to by its name",
                    fix='write references as {"$ref": "#/$defs/…"}, or leave uniqueItems out',
                )
        self.root = self._spread([schema])
        for part in _all_parts(schema):
            if part.get("uniqueItems") is True and (values := self.values((part,))) is not None:
                _refuse_too_many(part, len(values))

    @staticmethod
    def of(schema: dict[str, Any]) -> Uniques | None:
        """None where no array of the schema asks for it."""
        asks = any(part.get("uniqueItems") is True and not holds_one(part) for part in _all_parts(schema))
        return Uniques(schema) if asks else None

    def children(self, parents: Schemas, at: int | str) -> Schemas:
        """What may hold for an item, or for the value of a key, in what `parents` may hold for."""
        if isinstance(at, int):
            at = min(at, max(len(parent.get("prefixItems", ())) for parent in parents) if parents else 0)
        known = at if isinstance(at, int) or any(at in (one.get("properties") or ()) for one in parents) else None
        key = (tuple(map(id, parents)), known)  # a model may write any number of keys
        if key not in self._children:
            self._children[key] = self._spread(_inside(parents, at))
        return self._children[key]

    def values(self, parents: Schemas) -> tuple[str, ...] | None:
        """All that an item of an array can be, as JSON; None where these are too many, or no scalars."""
        return self._known(_all_items(parents), _DEEPEST)

    def limits_strings(self, parents: Schemas) -> bool:
        """Whether the strings that are items of an array have a form or a length."""
        return any(_LIMITS & schema.keys() for schema in self._spread(_all_items(parents)))

    def _known(self, schemas: Iterable[Any], depth: int) -> tuple[str, ...] | None:
        """Compact JSON of all that fits one of these."""
        spread = self._spread(schemas)
        key = (tuple(map(id, spread)), depth)
        if key not in self._values:
            self._values[key] = self._known_of(spread, depth)
        return self._values[key]

    def _known_of(self, schemas: Schemas, depth: int) -> tuple[str, ...] | None:
        found: dict[str, None] = {}
        for schema in schemas:
            texts = self._texts(schema, depth)
            if texts is None or len(found) + len(texts) > _MOST_VALUES or max(map(len, texts), default=0) > _LONGEST:
                return None
            found |= dict.fromkeys(texts)
        return tuple(found)

    def _texts(self, schema: dict[str, Any], depth: int) -> Sequence[str] | None:
        given = [schema["const"]] if "const" in schema else schema.get("enum")
        if given is not None:
            is_plain = isinstance(given, list) and all(one is None or isinstance(one, str | int) for one in given)
            return list(map(_compact, given)) if is_plain else None
        if "type" not in schema:
            return [] if schema.keys() & {*_COMBINED, "$ref"} else None
        texts: list[str] = []
        for kind in schema["type"] if isinstance(schema["type"], list) else [schema["type"]]:
            more = self._of_kind(kind, schema, depth)
            if more is None:
                return None
            texts += more
        return texts

    def _of_kind(self, kind: Any, schema: dict[str, Any], depth: int) -> Sequence[str] | None:
        if kind in ("boolean", "null"):
            return ["true", "false"] if kind == "boolean" else ["null"]
        if kind == "integer":
            numbers = _numbers(schema)
            return None if numbers is None else list(map(_compact, numbers))
        if kind == "object" and depth:
            return self._objects(schema, depth)
        return self._arrays(schema, depth) if kind == "array" and depth else None

    def _objects(self, schema: dict[str, Any], depth: int) -> list[str] | None:
        """Objects of the keys that are named, in their order, as llguidance writes them."""
        if schema.get("additionalProperties") is not False or "patternProperties" in schema:
            return None
        found: list[tuple[str, ...]] = [()]
        for key, part in (schema.get("properties") or {}).items():
            values = self._known([part], depth - 1)
            if values is None:
                return None
            pairs = [(f"{_compact(key)}:{value}",) for value in values]
            found = [(*one, *pair) for one in found for pair in pairs + [()] * (key not in schema.get("required", ()))]
            if len(found) > _MOST_VALUES:
                return None
        return ["{" + ",".join(one) + "}" for one in found]

    def _arrays(self, schema: dict[str, Any], depth: int) -> list[str] | None:
        values = None if "prefixItems" in schema else self._known([schema.get("items", {})], depth - 1)
        is_unique, least, most = schema.get("uniqueItems") is True, schema.get("minItems", 0), schema.get("maxItems")
        if values is None or type(least) is not int or not (type(most) is int or is_unique):
            return None
        most = most if type(most) is int else len(values)
        most = min(most, len(values)) if is_unique else most
        found: list[str] = []
        for length in range(least, most + 1):
            rows = itertools.permutations(values, length) if is_unique else itertools.product(values, repeat=length)
            found += ("[" + ",".join(row) + "]" for row in itertools.islice(rows, _MOST_VALUES + 1))
            if not _MOST_VALUES >= len(found) > 0:
                return None
        return found

    def _spread(self, schemas: Iterable[Any]) -> Schemas:
        """Schemas, and those that they refer to or are combined of."""
        found: dict[int, dict[str, Any]] = {}
        waiting = list(schemas)
        while waiting:
            one = waiting.pop()
            if isinstance(one, dict) and id(one) not in found:
                found[id(one)] = one
                waiting += [part for name in _COMBINED if isinstance(one.get(name), list) for part in one[name]]
                if isinstance(one.get("$ref"), str):
                    waiting.append(pointed(self._schema, one["$ref"]))
        return tuple(found.values())


def _is_named(part: dict[str, Any], is_root: bool) -> bool:
    """Whether a part of a schema has a name, or refers to one."""
    place = part.get("$ref")
    refers = isinstance(place, str) and re.match(r"#(/|$)", place) is None
    return refers or isinstance(part.get("$dynamicRef"), str) or (isinstance(part.get("$id"), str) and not is_root)


def refuse_circles(schema: dict[str, Any]) -> None:
    """Raise ConfigError for a schema that is nothing but itself: one that holds itself does so in its parts."""
    known: set[int] = set()
    for part in _all_parts(schema):
        path = {id(part): ""}
        waiting = [] if id(part) in known else [iter(_all_of(schema, part))]
        while waiting:
            place, one = next(waiting[-1], ("", None))
            if one is None:
                waiting.pop()
                known.add(path.popitem()[0])
            elif id(one) in path:
                raise ConfigError(
                    f"json_schema: $ref {place or next(filter(None, reversed(path.values())))!r} leads back to itself, "
                    "and says nothing",
                    fix="let it lead to a schema; one that holds itself does so in properties or items",
                )
            elif id(one) not in known:
                path[id(one)] = place
                waiting.append(iter(_all_of(schema, one)))


def _all_of(schema: dict[str, Any], part: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What a part says is all that these say, and more: (the reference that leads there, schema)."""
    found: list[tuple[str, Any]] = [("", one) for one in part.get("allOf") or () if isinstance(part["allOf"], list)]
    if isinstance(part.get("$ref"), str):
        found.append((part["$ref"], pointed(schema, part["$ref"])))
    return [(place, one) for place, one in found if isinstance(one, dict)]


def _all_parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema that may be one; values that stand in it as such are left out."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += [value for key, value in one.items() if key not in ("const", "enum", "default", "examples")]
        elif isinstance(one, list):
            waiting += one


def _inside(parents: Schemas, at: int | str) -> Iterator[Any]:
    for parent in parents:
        if isinstance(at, int):
            first = parent.get("prefixItems", ())
            yield first[at] if at < len(first) else parent.get("items")
        else:
            yield (parent.get("properties") or {}).get(at)
            yield from (parent.get("patternProperties") or {}).values()
            yield parent.get("additionalProperties")


def _all_items(parents: Schemas) -> Iterator[Any]:
    for parent in parents:
        yield from parent.get("prefixItems", ())
        yield parent.get("items", {})


def _numbers(schema: dict[str, Any]) -> list[int] | None:
    least, most = schema.get("minimum"), schema.get("maximum")
    known = type(least) is int and type(most) is int and most - least < _MOST_VALUES
    return list(range(least, most + 1)) if known and least is not None and most is not None else None


def _refuse_too_many(array: dict[str, Any], count: int) -> None:
    least = array.get("minItems", 0)
    if isinstance(least, int) and least > count:
        raise ConfigError(
            f"json_schema: minItems asks for {least} items, uniqueItems that they differ, and there are {count} values",
            fix="lower minItems",
        )


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
