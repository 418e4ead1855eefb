"""The run directory: one place that knows its files, written by the steps, only read by report and pages.

    recipe.yaml      the recipe as resolved
    metrics.jsonl    one row a step: step, tokens, loss, lr, grad_norm, memory_bytes, seconds
    events.jsonl     what was decided and why
    results.json     what the steps measured, by step name
    checkpoints/     exact state, for resuming
    adapter/ merged/ the products
    report.html

Knows nothing of models or training.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from danlu.errors import disk_faults


@dataclass(frozen=True)
class Journal:
    """A run directory. Rows are appended and flushed at once, so a killed run leaves whole rows behind it."""

    directory: Path

    @property
    def recipe_path(self) -> Path:
        return self.directory / "recipe.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def events_path(self) -> Path:
        return self.directory / "events.jsonl"

    @property
    def results_path(self) -> Path:
        return self.directory / "results.json"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.directory / "adapter"

    @property
    def merged(self) -> Path:
        return self.directory / "merged"

    @property
    def report_path(self) -> Path:
        return self.directory / "report.html"

    def metric(self, **row: Any) -> None:
        """Append one row to metrics.jsonl."""
        _append(self.metrics_path, row)

    def event(self, kind: str, reason: str, **details: Any) -> None:
        """Append one decision to events.jsonl: what was decided (`kind`), why, and its figures."""
        _append(self.events_path, {"time": round(time.time(), 3), "kind": kind, "reason": reason, **details})

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; a last line cut short by a kill is left out."""
        return _rows(self.metrics_path)

    def events(self) -> list[dict[str, Any]]:
        """Rows of events.jsonl."""
        return _rows(self.events_path)

    def results(self) -> dict[str, Any]:
        """What the finished steps measured."""
        if not self.results_path.exists():
            return {}
        loaded: dict[str, Any] = json.loads(self.results_path.read_text("utf-8"))
        return loaded

    def result(self, step: str, values: Any) -> None:
        """Keep what `step` measured in results.json, whole or not at all."""
        write_atomic(self.results_path, json.dumps({**self.results(), step: values}, ensure_ascii=False, indent=2))

    def rewind(self, step: int) -> None:
        """Drop the metric rows after `step`: a resumed run writes them again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        write_atomic(self.metrics_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or leave the old one."""
    temporary = path.with_name(path.name + ".tmp")
    with disk_faults(path, f"writing {path.name}"):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _append(path: Path, row: dict[str, Any]) -> None:
    with disk_faults(path, f"writing {path.name}"), path.open("ab+") as file:
        if file.tell() and not _ends_with_newline(file):  # a kill cut the last line short
            file.write(b"\n")
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _rows(path: Path) -> list[dict[str, Any]]:
    """Whole rows; what a kill left of a line is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
