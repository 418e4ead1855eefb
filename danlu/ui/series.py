"""metrics.jsonl and events.jsonl of a run -> columns of numbers, read once and then only as they grow.

A run of a million steps is a hundred megabytes of text: its rows are read when a page first asks, and from there on
what has been added. What a page is sent is the whole run in about a thousand points, the lowest and the highest of each
stretch, so that a spike stays visible; then rows as they come.
"""

from __future__ import annotations

import json
import math
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from danlu.journal import Journal
from danlu.report.charts import OF_STAGES
from danlu.report.numbers import is_figure

POINTS = 1000
# Columns that are drawn; the last is worked out. Of every kind of training; a run has some of them.
COLUMNS = (
    "loss", "eval_loss", *OF_STAGES, "lr", "grad_norm", "memory_bytes", "peak_memory_bytes", "seconds",
    "tokens_per_second",
)  # fmt: skip
_DRAWN = frozenset(COLUMNS)
EVENTS = 500  # of a run, the newest, that a page holds
NONE = ("nan", "inf", "-inf")  # as a journal spells what is no number; such a step is marked, not passed over
_RUNS_KEPT = 16
_AT_ONCE = 1 << 24  # bytes


class Grown:
    """Lines of a file that only grows, or is replaced by another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    @property
    def version(self) -> int:
        """Another number for each file that has stood there."""
        return self._inode

    def news(self) -> tuple[bool, Iterator[bytes]]:
        """Whether the file is another one than before; whole lines that were not read yet."""
        try:
            now = self._path.stat()
        except OSError:
            is_other, self._inode, self._offset = self._inode != 0, 0, 0
            return is_other, iter(())
        is_other = now.st_ino != self._inode or now.st_size < self._offset
        if is_other:
            self._inode, self._offset = now.st_ino, 0
        return is_other, self._lines(now.st_size)

    def _lines(self, size: int) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                while self._offset < size:
                    file.seek(self._offset)
                    part = file.read(min(_AT_ONCE, size - self._offset))
                    end = part.rfind(b"\n") + 1
                    if not end:  # of a row that is being written, the beginning
                        return
                    self._offset += end
                    yield from part[:end].splitlines()
        except OSError:  # it was replaced in between
            return


@dataclass
class Series:
    """What a run has told so far. Safe to be asked by several threads."""

    journal: Journal
    columns: dict[str, array[float]] = field(default_factory=dict)
    steps: array[float] = field(default_factory=lambda: array("d"))
    faulty: dict[str, list[int]] = field(default_factory=dict)  # column -> steps in which it was no number
    events: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._metrics, self._events = Grown(self.journal.metrics_path), Grown(self.journal.events_path)

    @property
    def version(self) -> str:
        """Another word for each telling: a run that was resumed tells its last steps anew."""
        return f"{self._metrics.version:x}-{self._events.version:x}"

    def refresh(self) -> None:
        """Read what has been added."""
        with self.lock:
            is_other, lines = self._metrics.news()
            if is_other:
                self.columns, self.steps, self.faulty = {}, array("d"), {}
            for line in lines:
                self._add(row_of(line))
            is_other, lines = self._events.news()
            if is_other:
                self.events = []
            self.events += [row for row in map(row_of, lines) if row]

    def _add(self, row: dict[str, Any]) -> None:
        """One row. A long run has a million: nothing is looked at twice."""
        if not row:
            return
        steps, columns = self.steps, self.columns
        step, tokens, seconds = row.get("step"), row.get("tokens"), row.get("seconds")
        steps.append(float(step) if is_figure(step) else len(steps) + 1.0)  # type: ignore[arg-type]
        if is_figure(tokens) and is_figure(seconds) and seconds > 0:  # type: ignore[operator]
            row["tokens_per_second"] = tokens / seconds  # type: ignore[operator]
        for name, value in row.items():
            if name not in _DRAWN:
                continue
            if type(value) not in (float, int) or value - value != 0:  # the difference of what is infinite is no number
                if _is_none(value):
                    self.faulty.setdefault(name, []).append(int(steps[-1]))
                continue
            if name not in columns:
                columns[name] = array("d", [math.nan] * (len(steps) - 1))
            columns[name].append(value)
        for column in columns.values():
            if len(column) < len(steps):
                column.append(math.nan)

    @property
    def last(self) -> int:
        """The last step; 0 before the first."""
        return int(self.steps[-1]) if self.steps else 0

    def whole(self, most: int = POINTS) -> dict[str, dict[str, list[float | None]]]:
        """Column -> {x: steps, y: values}, at most so many of each, without the rows that lack it."""
        with self.lock:
            steps = np.array(self.steps)
            found = {name: _bucketed(steps, np.array(values), most) for name, values in self.columns.items()}
        return {name: {"x": x, "y": y} for name, (x, y) in found.items() if x}

    def faulty_after(self, step: int) -> dict[str, list[int]]:
        """Column -> the last steps after this one in which it was no number."""
        with self.lock:
            found = {name: [one for one in steps[-EVENTS:] if one > step] for name, steps in self.faulty.items()}
        return {name: steps for name, steps in found.items() if steps}

    def after(self, step: int) -> dict[str, list[float | None]]:
        """Rows after a step: column -> values, and "step"."""
        with self.lock:
            first = int(np.searchsorted(np.array(self.steps), step, side="right"))
            made = {name: [_number(value) for value in values[first:]] for name, values in self.columns.items()}
            return {"step": [*self.steps[first:]], **made}


def _bucketed(x: Any, y: Any, most: int) -> tuple[list[float | None], list[float | None]]:
    """The lowest and the highest of each stretch; all where they are few. Values that are none are left out."""
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(y) > most:
        bounds = np.linspace(0, len(y), max(1, (most - 2) // 2) + 1).astype(int)
        picked = {0, len(y) - 1}
        for start, end in pairwise(bounds):
            part = y[start:end]
            picked |= {start + int(part.argmin()), start + int(part.argmax())}
        places = sorted(picked)
        x, y = x[places], y[places]
    return x.tolist(), y.tolist()


def _is_none(value: Any) -> bool:
    return value in NONE or (isinstance(value, float) and not math.isfinite(value))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def row_of(line: bytes) -> dict[str, Any]:
    """A row; nothing for what a kill has left of one."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


class Kept:
    """The series of the runs that were asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, Series] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, directory: Path) -> Series:
        """Of that run, read up to its end."""
        with self._lock:
            series = self._kept.pop(directory, None) or Series(Journal(directory))
            self._kept[directory] = series
            while len(self._kept) > _RUNS_KEPT:
                self._kept.popitem(last=False)
        series.refresh()
        return series


@dataclass(frozen=True)
class Cursor:
    """How far a page has been told of a run; it is the id of an event, which a browser sends when it comes back.

    It begins with the step.
    """

    step: int = 0
    events: int = 0
    version: str = ""

    def __str__(self) -> str:
        return f"{self.step}.{self.events}.{self.version}"

    @classmethod
    def read(cls, text: str, count: int) -> list[Cursor]:
        """Of so many runs; the beginning of all where the text is not ours."""
        parts = [part.split(".") for part in text.split(",")]
        whole = len(parts) == count and all(
            len(part) == 3 and all(re.fullmatch("[0-9]{1,15}", number) for number in part[:2]) for part in parts
        )
        return [cls(int(step), int(events), version) for step, events, version in parts] if whole else [cls()] * count


def told(name: str, series: Series, cursor: Cursor) -> tuple[list[tuple[str, dict[str, Any]]], Cursor]:
    """What a page lacks that was told up to `cursor`, as (kind of event, its data), and where it is then."""
    with series.lock:
        now = Cursor(series.last, len(series.events), series.version)
        if now == cursor:
            return [], cursor
        rows = series.after(cursor.step) if now.version == cursor.version and now.step >= cursor.step else None
        if rows is None or len(rows["step"]) > POINTS or cursor.events > now.events:
            events = series.events[-EVENTS:]
            whole = {"step": now.step, "series": series.whole(), "faulty": series.faulty_after(0), "events": events}
            return [("whole", {"run": name, **whole})], now
        found: list[tuple[str, dict[str, Any]]] = []
        if rows["step"]:
            found.append(("rows", {"run": name, "rows": rows, "faulty": series.faulty_after(cursor.step)}))
        new: Sequence[dict[str, Any]] = series.events[cursor.events :]
        return [*found, *([("events", {"run": name, "events": new[-EVENTS:]})] if new else [])], now
