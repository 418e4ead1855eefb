"""A chat template, filled once for each order of roles instead of once for each conversation.

Many templates do nothing with what a message says but write it, perhaps without the white space around it. Which ones,
`writes_only` finds in the template's own syntax. For such a template and one order of roles, all that stands between
the contents is the same for every conversation: it is read off once, and contents are put in from then on.

Knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from jinja2 import Environment, nodes

KEPT_SHAPES = 5_000
_EDGE, _OPEN, _CLOSE = "\u2003", "\ue000", "\ue001"  # white space and two marks that no template writes
_FOUND = re.compile(f"({_EDGE}?){_OPEN}([0-9]+){_CLOSE}({_EDGE}?)")

Fill = Callable[[list[dict[str, str]], bool], str]
# Literals, and between each two of them the message whose content goes there and whether it is stripped.
Parts = tuple[list[str], list[tuple[int, bool]]]


class Stencils:
    """What a template writes for messages of nothing but a role and a content that is not empty.

    Args:
        fill: renders messages, with or without the opening of an answer, with a template that `writes_only`.
    """

    def __init__(self, fill: Fill) -> None:
        self._fill = fill
        self._shapes: dict[tuple[bool, tuple[str, ...]], Parts | None] = {}

    def parts(self, roles: tuple[str, ...], opening: bool) -> Parts | None:
        """What stands around the contents; None where it has to be rendered."""
        shape = (opening, roles)
        if shape not in self._shapes:
            if len(self._shapes) >= KEPT_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = self._read_off(roles, opening)
        return self._shapes[shape]

    def render(self, roles: tuple[str, ...], contents: Sequence[str], opening: bool) -> str | None:
        """The text; None where it has to be rendered."""
        parts = self.parts(roles, opening)
        if parts is None:
            return None
        literals, holes = parts
        written = [literals[0]]
        for literal, (at, stripped) in zip(literals[1:], holes, strict=True):
            written += (contents[at].strip() if stripped else contents[at], literal)
        return "".join(written)

    def _read_off(self, roles: tuple[str, ...], opening: bool) -> Parts | None:
        probes = [{"role": role, "content": f"{_EDGE}{_OPEN}{at}{_CLOSE}{_EDGE}"} for at, role in enumerate(roles)]
        try:
            pieces = _FOUND.split(self._fill(probes, opening))
        except Exception:  # as Jinja's authors choose; a refusal is worded where the messages themselves are rendered
            return None
        before, number, after = pieces[1::4], pieces[2::4], pieces[3::4]
        if before != after:
            return None
        return pieces[::4], [(int(at), not edge) for at, edge in zip(number, before, strict=True)]


def writes_only(template: str, environment: Environment) -> bool:
    """The template does nothing with a content but write it: nothing else that it does can depend on one."""
    if any(mark in template for mark in (_EDGE, _OPEN, _CLOSE, "strftime_now")):
        return False
    tree = environment.parse(template)
    lists, messages, contents = {"messages"}, set[str](), set[str]()
    while True:  # names given to lists, messages and contents, until there are no more
        known = len(lists) + len(messages) + len(contents)
        for loop in tree.find_all(nodes.For):
            if _is_list(loop.iter, lists) and isinstance(loop.target, nodes.Name):
                messages.add(loop.target.name)
        for assign in tree.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name):
                if _is_list(assign.node, lists):
                    lists.add(assign.target.name)
                elif any(_is_content(node) or _is_name(node, contents) for node in _within(assign.node)):
                    contents.add(assign.target.name)
        if known == len(lists) + len(messages) + len(contents):
            break
    if lists & messages or lists & contents or messages & contents:
        return False
    return _Reader(lists, messages, contents).allows(tree)


class _Reader:
    """Walks the syntax; anything it does not know is not allowed to touch a message."""

    def __init__(self, lists: set[str], messages: set[str], contents: set[str]) -> None:
        self._lists, self._messages, self._contents = lists, messages, contents

    def allows(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Output):
            return all(map(self._writes, node.nodes))
        if isinstance(node, nodes.Assign):
            return self._assigns(node)
        if isinstance(node, nodes.For):
            return self._loops(node)
        if isinstance(node, nodes.If):
            inner = (*node.body, *node.elif_, *node.else_)
            return self._decides(node.test) and all(map(self.allows, inner))
        if isinstance(node, nodes.CallBlock):  # {% generation %}
            is_mark = isinstance(node.call, nodes.Call) and isinstance(node.call.node, nodes.ExtensionAttribute)
            return is_mark and all(map(self.allows, node.body))
        if isinstance(node, nodes.Template):
            return all(map(self.allows, node.body))
        return isinstance(node, nodes.Break | nodes.Continue)

    def _loops(self, node: nodes.For) -> bool:
        over_messages = _is_list(node.iter, self._lists) and isinstance(node.target, nodes.Name)
        return (
            (over_messages or self._is_free(node.iter))
            and (node.test is None or self._decides(node.test))
            and not node.recursive
            and all(map(self.allows, (*node.body, *node.else_)))
        )

    def _assigns(self, node: nodes.Assign) -> bool:
        if isinstance(node.target, nodes.Name):
            if node.target.name in self._lists:
                return _is_list(node.node, self._lists)
            if node.target.name in self._contents:
                return self._writes(node.node)
        return self._is_free(node.node)

    def _writes(self, node: nodes.Node) -> bool:
        """What becomes text, whatever the contents in it are."""
        if isinstance(node, nodes.Add):
            return self._writes(node.left) and self._writes(node.right)
        if isinstance(node, nodes.Concat):
            return all(map(self._writes, node.nodes))
        if isinstance(node, nodes.CondExpr):
            branches = [node.expr1, *([node.expr2] if node.expr2 else [])]
            return self._decides(node.test) and all(map(self._writes, branches))
        if isinstance(node, nodes.Filter) and node.name == "trim" and not (node.args or node.kwargs):
            return self._is_content_here(node.node) or self._is_free(node)
        return self._is_content_here(node) or _is_name(node, self._contents) or self._is_free(node)

    def _decides(self, node: nodes.Node) -> bool:
        """A condition that is the same for every content that is not empty."""
        if isinstance(node, nodes.And | nodes.Or):
            return self._decides(node.left) and self._decides(node.right)
        if isinstance(node, nodes.Not):
            return self._decides(node.node)
        if isinstance(node, nodes.Test) and node.name in ("string", "defined", "none", "mapping"):
            return self._is_content_here(node.node) or self._is_free(node)
        return self._is_content_here(node) or self._is_free(node)

    def _is_content_here(self, node: nodes.Node | None) -> bool:
        return isinstance(node, nodes.Getattr | nodes.Getitem) and _is_content(node) and self._is_message(node.node)

    def _is_free(self, node: nodes.Node) -> bool:
        """No content can come in, nor a message as a whole."""
        if isinstance(node, nodes.Getattr | nodes.Getitem):
            return self._is_free_access(node)
        if isinstance(node, nodes.Filter) and node.name in ("length", "count") and _is_list(node.node, self._lists):
            return True
        if isinstance(node, nodes.Compare) and self._asks_for_key(node):
            return True
        if isinstance(node, nodes.Test) and node.name == "defined" and self._is_message(node.node):
            return True
        if isinstance(node, nodes.Name):
            return node.name not in self._lists | self._messages | self._contents
        known = nodes.Expr | nodes.TemplateData | nodes.Operand | nodes.Keyword | nodes.Pair
        return isinstance(node, known) and all(map(self._is_free, node.iter_child_nodes()))

    def _is_free_access(self, node: nodes.Getattr | nodes.Getitem) -> bool:
        key = _key(node)
        if key == "content" or _is_list(node, self._lists) or self._is_message(node):
            return False
        if isinstance(node, nodes.Getitem) and not self._is_free(node.arg):
            return False
        if self._is_message(node.node):
            return key is not None and not hasattr(dict, key)
        return self._is_free(node.node)

    def _asks_for_key(self, node: nodes.Compare) -> bool:
        """'tool_calls' in message."""
        is_membership = len(node.ops) == 1 and node.ops[0].op in ("in", "notin")
        return is_membership and isinstance(node.expr, nodes.Const) and self._is_message(node.ops[0].expr)

    def _is_message(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Getattr | nodes.Getitem) and _key(node) in ("previtem", "nextitem"):
            return True
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
            return _is_list(node.node, self._lists) and self._is_free(node.arg)
        return isinstance(node, nodes.Name) and node.name in self._messages


def _key(node: nodes.Getattr | nodes.Getitem) -> str | None:
    """The name that is looked up, where it is written out."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) else None


def _is_content(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Getattr | nodes.Getitem) and _key(node) == "content"


def _is_name(node: nodes.Node | None, names: set[str]) -> bool:
    return isinstance(node, nodes.Name) and node.name in names


def _is_list(node: nodes.Node | None, names: set[str]) -> bool:
    """The messages, or those from one place to another."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        borders = (node.arg.start, node.arg.stop, node.arg.step)
        return _is_list(node.node, names) and all(part is None or isinstance(part, nodes.Const) for part in borders)
    return _is_name(node, names)


def _within(node: nodes.Node) -> Iterator[nodes.Node]:
    """A node and all below it."""
    yield node
    yield from node.find_all(nodes.Node)
