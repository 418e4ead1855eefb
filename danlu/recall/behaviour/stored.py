"""Events, and what channels have learnt of them, as files of arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from danlu.recall.behaviour.events import Events
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.models import ItemToItem
from danlu.recall.behaviour.names import Names
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import Array

_COLUMNS = ("users", "items", "kinds", "weights", "times")


def write_events(writer: ArrayWriter, events: Events) -> None:
    for name in _COLUMNS:
        writer.add(name, getattr(events, name))
    events.user_names.write(writer, "user.")
    events.item_names.write(writer, "item.")
    _write_json(
        writer, "about", {"kinds": events.kind_names, "timed": events.is_timed, "duplicates": events.duplicates}
    )


def read_events(file: ArrayFile) -> Events:
    """Raises Damaged if the arrays do not fit together."""
    arrays = {name: file[name] for name in _COLUMNS}
    users, items, about = Names.read(file, "user."), Names.read(file, "item."), _read_json(file, "about")
    if len({len(array) for array in arrays.values()}) != 1:
        raise Damaged(f"{file.name}: its arrays do not fit together")
    _check_codes(file, list(arrays.values())[:3], (len(users), len(items), len(about["kinds"])))
    kinds = tuple(about["kinds"])
    return Events(
        **arrays,
        user_names=users,
        item_names=items,
        kind_names=kinds,
        is_timed=about["timed"],
        duplicates=about["duplicates"],
    )


def write_lists(writer: ArrayWriter, model: ItemToItem, about: dict[str, Any]) -> None:
    """About: what else is to be known when it is read."""
    for name in ("starts", "columns", "values"):
        writer.add(name, getattr(model.neighbours, name))
    writer.add("norms", model.norms)
    _write_json(writer, "about", {**about, "recency_days": model.recency_days, "width": model.neighbours.width})


def read_lists(file: ArrayFile) -> tuple[ItemToItem, dict[str, Any]]:
    """(the model, what else was written). Raises Damaged if the arrays do not fit together."""
    about = _read_json(file, "about")
    starts, columns, values, width = file["starts"], file["columns"], file["values"], about.pop("width")
    _check_rows(file, starts, columns)
    if len(columns) != len(values):
        raise Damaged(f"{file.name}: its arrays do not fit together")
    _check_codes(file, [columns], (width,))
    lists = Matrix(starts, columns, values, np.zeros(len(columns)), width)
    return ItemToItem(lists, file["norms"], about.pop("recency_days")), about


def _check_codes(file: ArrayFile, arrays: Sequence[Array], counts: Sequence[int]) -> None:
    """No code leads outside what it names: kernels follow them."""
    for codes, count in zip(arrays, counts, strict=True):
        if len(codes) and not (codes.min() >= 0 and codes.max() < count):
            raise Damaged(f"{file.name}: a code names nothing")


def _write_json(writer: ArrayWriter, name: str, value: Any) -> None:
    writer.add(name, np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8))


def _read_json(file: ArrayFile, name: str) -> Any:
    try:
        return json.loads(bytes(file[name]))
    except ValueError as error:
        raise Damaged(f"{file.name}: {name} is no JSON") from error


def write_histories(writer: ArrayWriter, users: Matrix, about: dict[str, Any]) -> None:
    for name in ("starts", "columns", "values", "times"):
        writer.add(name, getattr(users, name))
    _write_json(writer, "about", {**about, "width": users.width})


def read_histories(file: ArrayFile) -> tuple[Matrix, dict[str, Any]]:
    """(users with items, what else was written). Raises Damaged if the arrays do not fit together."""
    about = _read_json(file, "about")
    starts, columns, width = file["starts"], file["columns"], about.pop("width")
    _check_rows(file, starts, columns)
    _check_codes(file, [columns], (width,))
    if not len(columns) == len(file["values"]) == len(file["times"]):
        raise Damaged(f"{file.name}: its arrays do not fit together")
    return Matrix(starts, columns, file["values"], file["times"], width), about


def _check_rows(file: ArrayFile, starts: Array, columns: Array) -> None:
    if not len(starts) or starts[0] != 0 or starts[-1] != len(columns) or (np.diff(starts) < 0).any():
        raise Damaged(f"{file.name}: its rows do not follow each other")
