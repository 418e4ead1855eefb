"""The folder of an evaluation -> a page: means, how scores are spread, and every judgement's own distribution.

Only reads rows.jsonl and summary.json (evaluate/written.py). The page shows what failed first, then the lowest scores;
all rows stand in the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from danlu.errors import DataError
from danlu.evaluate.written import ROWS, read_lines
from danlu.journal import write_atomic
from danlu.report.numbers import fixed
from danlu.report.page import page, section, table
from danlu.words import Words, words

MOST_ROWS = 200
_LONGEST = 300  # characters of a text in a table
_BAR, _HEIGHT = 14, 40  # pixels of the picture of a distribution


def write_evaluation_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write report.html beside the files of an evaluation, whole or not at all. Raises DataError without them."""
    try:
        rows = read_lines(folder / ROWS)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no evaluation: {error}") from None
    path = folder / "report.html"
    write_atomic(path, render_evaluation(folder.resolve().name, summary, rows, words()))
    return path


def render_evaluation(name: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], said: Words) -> str:
    """The page as text."""
    judge = summary.get("judge")
    line = said("{rows} rows, judged by {judge}", rows=f"{summary['rows']:,}", judge=judge) if judge else ""
    parts = [
        f'<header><h1>{escape(name)}</h1><p class="soft">{escape(line)}</p></header>',
        section(said("Measures"), _measures(summary, said)),
        _comparisons(summary, said),
        section(said("Beside them: the cheap baseline"), _overlaps(summary, said)),
        *(_judgements(measure, summary, rows, said) for measure in summary["measures"]),
    ]
    return page(name, "\n".join(part for part in parts if part), said)


def _measures(summary: Mapping[str, Any], said: Words) -> str:
    heads = [
        said(head) for head in ("measure", "#mean", "#95 % interval", "#rows", "#failed", "scores", "why they failed")
    ]
    rows = [_measure_row(name, one) for name, one in summary["measures"].items()]
    return table(heads, rows)


def _measure_row(name: str, one: Mapping[str, Any]) -> str:
    low = one["scale"][0]
    total = max(1, sum(one["scores"]))
    shares = [count / total for count in one["scores"]]
    reasons = "<br>".join(f"{count:,} × {escape(str(why)[:_LONGEST])}" for why, count in one["reasons"].items())
    mean, ends = _mean(one)
    cells = [_number(mean), _number(ends), _number(f"{one['n']:,}"), _number(f"{one['failed']:,}")]
    title = f"{name} ({one['scale'][0]}–{one['scale'][1]})"
    return f"<th scope=row>{escape(title)}</th>{''.join(cells)}<td>{bars(low, shares)}</td><td>{reasons}</td>"


def _overlaps(summary: Mapping[str, Any], said: Words) -> str:
    rows = [
        f"<th scope=row>{escape(name)}</th>{_number(_mean(one)[0])}{_number(_mean(one)[1])}{_count(one)}"
        for name, one in summary["overlaps"].items()
    ]
    return table([said(head) for head in ("measure", "#mean", "#95 % interval", "#rows")], rows)


def _comparisons(summary: Mapping[str, Any], said: Words) -> str:
    """Models beside the first, where there are several."""
    made = []
    heads = ("measure", "#difference", "#95 % interval", "#rows", "#smallest that would show")
    for name, found in summary.get("differences", {}).items():
        rows = [
            f"<th scope=row>{escape(measure)}</th>{_number(fixed(one['value'], 3, signed=True))}"
            f"{_number(_ends(one))}{_count(one)}{_number(fixed(one['smallest'], 3))}"
            for measure, one in found.items()
        ]
        made.append(section(escape(name), table([said(head) for head in heads], rows)))
    return "".join(made)


def _judgements(measure: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], said: Words) -> str:
    ordered = sorted(rows, key=lambda row: _order(row["measures"][measure]))
    heads = ("row", "#score", "#expectation", "#doubt", "distribution", "answer")
    cells = [_judgement(row, row["measures"][measure], summary["measures"][measure]["scale"][0]) for row in ordered]
    note = ""
    if len(cells) > MOST_ROWS:
        shown = said(
            "the first {shown} of {all}, failures and low scores first", shown=MOST_ROWS, all=f"{len(cells):,}"
        )
        note = f'<p class="soft">{shown}</p>'
    return section(escape(measure), note + table([said(head) for head in heads], cells[:MOST_ROWS]))


def _order(one: Mapping[str, Any]) -> float:
    return -1.0 if "failed" in one else float(one["expectation"])


def _judgement(row: Mapping[str, Any], one: Mapping[str, Any], low: int) -> str:
    answer = str(row.get("answer", ""))
    text = f'<td class="reason" dir="auto">{escape(answer[:_LONGEST])}{"…" if len(answer) > _LONGEST else ""}</td>'
    head = f"<th scope=row>{escape(str(row['id'])[:_LONGEST])}</th>"
    if "failed" in one:
        return f"{head}<td class=number>–</td><td colspan=3>{escape(str(one['failed'])[:_LONGEST])}</td>{text}"
    doubt = f"± {fixed(one['deviation'], 2)}, {fixed(one['interval'][0], 1)} – {fixed(one['interval'][1], 1)}"
    numbers = _number(str(one["score"])) + _number(fixed(one["expectation"], 2)) + _number(doubt)
    return f"{head}{numbers}<td>{bars(low, one['distribution'])}</td>{text}"


def bars(low: int, shares: Sequence[float]) -> str:
    """A distribution as a small picture, with its numbers for those who cannot see it."""
    told = ", ".join(f"{low + at}: {share:.0%}" for at, share in enumerate(shares))
    drawn = "".join(
        f'<rect x="{at * _BAR}" y="{_HEIGHT * (1 - share):.1f}" width="{_BAR - 3}" height="{_HEIGHT * share:.1f}"/>'
        for at, share in enumerate(shares)
    )
    width = len(shares) * _BAR
    box = f'viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}"'
    return f'<svg {box} fill="currentColor" role="img" aria-label="{told}"><title>{told}</title>{drawn}</svg>'


def _mean(one: Mapping[str, Any]) -> tuple[str, str]:
    mean = one.get("mean")
    return ("–", "–") if mean is None else (fixed(mean["value"], 3), _ends(mean))


def _ends(one: Mapping[str, Any]) -> str:
    return "–" if one["low"] is None else f"{fixed(one['low'], 3)} – {fixed(one['high'], 3)}"


def _count(one: Mapping[str, Any]) -> str:
    return _number(f"{one['n']:,}")


def _number(text: str) -> str:
    return f"<td class=number>{escape(text)}</td>"
