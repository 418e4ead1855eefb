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


_Node = ast.FunctionDef | ast.AsyncFunctionDef

INSTRUCTION = "Describe this Python function in one line."


def docstring_pairs(instruction: str = INSTRUCTION) -> Iterator[dict[str, Any]]:
    """Chat rows in a fixed order: user = instruction and signature, assistant = first line of the docstring."""
    for function in described():
        messages = [*_asked(function, instruction), {"role": "assistant", "content": function.line}]
        yield {"messages": messages, "group": function.module}


def docstring_preferences(instruction: str = INSTRUCTION, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Preference rows in a fixed order: the line of the function itself is better than that of one elsewhere.

    The other line comes from another module and is about as long, so that its length gives nothing away.
    """
    functions = sorted(described(), key=lambda function: len(function.line))
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
    for module, functions in groupby(described(), key=lambda function: function.module):
        listed = "\n\n".join(f"{function.signature}\n    {function.line}" for function in functions)
        yield {"text": f"# {module}\n\n{listed}", "group": module}


@dataclass(frozen=True)
class Function:
    """Attributes:
    name: of a method, behind that of its class. line: the first of its docstring. text: all of it.
    """

    module: str
    name: str
    signature: str
    line: str
    text: str


def _asked(function: Function, instruction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{instruction}\n\n{function.signature}"}]


@cache
def described() -> tuple[Function, ...]:
    """Every function with a docstring whose first line says something; none twice. Read once a process."""
    return tuple(_read())


def _read() -> Iterator[Function]:
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[tuple[str, str]] = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT & set(parts):
            continue
        module = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        for name, node, text in _functions(path):
            signature, line = _signature(node), text.partition("\n")[0].strip()
            if (signature, line) not in seen:
                seen.add((signature, line))
                yield Function(module, name, signature, line, text)


def _functions(path: Path) -> Iterator[tuple[str, _Node, str]]:
    """(name, function, docstring) of each that has one which says something."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # deliberately broken sources ship with some distributions
        return
    classes = {id(node): one.name for one in ast.walk(tree) if isinstance(one, ast.ClassDef) for node in one.body}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = (ast.get_docstring(node) or "").strip()
            line = text.partition("\n")[0].strip()
            if _SHORTEST <= len(line) <= _LONGEST and line.endswith("."):
                owner = classes.get(id(node))
                yield f"{owner}.{node.name}" if owner else node.name, node, text


def _signature(node: _Node) -> str:
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}"
