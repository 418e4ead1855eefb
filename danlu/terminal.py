"""What a run and a data check look like in a terminal. Only draws; decides nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from danlu.data.check import DataReport
from danlu.errors import DanluError
from danlu.words import words


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
        self._losses: deque[float] = deque(maxlen=10)
        self._speeds: deque[tuple[float, float]] = deque(maxlen=10)

    def say(self, text: str) -> None:
        """Print a line; a bar that is running is finished first."""
        self.close()
        show(self._console, text)

    def step(self, row: dict[str, Any]) -> None:
        """Advance the bar to `row["step"]`; without a terminal, print every tenth of the way."""
        self._losses.append(row["loss"])
        self._speeds.append((row["tokens"], row["seconds"]))
        loss = sum(self._losses) / len(self._losses)
        speed = sum(t for t, _ in self._speeds) / sum(s for _, s in self._speeds)
        text = f"loss {loss:.3f}  {speed:,.0f} tokens/s"
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
        self._progress.update(self._task, completed=row["step"], text=text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


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
    kind = type(error).__name__
    console.print(f"{said('error:')} {kind}", style="bold red", end="")
    show(console, f"（{said.if_known(kind)}）：{error.seen}")
    for head, text in (("allowed:", error.allowed), ("next:", error.fix)):
        if text:
            show(console, f"  {said(head)}{text}")


def show_examples(console: Console, examples: list[dict[str, str]], limit: int = 3) -> None:
    """A few held-out examples side by side."""
    table = Table("question", "reference", "before", "after", title="held-out examples", show_lines=True)
    for example in examples[:limit]:
        cells = (example["prompt"], example["reference"], example["before"], example["after"])
        table.add_row(*(_short(cell) for cell in cells))
    console.print(table)


def _short(text: str, limit: int = 160) -> Any:
    """Text whose lines break anywhere: Chinese has no spaces. Of a long one the middle is left out."""
    from rich.text import Text

    half = (limit - 3) // 2
    return Text(text if len(text) <= limit else f"{text[:half]} … {text[-half:]}", overflow="fold")


def show_data(console: Console, report: DataReport) -> None:
    """Counts, lengths, duplicates and the first faults of a data file."""
    figures = report.to_dict()
    table = Table("", "", show_header=False, box=None)
    for name, value in figures.items():
        if name not in ("faults", "histogram", "path") and value is not None:
            table.add_row(name.replace("_", " "), _figure(value))
    show(console, report.path)
    console.print(table)
    for place, reason in report.faults:
        show(console, f"{place}: {reason}")
    if report.faults_total > len(report.faults):
        show(console, f"and {report.faults_total - len(report.faults)} more")


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_figure(inner)}" for key, inner in value.items())
    return f"{value:,.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
