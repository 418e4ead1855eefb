"""A trace of decoding in a terminal: what each token was chosen from, and how beams grew. Only draws.

Without colours the signs say the same, and where the output knows no Unicode they are ASCII (glyphs.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from danlu.generate.watching.trace import Candidate, Choice, Trace
from danlu.report.beam_tree import beam_tree
from danlu.report.glyphs import Glyphs, completed, percent, unfinished
from danlu.words import words

# Tokens of an answer that are drawn; each takes about ten lines.
TOKENS = 8

_MARK_CELLS, _TOKEN_CELLS, _NUMBER_CELLS = 1, 18, 5
_LEAST_BAR, _LONGEST_BAR = 3, 10
_LEAST_P = 0.001  # of candidates that are drawn though they were not chosen


def show_trace(console: Console, trace: Trace, tokens: int = TOKENS) -> None:
    """Draw a trace.

    Args:
        tokens: of each answer, so many are drawn.
    """
    glyphs = Glyphs.of(console)
    console.print(Text(_heading(trace), style="bold"))
    if not trace.has_beams:
        for answer in range(len(trace.answers)):
            _show_answer(console, glyphs, trace, answer, tokens)
        return
    console.print(beam_tree(trace, glyphs, tokens))
    _show_answer(console, glyphs, trace, 0, tokens)


def _heading(trace: Trace) -> str:
    knobs = [f"{knob} {_short(str(value))}" for knob, value in trace.knobs.items() if knob != "seed"]
    seed = [] if trace.seed is None else [f"seed {trace.seed}"]
    return f"{trace.strategy.replace('_', ' ')}: " + ", ".join([*knobs, *seed] or [words()("no knobs")])


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _show_answer(console: Console, glyphs: Glyphs, trace: Trace, answer: int, limit: int) -> None:
    tokens = trace.answers[answer].tokens
    console.print()
    console.print(Text(words()("answer {number}, token by token", number=answer + 1), style="bold"))
    before = ""  # bytes of a character that is not whole yet
    for at, (token, choice) in enumerate(zip(tokens[:limit], trace.choices_of(answer), strict=False), 1):
        u = "" if choice.u is None else f"   u {choice.u:.4f}"
        console.print(Text(f"{at:>3}  {_named(glyphs, before, token.text)}{u}", style="cyan"))
        console.print(_table(console.width, glyphs, choice, before))
        before = unfinished(before + token.text)
        _show_dropped(console, glyphs, choice)
    if len(tokens) > limit:
        more = words()("{count} more tokens: --show_tokens {all}", count=len(tokens) - limit, all=len(tokens))
        console.print(Text(f"{glyphs.cut} {more}", style="dim"))


# -- one token


def _named(glyphs: Glyphs, before: str, text: str, width: int | None = None) -> str:
    """A token in quotes; of one that finishes a character begun by the bytes `before`, that character as well."""
    whole = completed(before, text)
    if not whole:
        return glyphs.quoted(text, width)
    shown = f" = {glyphs.quoted(whole)}"
    return glyphs.quoted(text, None if width is None else width - cell_len(shown)) + shown


@dataclass(frozen=True)
class _Column:
    """A column of probabilities: of each candidate before any stage, or after stage `at`.

    Attributes:
        knob: the stage's; None for a column that stands for all of them.
    """

    words: tuple[str, ...]
    at: int | None
    knob: str | None
    bar: int = 0

    @property
    def cells(self) -> int:
        return max(*map(len, self.words), _NUMBER_CELLS + (self.bar + 1 if self.bar else 0))

    @property
    def heading(self) -> str:
        lines = [""]
        for word in self.words:
            lines = [*lines[:-1], lines[-1] + word] if len(lines[-1] + word) <= self.cells else [*lines, word]
        return "\n".join(lines)


def _table(width: int, glyphs: Glyphs, choice: Choice, before: str = "") -> Table:
    shown = [one for one in choice.candidates if one.is_chosen or max(_all_p(one)) >= _LEAST_P]
    has_dropped = any(one.dropped_by for one in shown)
    token_cells = min(_TOKEN_CELLS, max(5, *(cell_len(_named(glyphs, before, one.token.text)) for one in shown)))
    rank_cells = max(4, *(len(str(one.rank)) for one in shown))
    why_cells = max(10, *(len(one.dropped_by or "") for one in shown)) if has_dropped else 0
    columns = _columns(choice, shown, width - (_MARK_CELLS + 3 + rank_cells + token_cells + why_cells))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", width=_MARK_CELLS)
    table.add_column(words()("rank"), justify="right", width=rank_cells)
    table.add_column("token", no_wrap=True, width=token_cells)
    for column in columns:
        table.add_column(column.heading, no_wrap=True, width=column.cells)
    if has_dropped:
        table.add_column(words()("dropped by"), overflow="fold")
    for one in shown:
        cells = [_cell(glyphs, one, column) for column in columns]
        mark = glyphs.chosen if one.is_chosen else ""
        row = [mark, str(one.rank), _named(glyphs, before, one.token.text, token_cells), *cells]
        why = [one.dropped_by or ""] if has_dropped else []
        style = "bold green" if one.is_chosen else "dim" if one.dropped_by else None
        table.add_row(*(Text(text) for text in [*row, *why]), style=style)
    return table


def _all_p(candidate: Candidate) -> list[float]:
    return [candidate.p, *(after.p for after in candidate.after)]


def _columns(choice: Choice, shown: Sequence[Candidate], room: int) -> list[_Column]:
    """As much as there is room for: a bar after each stage, bars at both ends, or the two ends alone."""
    numbers = [[percent(p) for p in _all_p(one)] for one in shown]
    first = _Column(("p",), None, None)
    stages = [
        _Column(_words(stage.knob), at, stage.knob)
        for at, stage in enumerate(choice.stages)
        if any(one[at] != one[at + 1] for one in numbers) or any(one.dropped_by == stage.knob for one in shown)
    ]
    every, last = [first, *stages], len(stages)
    end = tuple(re.findall(r"\S+ ?", words()("at the end")))
    short = [first, _Column(end, len(choice.stages) - 1, None)] if stages else [first]
    layouts = (
        [replace(column, bar=_LEAST_BAR) for column in every],
        [replace(column, bar=_LEAST_BAR * (at in (0, last))) for at, column in enumerate(every)],
        [replace(column, bar=_LEAST_BAR) for column in short],
        short,
    )
    chosen = next((one for one in layouts if _cells(one) <= room), short)
    while (wider := [_longer(column) for column in chosen]) != chosen and _cells(wider) <= room:
        chosen = wider
    return chosen


def _words(knob: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^_ ]+[_ ]?", knob))


def _longer(column: _Column) -> _Column:
    return replace(column, bar=min(_LONGEST_BAR, column.bar + 1) if column.bar else 0)


def _cells(columns: Sequence[_Column]) -> int:
    return sum(column.cells + 1 for column in columns)


def _cell(glyphs: Glyphs, candidate: Candidate, column: _Column) -> str:
    p = candidate.p
    if column.at is not None:
        after = candidate.after[column.at]
        if after.score is None:
            return glyphs.dropped if column.knob in (None, candidate.dropped_by) else ""
        p = after.p
    number = percent(p).rjust(_NUMBER_CELLS)
    return f"{glyphs.bar(p, column.bar)} {number}" if column.bar else number


def _show_dropped(console: Console, glyphs: Glyphs, choice: Choice) -> None:
    """What stages took out, beside what the table shows: by name when they are few."""
    shown = {one.token.id for one in choice.candidates}
    for stage in choice.stages:
        likely = [one for one in stage.likeliest_dropped if one.token.id not in shown and one.p >= _LEAST_P]
        if stage.dropped > len(stage.likeliest_dropped):
            count, left = f"{stage.dropped:,}", f"{stage.left:,}"
            text = words()("dropped {count} tokens, {left} left", count=count, left=left)
        elif likely:
            named = ", ".join(f"{glyphs.quoted(one.token.text)} {percent(one.p)}" for one in likely)
            text = words()("also dropped {tokens}", tokens=named)
        else:
            continue
        console.print(Text(f"  {stage.knob} {text}", style="dim"))
