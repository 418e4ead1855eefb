"""Rows from the standard library's own sources: functions with the first lines of their docstrings.

Real, a few thousand rows, on every machine with Python, and read where they stand: nothing is downloaded
and nothing is copied into the project. A row's group is its module, so that held-out functions come from
modules never trained on.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo"}
_NEAR = 50  # functions whose lines are about as long
_SHORTEST, _LONGEST = 20, 160  # characters of an answer: below it says little, above it is no line


INSTRUCTION = "Describe this Python function in one line."


def docstring_pairs(instruction: str = INSTRUCTION) -> Iterator[dict[str, Any]]:
    """Chat rows in a fixed order: user = instruction and signature, assistant = first line of the docstring."""
    for function in _described():
        messages = [*_asked(function, instruction), {"role": "assistant", "content": function.line}]
        yield {"messages": messages, "group": function.module}


def docstring_preferences(instruction: str = INSTRUCTION, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Preference rows in a fixed order: the line of the function itself is better than that of one elsewhere.

    The other line comes from another module and is about as long, so that its length gives nothing away.
    """
    functions = sorted(_described(), key=lambda function: len(function.line))
    dice = random.Random(seed)
    for at, function in enumerate(functions):
        near = functions[max(0, at - _NEAR) : at + _NEAR + 1]
        others = [other.line for other in near if other.module != function.module and other.line != function.line]
        if others:
            yield {
                "prompt": _asked(function, instruction),
                "chosen": function.line,
                "rejected": dice.choice(others),
                "group": function.module,
            }


def docstring_texts() -> Iterator[dict[str, Any]]:
    """Documents, one a module: what its functions are, and what they do."""
    for module, functions in groupby(_described(), key=lambda function: function.module):
        listed = "\n\n".join(f"{function.signature}\n    {function.line}" for function in functions)
        yield {"text": f"# {module}\n\n{listed}", "group": module}


@dataclass(frozen=True)
class _Function:
    module: str
    signature: str
    line: str


def _asked(function: _Function, instruction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{instruction}\n\n{function.signature}"}]


@cache
def _described() -> tuple[_Function, ...]:
    """Every function with a docstring whose first line says something; none twice. Read once a process."""
    return tuple(_read())


def _read() -> Iterator[_Function]:
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[tuple[str, str]] = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT & set(parts):
            continue
        for signature, line in _functions(path):
            if (signature, line) not in seen:
                seen.add((signature, line))
                yield _Function(".".join(parts).removesuffix(".py").removesuffix(".__init__"), signature, line)


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
