"""Questions about the rows of a segment: a tree of and, or and not over sets, chosen codes, and numbers in a range."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from danlu.recall.rows.bits import Array, Bits

# Buffers of 128 KB that a question may need at once.
MOST_DEPTH = 64

LEAF, AND, OR, NOT = range(4)
BITS, CODES8, CODES16, CODES32, INTEGERS, FLOATS = range(6)
_FORM_OF_WIDTH = {1: CODES8, 2: CODES16, 4: CODES32}


@dataclass(frozen=True, eq=False)
class Codes:
    """Rows whose code is chosen: those from `low` to `high`, or what a table of bytes, one a code, says.

    Attributes:
        codes: uint8, uint16 or uint32 a row.
    """

    codes: Array
    low: int = 0
    high: int = 0
    chosen: Array | None = None


@dataclass(frozen=True, eq=False)
class Between:
    """Rows whose number is from `low` to `high`.

    Attributes:
        values: int64 or float64 a row. zones: (shards, 2), the least and the largest of each shard.
    """

    values: Array
    zones: Array
    low: int | float
    high: int | float


Leaf: TypeAlias = Bits | Codes | Between


@dataclass(frozen=True, eq=False)
class And:
    parts: tuple[Tree, ...]


@dataclass(frozen=True, eq=False)
class Or:
    parts: tuple[Tree, ...]


@dataclass(frozen=True, eq=False)
class Not:
    part: Tree


Tree: TypeAlias = Leaf | And | Or | Not


@dataclass(frozen=True)
class Question:
    """A tree over the rows of one segment, ready to be asked again and again."""

    rows: int
    tree: Tree
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", _depth(self.tree))

    @cached_property
    def listed(self) -> tuple[Array, Array, list[Array]]:
        """Nodes and leaves as kernels.c reads them, and the arrays that they point into."""
        nodes: list[list[int]] = []
        leaves: list[list[int]] = []
        kept: list[Array] = []
        _list(self.tree, nodes, leaves, kept)
        return np.array(nodes, np.int64), np.array(leaves, np.int64).reshape(-1, 6), kept


def _depth(tree: Tree) -> int:
    """Buffers beyond the first: what is first of a node is computed where the node's own result will be."""
    if isinstance(tree, Not):
        return _depth(tree.part)
    if not isinstance(tree, (And, Or)) or not tree.parts:
        return 0
    return max(_depth(tree.parts[0]), 1 + max(map(_depth, tree.parts[1:]), default=-1))


def _list(tree: Tree, nodes: list[list[int]], leaves: list[list[int]], kept: list[Array]) -> None:
    at = len(nodes)
    if isinstance(tree, (And, Or, Not)):
        nodes.append([{And: AND, Or: OR, Not: NOT}[type(tree)], 0, 0])
        for part in (tree.part,) if isinstance(tree, Not) else tree.parts:
            _list(part, nodes, leaves, kept)
        nodes[at][1] = len(nodes)
    else:
        nodes.append([LEAF, at + 1, len(leaves)])
        leaves.append(_numbers(tree, kept))


def _numbers(leaf: Leaf, kept: list[Array]) -> list[int]:
    """Six numbers: the form, addresses, bounds."""

    def place(array: Array | None) -> int:
        if array is None:
            return 0
        kept.append(array)
        return int(array.ctypes.data)

    if isinstance(leaf, Bits):
        return [BITS, *map(place, (leaf.words, leaf.kinds, leaf.offsets, leaf.counts)), 0]
    if isinstance(leaf, Codes):
        size = 0 if leaf.chosen is None else len(leaf.chosen)
        return [_FORM_OF_WIDTH[leaf.codes.itemsize], place(leaf.codes), place(leaf.chosen), size, leaf.low, leaf.high]
    bounds = np.array([leaf.low, leaf.high], leaf.values.dtype).view(np.int64)
    form = FLOATS if leaf.values.dtype == np.float64 else INTEGERS
    return [form, place(leaf.values), place(leaf.zones), 0, *map(int, bounds)]
