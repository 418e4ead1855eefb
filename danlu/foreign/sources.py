"""Data sets as other tools name them -> what `data` of a recipe says: files here, or where to fetch them from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from danlu.data.formats import Reading, Skipped, read_records
from danlu.errors import ConfigError, DataError
from danlu.foreign.making import Making, default_of

Hub = Literal["hugging face", "modelscope"]
FILES = {".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".md", ".arrow"}


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        path: of the file or folder; of one on a hub, the folder that it is to be fetched into.
        format: of its rows; None where Danlu is to recognise it.
        columns, roles: as `data` has them.
        most: rows of it that are used.
    """

    path: str
    format: str | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    most: int | None = None


def place_of(name: str, making: Making, key: str, hub: Hub = "hugging face") -> str:
    """The path of a data set that is named by a path or by its id on a hub; what is to be fetched is told."""
    if not name.strip():
        raise ConfigError(
            f"{making.given.where}: {key} names nothing", fix="name a file or a data set; it is empty text"
        )
    folder = making.given.folder
    for path in (Path(name).expanduser(), folder / name):
        if path.exists():
            return _shown(path)
    if Path(name).suffix.lower() in FILES or name.startswith(("/", "./", "../", "~")) or name.count("/") != 1:
        making.lacks(key, f"{name}: no such file here; data.path says where it was looked for")
        return name
    target = f"data/{name}"
    command = {
        "hugging face": f"hf download {name} --repo-type dataset --local-dir {target}",
        "modelscope": f"modelscope download --dataset {name} --local_dir {target}",
    }[hub]
    making.lacks(key, f"{name} is on a hub, and Danlu reads files: fetch it with `{command}`")
    return target


def _shown(path: Path) -> str:
    """A path from the current folder, where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") and path.is_absolute() else relative


def put_sources(making: Making, sources: Sequence[Source], key: str) -> None:
    """`data.path`, and how its rows are read."""
    first = sources[0]
    paths = [source.path for source in sources]
    making.put("data.path", paths[0] if len(paths) == 1 else paths, key)
    if first.format and all(source.format == first.format for source in sources):
        making.put("data.format", first.format, key)
    for name in ("columns", "roles"):
        kept = getattr(first, name)
        if kept:
            making.put(f"data.{name}", kept, key)
        if others := [source.path for source in sources if getattr(source, name) != kept]:
            making.lacks(key, f"{', '.join(others)}: {name} of its own, and a recipe has one mapping for all its data; "
                              f"give that data set a step of its own, or rename them in the file")  # fmt: skip


def put_most(making: Making, sources: Sequence[Source], key: str) -> None:
    """`data.max_examples`, where data sets are cut."""
    if all(source.most is None for source in sources):
        return
    if len(sources) == 1:
        making.put("data.max_examples", sources[0].most, key)
        making.differs(key, "a random choice, where the tool takes the first")
        return
    counts = [_used(making, source) for source in sources]
    if None in counts:
        making.lacks(key, "a limit of each data set, of which some are not there to be counted: set data.max_examples")
        return
    making.put("data.max_examples", sum(count for count in counts if count is not None), key)
    making.differs(key, "a random choice over all data sets, where the tool takes the first of each")


def _used(making: Making, source: Source) -> int | None:
    """Records of a data set that are used; None where it is not there to be counted."""
    found = count(making, source)
    return found if found is None or source.most is None else min(source.most, found)


def put_held_out(making: Making, sources: Sequence[Source], wanted: float, key: str) -> None:
    """`data.held_out` for a number of records or a share of them; without any there is nothing to prove by."""
    if wanted <= 0:
        making.put("data.held_out", 0, making.default)
        making.put("prove", None, "nothing is held out; with data.held_out, say 200, it can be proved")
        return
    if wanted >= 1:
        making.put("data.held_out", int(wanted), key)
        return
    counts = [_used(making, source) for source in sources]
    if any(found is None for found in counts):
        stands = default_of(making.model, "data.held_out")
        making.lacks(key, f"a share of data that is not there to be counted: set data.held_out, else it is {stands}")
        return
    total = sum(found for found in counts if found is not None)
    making.put("data.held_out", max(1, round(wanted * total)), f"{key} {wanted:g} of {total} records")


def count(making: Making, source: Source) -> int | None:
    """Records of a data set; None where it is not there, or cannot be read as it is described."""
    path = Path(source.path)
    if not path.exists():
        return None
    given: Any = source
    try:
        reading = Reading(given.format, source.columns, given.roles, may_be_unanswered=making.kind == "ppo")
        return sum(1 for _ in read_records(path, reading=reading, on_error="skip", skipped=Skipped()))
    except DataError:
        return None
