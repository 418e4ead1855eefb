"""Beams as a tree: rows that fork, answers that end, branches that led nowhere. Only draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.text import Text
from rich.tree import Tree

from danlu.generate.watching.trace import Branch, Finished, Trace
from danlu.report.glyphs import Glyphs, joined
from danlu.words import words

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
_PROMPT_CHARACTERS = 40
_PRUNED_SHOWN = 3  # of the branches below one entry that lead nowhere


@dataclass(eq=False)
class _Node:
    """A token that a beam went on or ended with; the prompt, where there is none.

    Attributes:
        depth: its place in the answer, from 1.
        is_open: the search ended while it was a live row.
        leads: whether an answer that was kept, or a row that was open at the end, comes from here.
    """

    depth: int = 0
    row: Branch | Finished | None = None
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    is_open: bool = False
    leads: bool = False

    @property
    def text(self) -> str:
        return self.row.token.text if self.row else ""

    @property
    def group(self) -> int:
        return self.row.group if self.row else 0

    @property
    def finished(self) -> Finished | None:
        return self.row if isinstance(self.row, Finished) else None

    def below(self) -> Iterator[_Node]:
        """The node and all that came from it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children

    def only_child(self) -> _Node | None:
        """The one child with which it goes on as it does: to somewhere, or to nowhere."""
        alike = [child for child in self.children if child.leads == self.leads]
        return alike[0] if len(alike) == 1 else None


def beam_tree(trace: Trace, glyphs: Glyphs, tokens: int) -> Tree:
    """The tree of a trace of beams, its first `tokens` tokens deep."""
    prompt = joined(token.text for token in trace.prompt)
    cut = glyphs.cut if len(prompt) > _PROMPT_CHARACTERS else ""
    tree = Tree(Text(cut + glyphs.visible(prompt[-_PROMPT_CHARACTERS:]), style="bold"), guide_style="dim")
    _Picture(glyphs, tokens, has_groups="num_beam_groups" in trace.knobs).add_below(tree, [_grown(trace)])
    return tree


def _grown(trace: Trace) -> _Node:
    root = _Node()
    rows = {choice.row: root for choice in trace.steps[0].choices}
    for depth, step in enumerate(trace.steps, 1):
        after: dict[int, _Node] = {}
        grown: list[Branch | Finished] = [*(one for one in step.branches if one.is_live), *step.finished]
        for one in grown:
            node = _Node(depth, one, rows[one.parent])
            rows[one.parent].children.append(node)
            if isinstance(one, Branch):
                after[one.row] = node
        if depth == len(trace.steps):
            for node in rows.values():
                node.is_open = not node.children
        rows = after
    for node in root.below():
        if node.is_open or (node.finished and node.finished.is_kept):
            _mark(node)
    return root


def _mark(node: _Node | None) -> None:
    while node is not None and not node.leads:
        node.leads = True
        node = node.parent


@dataclass(frozen=True)
class _Picture:
    glyphs: Glyphs
    tokens: int
    has_groups: bool

    def add_below(self, entry: Tree, run: list[_Node]) -> None:
        """What follows a run of tokens: where it goes on, and what was pruned on its way."""
        for child in sorted((one for one in run[-1].children if one.leads), key=lambda one: one.group):
            self._add(entry, child)
        pruned = [child for node in run for child in node.children if not child.leads and child not in run]
        for child in pruned[:_PRUNED_SHOWN]:
            self._add(entry, child)
        if len(pruned) > _PRUNED_SHOWN:
            entry.add(
                Text(
                    f"{self.glyphs.dropped} {words()('{count} more pruned', count=len(pruned) - _PRUNED_SHOWN)}",
                    style="dim",
                )
            )

    def _add(self, tree: Tree, first: _Node) -> None:
        """Tokens up to the next fork are one entry."""
        run = [first]
        while run[-1].depth < self.tokens and (child := run[-1].only_child()):
            run.append(child)
        style = _COLOURS[first.group % len(_COLOURS)] if self.has_groups else ""
        entry = tree.add(self._label(run), style=style if first.leads else "dim")
        if run[-1].depth < self.tokens or not run[-1].children:
            self.add_below(entry, run)
        elif first.leads:
            entry.add(Text(self._further(run[-1]), style="dim"))

    def _label(self, run: list[_Node]) -> Text:
        first, last = run[0], run[-1]
        group = f"[{first.group}] " if self.has_groups and first.depth == 1 else ""
        text = self.glyphs.quoted(joined(node.text for node in run))
        if last.finished:
            return Text(f"{group}{self.glyphs.finished} {text} {_ending(last.finished)}")
        if not first.leads:
            text = f"{self.glyphs.dropped} {first.depth}: {text}"
        assert isinstance(last.row, Branch)
        bank = "" if last.row.bank is None else f"  bank {last.row.bank}"
        left = f"  {words()('open at the end')}" if last.is_open else ""
        return Text(f"{group}{text} {last.row.total or 0.0:.2f}{bank}{left}")

    def _further(self, node: _Node) -> str:
        ends = [one.finished.answer for one in node.below() if one.finished]
        answers = sorted(answer + 1 for answer in ends if answer is not None)
        said, numbers = words(), ", ".join(map(str, answers))
        further = said("goes on to answer {numbers}", numbers=numbers) if numbers else said("goes on")
        return f"{self.glyphs.cut} {further}"


def _ending(end: Finished) -> str:
    said = words()
    answer = None if end.answer is None else said("answer {number}", number=end.answer + 1)
    fate = answer or (said("kept") if end.is_kept else said("displaced"))
    return f"{said('score')} {end.score or 0.0:.3f}  {end.finish_reason}  {fate}"
