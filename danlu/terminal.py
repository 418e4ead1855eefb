"""What a run and a data check look like in a terminal. Only draws; decides nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from danlu.data.look.figures import DataReport
from danlu.data.look.shown import Span, visible
from danlu.data.records import FILES_SHOWN
from danlu.errors import DanluError
from danlu.words import Words, words


def new_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: brackets are no markup, and :b: is no emoji."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def show(console: Console, text: str, end: str = "\n") -> None:
    """Print text as it is: rich would break long lines, also in a pipe, and turn tabs into spaces.

    What the other end has no characters for is spelt out (\\u4e39).
    """
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=console.file, flush=True)


class RunView:
    """Lines of text, and a live bar while steps are made."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._rows: deque[dict[str, Any]] = deque(maxlen=10)

    def say(self, text: str) -> None:
        """Print a line; a bar that is running is finished first."""
        self.close()
        show(self._console, text)

    def step(self, row: dict[str, Any]) -> None:
        """Advance the bar to `row["step"]`; without a terminal, print every tenth of the way."""
        if self._rows and row["step"] != self._rows[-1]["step"] + 1:  # another training begins
            self._rows.clear()
        self._rows.append(row)
        tokens, seconds = (sum(one[name] for one in self._rows) for name in ("tokens", "seconds"))
        told = [f"{name} {sum(one[key] for one in self._rows) / len(self._rows):.3f}" for key, name in _told(row)]
        text = "  ".join([*told, f"{tokens / seconds:,.0f} tokens/s"])
        if not self._console.is_terminal:
            if row["step"] % max(1, row["steps"] // 10) == 0 or row["step"] == row["steps"]:
                show(self._console, f"step {row['step']}/{row['steps']}  {text}")
            return
        if self._progress is None:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
            self._progress = Progress(TextColumn("training"), *columns, console=self._console)
            self._task = self._progress.add_task("", total=row["steps"], text="")
            self._progress.start()
        assert self._task is not None
        self._progress.update(self._task, completed=row["step"], total=row["steps"], text=text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _told(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(column, name) of what a step's line says. The loss of answers that are judged says nothing of progress."""
    if "score" in row and "kl" in row:
        return [("score", "score"), ("kl", "kl")]
    judged = [(key, "accuracy") for key in ("accuracy", "rewards/accuracies") if key in row]
    return [("loss", "loss"), *judged]


@contextmanager
def run_view(console: Console) -> Iterator[RunView]:
    """A RunView whose bar never outlives it."""
    view = RunView(console)
    try:
        yield view
    finally:
        view.close()


def show_error(console: Console, error: DanluError) -> None:
    """What was seen, what is allowed, what to do next; in Chinese after the kind of error and its searchable name."""
    said = words()
    if said.language == "en":
        console.print("error:", style="bold red", end=" ")
        show(console, str(error))
        return
    kind = next(kind.__name__ for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
    console.print(f"{said('error:')} {kind}", style="bold red", end="")
    show(console, f"（{said.if_known(kind)}）：{error.seen}")
    for head, text in (("allowed:", error.allowed), ("next:", error.fix)):
        if text:
            show(console, f"  {said(head)}{text}")


def show_examples(console: Console, examples: list[dict[str, str]], limit: int = 3) -> None:
    """A few held-out examples side by side."""
    said = words()
    headings = (said("Prompt"), said("Reference"), said("Before training"), said("After training"))
    table = Table(*headings, title=said("held-out examples"), show_lines=True)
    for example in examples[:limit]:
        cells = (example["prompt"], example["reference"], example["before"], example["after"])
        table.add_row(*(_short(cell) for cell in cells))
    console.print(table)


def _short(text: str, limit: int = 160) -> Any:
    """Text whose lines break anywhere: Chinese has no spaces. Of a long one the middle is left out."""

    half = (limit - 3) // 2
    return Text(text if len(text) <= limit else f"{text[:half]} … {text[-half:]}", overflow="fold")


def show_data(console: Console, report: DataReport) -> None:
    """How a data file was read, its figures, one example as the model will see it, and the first faults."""
    said = words()
    show(console, report.path)
    for name, value in _data_lines(report, said):
        show(console, f"  {name}{' ' * max(1, 19 - cell_len(name))}{value}".rstrip())
    for place, earlier, alike in report.near.pairs if report.near else ():
        show(console, said("{place} nearly repeats {earlier} ({alike})", place=place, earlier=earlier, alike=alike))
    for which, spans in enumerate(report.example):
        _show_example(console, spans, which, report.rendered)
    _show_faults(console, report)


def _data_lines(report: DataReport, said: Words) -> Iterator[tuple[str, str]]:
    yield said("format"), report.format
    yield said("read as"), _counts(report.shapes)
    yield said("files"), _counts(report.files)
    for file, why in list(report.passed_over.items())[:FILES_SHOWN]:
        yield said("file not read"), f"{file} ({said(why)})"
    if len(report.passed_over) > FILES_SHOWN:
        yield "", said("and {count} more", count=f"{len(report.passed_over) - FILES_SHOWN:,}")
    if report.unread:
        yield said("keys not read"), _counts(report.unread)
    if report.notes:
        yield said("changed"), _counts({said.if_known(note): rows for note, rows in report.notes.items()})
    yield said("records"), f"{report.records:,}"
    yield said("faulty rows"), f"{report.faults_total:,}"
    if report.roles:
        yield said("turns"), "  ".join(_turns(role, count, report, said) for role, count in report.roles.items())
    yield from _length_lines(report, said)
    yield said("duplicates"), f"{report.duplicates:,}"
    yield said("same question"), said("{count} with different answers", count=f"{report.duplicate_prompts:,}")
    if near := report.near:
        counted = said(
            "{count} of {of} nearly repeat an earlier one", count=f"{near.count:,}", of=f"{near.looked_at:,}"
        )
        later = said("; {count} later records were not compared", count=f"{near.left_out:,}") if near.left_out else ""
        yield said("near-duplicates"), counted + later
    if report.groups:
        yield said("groups"), f"{report.groups:,}"
    if same := report.held_out:
        yield (
            said("held out"),
            said(
                "{path}: of {records} records, {whole} are here too, {asked} with their question",
                path=same.path,
                records=f"{same.records:,}",
                whole=f"{same.same_content:,}",
                asked=f"{same.same_question:,}",
            ),
        )


def _length_lines(report: DataReport, said: Words) -> Iterator[tuple[str, str]]:
    lengths = report.lengths
    of = "  ".join(f"{said(name)} {getattr(lengths, name):,}" for name in ("min", "p50", "p90", "p99", "max"))
    yield said("lengths"), f"{said(lengths.unit)}: {of}  {said('mean')} {lengths.mean:,.1f}"
    most = max(lengths.counts)
    for at, count in enumerate(lengths.counts):
        bar = "#" * -(-24 * count // most)
        yield "", f"{lengths.edges[at]:>9,} - {lengths.edges[at + 1]:<9,} {bar:<24} {count:,}"
    nothing = said("; nothing is learnt of {count} records", count=f"{report.unlearnt:,}") if report.unlearnt else ""
    yield said("learnt"), f"{report.learnt_share:.1%}{nothing}"
    if over := report.too_long:
        yield (
            said("too long"),
            said(
                "{count} examples over {limit} tokens: cut, they lose {lost}; as windows, they are {windows}",
                count=f"{over.examples:,}",
                limit=f"{over.max_length:,}",
                lost=f"{over.tokens_cut:,}",
                windows=f"{over.windows:,}",
            ),
        )


def _turns(role: str, count: int, report: DataReport, said: Words) -> str:
    learnt = report.learnt_turns[role]
    if role != "assistant":
        return f"{role} {count:,}"
    if count == learnt:
        return f"{role} {count:,}"
    parts = said(" ({learnt} learnt, {context} not)", learnt=f"{learnt:,}", context=f"{count - learnt:,}")
    return f"{role} {count:,}{parts}"


def _counts(counts: dict[str, int], shown: int = 8) -> str:
    first = [f"{name} ({count:,})" for name, count in list(counts.items())[:shown]]
    return ", ".join(first) + (f" … +{len(counts) - shown}" if len(counts) > shown else "")


def _show_example(console: Console, spans: Iterable[Span], which: int, rendered: bool) -> None:
    """The learnt part in colour where there is colour, else between marks."""
    said = words()
    answer = said("the first record, its worse answer") if which else said("the first record")
    how = said("as the model will see it") if rendered else said("as it was read (--model renders it)")
    in_colour = console.is_terminal and console.color_system is not None and not console.no_color
    mark = said("what is learnt is green") if in_colour else said("what is learnt stands in {+ +}")
    show(console, "\n" + said("{record}, {how}; {mark}", record=answer, how=how, mark=mark))
    for span in spans:
        if span.kind == "left out":
            left_out = "[… {count} tokens left out …]" if rendered else "[… {count} characters left out …]"
            show(console, "\n" + said(left_out, count=span.text))
        elif span.kind == "context":
            show(console, visible(span.text), end="")
        elif in_colour:
            console.print(Text(visible(span.text), "bold green"), end="", soft_wrap=True)
        else:
            show(console, "{+" + visible(span.text) + "+}", end="")
    show(console, "\n")


def _show_faults(console: Console, report: DataReport) -> None:
    said = ""
    for fault in report.faults:
        show(console, f"{fault.place}: {fault.reason}")
        if fault.fix and fault.fix != said:
            show(console, f"  {words()('next')}: {fault.fix}")
        said = fault.fix
    if report.faults_total > len(report.faults):
        show(console, words()("and {count} more", count=f"{report.faults_total - len(report.faults):,}"))
