"""origin.json beside a model or an adapter: where it comes from, and whether it answers or continues text.

Written by whoever makes the directory; a directory without the file has nothing to say. Looks at no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

# An instruct model has learnt to answer and to end its turn. A base model continues text.
Kind = Literal["base", "instruct"]

FILE = "origin.json"


def write_origin(directory: Path, **said: str) -> None:
    """Say `said` of the directory: source, licence, licence_url, kind; of an adapter, its base, and where that was
    packed while it was trained: four_bit, dtype.

    What was said before is replaced by name.
    """
    document = json.dumps(_read(directory) | said, ensure_ascii=False, indent=2)
    (directory / FILE).write_text(document + "\n", "utf-8")


def recorded_kind(directory: Path) -> Kind | None:
    """What the directory's maker says of it; None where nobody does."""
    kind = _read(directory).get("kind")
    return kind if kind in ("base", "instruct") else None


def recorded_base(adapter: Path) -> str | None:
    """The model that an adapter was trained on, as its maker named it."""
    base = _read(adapter).get("base")
    return base if isinstance(base, str) else None


def recorded_packing(adapter: Path) -> tuple[str, str] | None:
    """How the base's weights were packed while an adapter was trained, and in what they were multiplied, by name."""
    said = _read(adapter)
    packing, dtype = said.get("four_bit"), said.get("dtype")
    return (packing, dtype) if isinstance(packing, str) and isinstance(dtype, str) else None


def _read(directory: Path) -> dict[str, Any]:
    """Empty where there is no such file. One that another tool wrote, or damaged, says nothing here."""
    try:
        document = json.loads((directory / FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
