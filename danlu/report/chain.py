"""The run directory of a chain -> one page that leads to those of its steps. Only reads; measures nothing."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from danlu.config import from_yaml
from danlu.journal import Journal, write_atomic
from danlu.report.findings import sentences
from danlu.report.numbers import duration, is_figure
from danlu.report.page import Run, events, page, pictures, read_run, recipe_text, section, table
from danlu.report.verdict import chief, figure, judge
from danlu.words import Words

_STATES = {"done": "done", "begun": "begun, not done"}


def write_chain_report(journal: Journal) -> Path:
    """Write report.html into the directory of a run, whole or not at all, and return its path. Raises DiskError."""
    write_atomic(journal.report_path, render_chain(journal))
    return journal.report_path


def render_chain(journal: Journal) -> str:
    """The page as text."""
    run = read_run(journal)
    heads = [run.words(head) for head in ("step", "kind", "works on", "state", "time", "what came of it")]
    recipe = from_yaml(run.recipe) if run.recipe else None
    names = list(recipe["steps"]) if isinstance(recipe, dict) else list(run.part("steps"))
    rows = [_row(journal, name, run.part("steps").get(name, {}), run.words) for name in names]
    parts = [
        f"<header><h1>{escape(run.name)}</h1></header>",
        _tiles(run, rows),
        section(run.words("Steps"), table(heads, rows)),
        _commands(run, names),
        _pictures(journal, names, run.words),
        events(run),
        recipe_text(run),
    ]
    return page(run.name, "\n".join(parts), run.words)


def _tiles(run: Run, rows: list[str]) -> str:
    states = run.part("steps").values()
    seconds = [float(state["seconds"]) for state in states if is_figure(state.get("seconds"))]
    tiles = {
        "steps": f"{sum(state.get('state') == 'done' for state in states)} / {len(rows)}",
        "time in all": duration(sum(seconds)) if seconds else "–",
    }
    shown = [f"<div><dt>{run.words(name)}</dt><dd>{value}</dd></div>" for name, value in tiles.items()]
    return f'<dl class="tiles">{"".join(shown)}</dl>'


def _commands(run: Run, names: list[str]) -> str:
    """How to use what the last step has left."""
    uses = run.part("steps").get(names[-1], {}).get("uses") if names else None
    if not uses:
        return ""
    return section(run.words("Use it"), f'<div class="scroll"><pre>{escape(chr(10).join(uses))}</pre></div>')


def _pictures(journal: Journal, names: list[str], words: Words) -> str:
    shown = []
    for name in names:
        drawn = pictures(read_run(Journal(journal.directory / name)))
        shown += [f"<div><h3>{escape(name)}</h3>{one}</div>" for one in drawn]
    return section(words("Pictures"), f'<div class="grid">{"".join(shown)}</div>') if shown else ""


def _row(journal: Journal, name: str, state: dict[str, Any], words: Words) -> str:
    own = Journal(journal.directory / name)
    shown = escape(name)
    if own.report_path.exists():
        shown = f'<a href="{shown}/report.html">{shown}</a>'
    seconds = state.get("seconds")
    kind = state.get("parts", {}).get("options", {}).get("kind", "")
    cells = [
        f"<code>{escape(str(kind))}</code>",
        escape(_short(journal, str(state.get("start", "")))) or "–",
        words(_STATES.get(str(state.get("state")), "not begun")),
        duration(float(seconds)) if seconds is not None and is_figure(seconds) else "–",
        _finding(read_run(own), words),
    ]
    return f"<th scope=row>{shown}</th>" + "".join(f"<td>{cell}</td>" for cell in cells)


def _short(journal: Journal, start: str) -> str:
    """A directory inside the run's is named from there."""
    return start.removeprefix(f"{journal.directory}/")


def findings_of(journal: Journal, words: Words) -> list[str]:
    """What came of a step, in sentences."""
    return [text for text, _ in _findings(read_run(journal), words)]


def _finding(run: Run, words: Words) -> str:
    found = [
        f'<span class="tone {tone}">{escape(text)}</span>' if tone else escape(text)
        for text, tone in _findings(run, words)
    ]
    return "<br>".join(found) or "–"


def _findings(run: Run, words: Words) -> list[tuple[str, str]]:
    """(sentence, its tone if it is a verdict) of each."""
    found = []
    if any(figure(run.results, when, chief(run.results)) is not None for when in ("before", "after")):
        verdict = judge(run.results, words=words)
        found.append((verdict.sentence, verdict.tone))
    if parity := run.part("parity"):
        largest = parity.get("largest_logit_difference")
        difference = f"{largest:.2g}" if largest is not None and is_figure(largest) else "–"
        prompts = parity.get("prompts", "–")
        said = words("{prompts} answers equal, logits within {difference}", prompts=prompts, difference=difference)
        found.append((said, ""))
    return found + [(text, "") for text in sentences(run.results, words)]
