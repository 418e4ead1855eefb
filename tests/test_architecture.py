"""Imports go one way: a file imports only from rows above its own, or from its own package."""

import ast
from pathlib import Path

import danlu

ROOT = Path(danlu.__file__).parent
ROWS = [
    "errors", "fingerprint", "words", "config", "device", "journal", "spec", "hub", "native", "plan", "data", "model",
    "generate", "train", "quantize", "recall", "evaluate", "serve", "report", "ui", "recipe", "steps", "chain", "run",
    "terminal", "help", "flags", "answering", "commands", "cli",
]  # fmt: skip


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "danlu":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("danlu.")}
    return rooms - {"__version__"}


def test_every_room_has_a_row():
    rooms = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert rooms - {"__init__"} <= set(ROWS)


def test_imports_only_from_rows_above():
    upward = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        room = parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        allowed = {*ROWS[: ROWS.index(room)], *([room] if len(parts) > 1 else [])}
        upward += [f"{path.relative_to(ROOT)} imports {other}" for other in imported_rooms(path) - allowed]
    assert upward == []
