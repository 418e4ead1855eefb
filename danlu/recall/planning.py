"""A clause -> the tree that answers it for one segment: what has the fewest rows first, what is scanned last."""

from __future__ import annotations

from collections.abc import Callable

from danlu.errors import ConfigError
from danlu.recall.rows.bits import EMPTY, FULL, Bits
from danlu.recall.rows.tree import MOST_DEPTH, And, Not, Or, Question, Tree
from danlu.recall.where import Atom, Clause, Every


def question(clause: Clause, live: Bits, passing: Callable[[Atom], Tree]) -> Question:
    """The live rows of a segment that the clause is for.

    Args:
        passing: the rows of the segment that pass one test.

    Raises ConfigError for what is nested too deeply.
    """
    tree = _tree(clause, live.rows, passing)
    whole = tree if live.count == live.rows else And((live, tree))
    asked = Question(live.rows, whole)
    if asked.depth > MOST_DEPTH:
        raise ConfigError(
            f"the where-clause is nested {asked.depth} deep", allowed=f"{MOST_DEPTH}", fix="write it flatter"
        )
    return asked


def _tree(clause: Clause, rows: int, passing: Callable[[Atom], Tree]) -> Tree:
    if isinstance(clause, Atom):
        return passing(clause)
    is_and = isinstance(clause, Every)
    if not clause.parts:
        return Bits.whole(rows, FULL if is_and else EMPTY)
    parts = sorted((_tree(part, rows, passing) for part in clause.parts), key=lambda tree: _order(tree, rows, is_and))
    return And(tuple(parts)) if is_and else Or(tuple(parts))


def _order(tree: Tree, rows: int, is_and: bool) -> tuple[bool, float]:
    """What settles most shards first: few rows for and, many for or; scans are spared by what comes before."""
    count = estimate(tree, rows)
    return _scans(tree), count if is_and else -count


def estimate(tree: Tree, rows: int) -> float:
    """About how many rows a tree has: sets are counted, scans are taken for half of all."""
    if isinstance(tree, Bits):
        return tree.count
    if isinstance(tree, Not):
        return rows - estimate(tree.part, rows)
    if isinstance(tree, And):
        return min((estimate(part, rows) for part in tree.parts), default=rows)
    if isinstance(tree, Or):
        return min(sum(estimate(part, rows) for part in tree.parts), rows)
    return rows / 2


def _scans(tree: Tree) -> bool:
    if isinstance(tree, Not):
        return _scans(tree.part)
    return any(map(_scans, tree.parts)) if isinstance(tree, (And, Or)) else not isinstance(tree, Bits)
