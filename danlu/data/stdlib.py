"""Rows from the standard library's own sources: a function's signature -> the first line of its docstring.

Real, a few thousand rows, on every machine with Python, and read where they stand: nothing is downloaded
and nothing is copied into the project. A row's group is its module, so that held-out functions come from
modules never trained on.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo"}
_SHORTEST, _LONGEST = 20, 160  # characters of an answer: below it says little, above it is no line


def docstring_pairs(instruction: str = "Describe this Python function in one line.") -> Iterator[dict[str, Any]]:
    """Chat rows in a fixed order: user = instruction and signature, assistant = first line of the docstring."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[tuple[str, str]] = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT & set(parts):
            continue
        for signature, line in _functions(path):
            if (signature, line) not in seen:
                seen.add((signature, line))
                yield {
                    "messages": [
                        {"role": "user", "content": f"{instruction}\n\n{signature}"},
                        {"role": "assistant", "content": line},
                    ],
                    "group": ".".join(parts).removesuffix(".py").removesuffix(".__init__"),
                }


def _functions(path: Path) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # deliberately broken sources ship with some distributions
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = (ast.get_docstring(node) or "").strip().partition("\n")[0].strip()
            if _SHORTEST <= len(line) <= _LONGEST and line.endswith("."):
                yield _signature(node), line


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}"
