"""Run directory -> one HTML page that needs nothing else: what was done, what changed, how sure that is.

Only reads the journal, and says what the journal lacks. Its labels are in the reader's language
(words.py). Everything from recipe, data and model is escaped; no script, no font and no image is
fetched. Measures nothing: the figures are the steps'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from danlu import __version__
from danlu.errors import DataError
from danlu.journal import Journal, write_atomic
from danlu.report import findings
from danlu.report.charts import Chart, charts, column, reliability, search
from danlu.report.forms import forms
from danlu.report.numbers import duration, fixed, is_figure, large, plain
from danlu.report.verdict import MEASURES, Measure, figure, interval_decimals, interval_of, judge, spread
from danlu.words import ENGLISH, Words, words

# What a whole run leaves behind, and what a reader misses without it.
_PARTS = {
    "data": "how many examples were used",
    "before": "the model before training",
    "after": "the model after training",
    "difference": "whether the change is more than chance",
    "examples": "answers side by side",
    "parity": "whether the merged model answers like the trained one",
    "machine": "where it ran",
}
_DRAWN = {"bins"}  # figures of results.json that stand on the page as curves
# No script and no fetch of any kind, whatever a text on the page may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Run:
    """Everything the page shows, read once, and the words that it is shown with."""

    name: str
    recipe: str
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    results: dict[str, Any]
    words: Words = field(default=ENGLISH)

    def part(self, name: str) -> dict[str, Any]:
        """A group of results.json; empty when it is absent or no group."""
        found = self.results.get(name)
        return found if isinstance(found, dict) else {}

    def absent(self) -> list[str]:
        """What a whole run would have left and this one did not."""
        files = {"recipe.yaml": self.recipe, "metrics.jsonl": self.metrics, "events.jsonl": self.events}
        missing = [self.words("{name} (empty or not there)", name=name) for name, held in files.items() if not held]
        parts = {name: self.words(why) for name, why in _PARTS.items() if not self.results.get(name)}
        return missing + [self.words("{name} ({why})", name=name, why=why) for name, why in parts.items()]


def write_report(journal: Journal) -> Path:
    """Write report.html into the run directory, whole or not at all, and return its path.

    Its labels are in the language of `words()`. Raises DataError when there is no such directory, DiskError when it
    cannot be written.
    """
    if not journal.directory.is_dir():
        raise DataError(f"no run directory: {journal.directory}", fix="name the directory of a run")
    write_atomic(journal.report_path, render(read_run(journal)))
    return journal.report_path


def read_run(journal: Journal) -> Run:
    """What the run directory holds; what is not there is empty."""
    recipe = journal.recipe_path
    return Run(
        name=journal.directory.resolve().name,
        recipe=recipe.read_text("utf-8") if recipe.exists() else "",
        metrics=journal.metrics(),
        events=journal.events(),
        results=journal.results(),
        words=words(),
    )


def render(run: Run) -> str:
    """The page as text."""
    if (sentences := findings.sentences(run.results, run.words)) and not run.part("machine"):
        return page(run.name, "\n".join(_of_findings(run, sentences)), run.words)
    sections = (
        _header(run), _missing(run), _tiles(run), _comparison(run), _training(run), _examples(run),
        events(run), _facts(run), recipe_text(run),
    )  # fmt: skip
    return page(run.name, "\n".join(section for section in sections if section), run.words)


def _of_findings(run: Run, sentences: Sequence[str]) -> list[str]:
    """Of a step that trains nothing."""
    said = "<br>".join(escape(one) for one in sentences)
    drawn = [*findings.figures(run.results, run.words), *_figures(forms(run.part("choice"), run.words).values())]
    return [
        f'<header><h1>{escape(run.name)}</h1><p class="verdict open">{said}</p></header>',
        f'<div class="grid">{"".join(drawn)}</div>' if drawn else "",
        *(section(title, body) for title, body in findings.sections(run.results, run.words, table)),
        events(run),
        _facts(run),
        recipe_text(run),
    ]


def page(name: str, body: str, words: Words) -> str:
    """A whole page around `body`."""
    style = (resources.files("danlu.report") / "page.css").read_text("utf-8")
    footer = words("Danlu {version}. This page reads the run directory and nothing else.", version=__version__)
    return f"""<!doctype html>
<html lang="{"zh-CN" if words.language == "zh" else "en"}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} · {words("Danlu report")}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
<footer class="soft">{footer}</footer>
</main>
</body>
</html>
"""


def _header(run: Run) -> str:
    verdict = judge(run.results, words=run.words)
    lines = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="verdict {verdict.tone}">{_sentence(run, verdict.sentence)}</p>',
    ]
    if figure(run.results, "after", "overlap") is not None:
        overlap = judge(run.results, "overlap", words=run.words)
        lines.append(f'<p class="soft">{_sentence(run, overlap.sentence)}</p>')
    return f"<header>{''.join(lines)}</header>"


def _sentence(run: Run, text: str) -> str:
    return escape(run.words("{sentence}.", sentence=_capital(text)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _missing(run: Run) -> str:
    absent = run.absent()
    if not absent:
        return ""
    said = run.words(
        "<b>Not everything is here.</b> The run stopped early, or its recipe did not ask for these: {listed}.",
        listed=run.words("; ").join(escape(part) for part in absent),
    )
    return f'<p class="notice">{said}</p>'


def _tiles(run: Run) -> str:
    seconds, tokens = (sum(v for v in column(run.metrics, n) if v > 0) for n in ("seconds", "tokens"))
    learnt = sum(v for v in column(run.metrics, "learnt_tokens") if v > 0)
    looks = [*column(run.metrics, "peak_memory_bytes"), *column(run.metrics, "memory_bytes")]
    memory = max((v for v in looks if v > 0), default=0)
    steps = [row["step"] for row in run.metrics if is_figure(row.get("step"))]
    tiles = {
        "optimizer steps": f"{max(steps):,}" if steps else "",
        "tokens read": large(tokens, run.words) if tokens else "",
        "of them learnt": large(learnt, run.words) if learnt else "",
        "training time": duration(seconds) if seconds else "",
        "speed": f"{tokens / seconds:,.0f} {run.words('tokens/s')}" if tokens and seconds else "",
        "peak memory": f"{memory / 2**30:.2f} GiB" if memory else "",
    }
    shown = [f"<div><dt>{run.words(name)}</dt><dd>{value}</dd></div>" for name, value in tiles.items() if value]
    return f'<dl class="tiles">{"".join(shown)}</dl>' if shown else ""


def _comparison(run: Run) -> str:
    measures = [m for m in (*run.part("before"), *run.part("after")) if _is_shown(run, m)]
    title = run.words("Before and after")
    if not measures:
        return section(title, _absent(run.words("Neither the untrained nor the trained model was measured.")))
    rows = [_measure_row(run, measure) for measure in dict.fromkeys(measures)]
    heads = [run.words("measure")]
    heads += [f"#{run.words(name)}" for name in ("before", "after", "change", "interval of the change")]
    return section(title, table(heads, rows) + f'<p class="soft">{_how_measured(run)}</p>')


def _how_measured(run: Run) -> str:
    held_out = run.part("data").get("held_out")
    if not is_figure(held_out):
        return run.words("An interval that excludes zero is a change beyond chance.")
    return run.words(
        "Measured on {number} held-out examples, which training never saw. An interval that excludes zero is a change "
        "beyond chance.",
        number=f"{held_out:,}",
    )


def _is_shown(run: Run, measure: str) -> bool:
    return any(not isinstance(run.part(part).get(measure), (dict, list)) for part in ("before", "after"))


def _measure_row(run: Run, key: str) -> str:
    measure = MEASURES.get(key, Measure(key, less_is_better=False))
    name = run.words.if_known(measure.name)
    before, after = figure(run.results, "before", key), figure(run.results, "after", key)
    interval = interval_of(run.results, key)
    decimals = interval_decimals(interval, measure.decimals) if interval else measure.decimals
    change = "–" if before is None or after is None else fixed(after - before, decimals, signed=True)
    shown = [
        fixed(value, decimals) if value is not None else plain(run.part(part).get(key), run.words)
        for part, value in (("before", before), ("after", after))
    ]
    tone = f"tone {judge(run.results, key).tone}" if interval and key in MEASURES else ""
    ends = f"{spread(interval, decimals)} ({interval.level * 100:g} %)" if interval else "–"
    cells = [(shown[0], ""), (shown[1], ""), (change, tone), (ends, "")]
    return f"<th scope=row>{escape(_capital(name))}</th>" + "".join(
        f'<td class="number {extra}">{escape(text)}</td>' for text, extra in cells
    )


def _training(run: Run) -> str:
    others = [
        search(run.events, run.words),
        reliability(run.part("reward").get("bins") or [], run.words),
        *forms(run.part("choice"), run.words).values(),
    ]
    drawn = [*charts(run.metrics, run.words), *(chart for chart in others if chart)]
    title = run.words("Training")
    if not drawn:
        return section(title, _absent(run.words("No step was recorded in metrics.jsonl.")))
    figures = _figures(drawn)
    wide = "".join(f for f, chart in zip(figures, drawn, strict=True) if chart.wide)
    small = "".join(f for f, chart in zip(figures, drawn, strict=True) if not chart.wide)
    return section(title, f'{wide}<div class="grid">{small}</div>')


def _figures(drawn: Iterable[Chart]) -> list[str]:
    return [
        f"<figure{' class=wide' if chart.wide else ''}><figcaption><b>{chart.title}</b> "
        f"<span>{chart.note}</span></figcaption>{chart.svg}</figure>"
        for chart in drawn
    ]


def pictures(run: Run) -> list[str]:
    """Of a step, those that say most: how its loss fell, how well it finds, what was tried."""
    drawn = [replace(chart, wide=False) for chart in charts(run.metrics, run.words)[:1]]
    return [
        *findings.figures(run.results, run.words),
        *_figures([*drawn, *forms(run.part("choice"), run.words).values()]),
    ]


def _examples(run: Run) -> str:
    examples = [e for e in run.results.get("examples") or [] if isinstance(e, dict)]
    title = run.words("Answers side by side")
    if not examples:
        return section(title, _absent(run.words("No answers were kept.")))
    return section(title, "".join(_example(run, example) for example in examples))


def _example(run: Run, example: dict[str, Any]) -> str:
    place = f'<span class="place">{escape(plain(example["place"]))}</span>' if example.get("place") else ""
    answers = "".join(
        f'<div class="{key}"><h3>{run.words(head)}</h3>{_text(run, example.get(key))}</div>'
        for key, head in (("reference", "Reference"), ("before", "Before training"), ("after", "After training"))
    )
    prompt = f"<h3>{run.words('Prompt')}</h3>{_text(run, example.get('prompt'))}"
    return f'<article class="example"><div>{place}{prompt}</div><div class="answers">{answers}</div></article>'


def _text(run: Run, value: Any) -> str:
    if value is None:
        return _absent(run.words("not recorded"))
    if value == "":
        return _absent(run.words("(an empty text)"))
    text = plain(value)
    code = " code" if re.search(r"^(    |\t)", text, re.MULTILINE) else ""  # indented lines: columns matter
    return f'<div class="text{code}" dir="auto">{escape(text)}</div>'


def events(run: Run) -> str:
    title = run.words("What was decided, and why")
    if not run.events:
        return section(title, _absent(run.words("No decision was recorded in events.jsonl.")))
    heads = [run.words(head) for head in ("time (UTC)", "event", "reason", "details")]
    return section(title, table(heads, [_event_row(run, event) for event in run.events]))


def _event_row(run: Run, event: dict[str, Any]) -> str:
    details = "".join(
        f"<span><code>{escape(str(key))}</code> {escape(plain(value, run.words))}</span>"
        for key, value in event.items()
        if key not in ("time", "kind", "reason")
    )
    return (
        f'<td class="when">{_clock(event.get("time"))}</td><td><b>{escape(plain(event.get("kind")))}</b></td>'
        f'<td class="reason">{escape(plain(event.get("reason")))}</td><td class="details">{details}</td>'
    )


def _clock(time: Any) -> str:
    """Seconds since 1970 as a date; what cannot be one is shown as it is."""
    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}"
    except (TypeError, ValueError, OverflowError, OSError):
        return escape(plain(time))


def _facts(run: Run) -> str:
    titles = {
        "data": "Data",
        "reward": "Reward model",
        "parity": "Merged against trained",
        "machine": "Machine",
        "run": "Whole run",
    }
    blocks = [
        f"<div>{section(run.words(title), table(['', ''], _fact_rows(run, part), bare=True))}</div>"
        for part, title in titles.items()
        if run.part(part)
    ]
    return f'<div class="pair">{"".join(blocks)}</div>' if blocks else ""


def _fact_rows(run: Run, part: str) -> list[str]:
    return [
        f"<th scope=row>{escape(run.words.if_known(str(name).replace('_', ' ')))}</th>"
        f"<td>{escape(_fact(run, str(name), value))}</td>"
        for name, value in run.part(part).items()
        if name not in _DRAWN
    ]


def _fact(run: Run, name: str, value: Any) -> str:
    if name.endswith("_bytes") and is_figure(value):
        return f"{value:,} ({value / 2**30:.2f} GiB)"
    return plain(value, run.words)


def recipe_text(run: Run) -> str:
    title = run.words("Recipe")
    if not run.recipe:
        return section(title, _absent(run.words("recipe.yaml is not there.")))
    return section(title, f'<div class="scroll"><pre>{escape(run.recipe)}</pre></div>')


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _absent(text: str) -> str:
    return f'<p class="absent">{text}</p>'


def table(heads: Sequence[str], rows: Sequence[str], *, bare: bool = False) -> str:
    """Rows are ready cells; a head that begins with # stands over numbers."""
    cells = "".join(
        f"<th scope=col{' class=number' if head.startswith('#') else ''}>{head.lstrip('#')}</th>" for head in heads
    )
    head = "" if bare else f"<thead><tr>{cells}</tr></thead>"
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
