"""Runs in a folder: which there are, how each stands, what it tells as it goes on. Only reads run directories."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from danlu.config import from_yaml
from danlu.errors import ConfigError, DanluError
from danlu.journal import Journal, holder, is_run
from danlu.report.numbers import is_figure
from danlu.report.verdict import judge
from danlu.ui.series import Kept, Series, row_of
from danlu.words import Words

State = Literal["running", "done", "stopped", "broken off"]
_NAME = re.compile(r"\w[\w.-]*(/\w[\w-]*)?")
_MOST = 1000  # runs in a list
_TAIL_BYTES = 8192  # of metrics.jsonl, which say how a run stands
_TURNS = ("begun", "resumed", "stopped", "interrupted")  # events after which a run stands otherwise


@dataclass(frozen=True)
class Runs:
    """The runs of a folder. A step of a chain is CHAIN/STEP."""

    folder: Path
    kept: Kept

    def names(self) -> list[str]:
        """The newest first."""
        found = [(path.stat().st_mtime, name) for name, path in self._all()]
        return [name for _, name in sorted(found, reverse=True)[:_MOST]]

    def _all(self) -> Iterator[tuple[str, Path]]:
        """Each with the file that was written last."""
        for directory in self.folder.iterdir() if self.folder.is_dir() else ():
            if not self._is_ours(directory):
                continue
            yield directory.name, _newest(directory)
            for step in directory.iterdir():
                if step.is_dir() and self._is_ours(step):
                    yield f"{directory.name}/{step.name}", _newest(step)

    def _is_ours(self, directory: Path) -> bool:
        """Whether a run lies there, and inside the folder: a link that leads out of it is not followed."""
        return (
            not directory.name.startswith(".")
            and is_run(directory)
            and self.folder.resolve() in directory.resolve().parents
        )

    def at(self, name: str) -> Path:
        """The directory of a run. Raises ConfigError for what is none in this folder."""
        directory = self.folder / name
        if _NAME.fullmatch(name) is None or not self._is_ours(directory):
            raise ConfigError(f"no run {name!r:.100} in {self.folder}", fix="open the list of runs")
        return directory

    def series(self, name: str) -> Series:
        return self.kept.of(self.at(name))

    def card(self, name: str, said: Words) -> dict[str, Any]:
        """How a run stands, in few figures."""
        directory = self.at(name)
        journal = Journal(directory)
        row, events = next(iter(_last_rows(journal.metrics_path)), {}), journal.events()
        results = _results(journal)
        plan: dict[str, Any] = next((event for event in reversed(events) if is_figure(event.get("steps"))), {})
        recipe = _read(journal.recipe_path, _stamp(journal.recipe_path))
        verdict = judge(results, words=said)
        state, reason = _state(directory, results, events)
        return {
            "run": name,
            "kind": "chain" if "steps" in recipe else str(recipe.get("kind", "")),
            "model": _model(recipe),
            "state": state,
            "reason": reason,
            "step": row.get("step", 0),
            "steps": plan.get("steps"),
            "loss": row.get("loss"),
            "score": row.get("score"),
            "seconds": results.get("run", {}).get("seconds") if isinstance(results.get("run"), dict) else None,
            "began": next((event.get("time") for event in events if event.get("kind") == "begun"), None),
            "told": _newest(directory).stat().st_mtime,
            "verdict": verdict.sentence,
            "tone": verdict.tone,
            "has_verdict": verdict.tone != "open" or "difference" in results,
            "has_report": journal.report_path.is_file(),
        }

    def live(self, name: str, said: Words) -> dict[str, Any]:
        """The card with how long it will still take, by its last steps."""
        card = self.card(name, said)
        rows = _last_rows(Journal(self.at(name)).metrics_path)
        seconds = [row["seconds"] for row in rows if is_figure(row.get("seconds"))]
        left = card["steps"] - card["step"] if is_figure(card["steps"]) and is_figure(card["step"]) else 0
        going = card["state"] == "running" and seconds and left > 0
        return {**card, "seconds_left": left * sum(seconds) / len(seconds) if going else None}

    def detail(self, name: str, said: Words) -> dict[str, Any]:
        """What does not change while a run goes on, and its samples side by side."""
        journal = Journal(self.at(name))
        results = _results(journal)
        examples = [one for one in results.get("examples") or [] if isinstance(one, dict)]
        text = journal.recipe_path.read_text("utf-8", "replace")
        steps = results["steps"] if isinstance(results.get("steps"), dict) else {}
        return {
            **self.live(name, said),
            "recipe": text,
            "examples": examples[:50],
            "chain": [f"{name}/{step}" for step in steps if "/" not in name and is_run(journal.directory / step)],
            "figures": {key: results[key] for key in ("before", "after", "difference", "machine") if key in results},
        }


def _newest(directory: Path) -> Path:
    """The file of a run that was written last."""
    names = ("metrics.jsonl", "events.jsonl", "results.json")
    found = [path for name in names if (path := directory / name).is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=directory / "recipe.yaml")


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The last whole rows, the newest first: those in the last few thousand bytes."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return [row for line in reversed(file.read().splitlines()) if (row := row_of(line))]
    except OSError:
        return []


def _results(journal: Journal) -> dict[str, Any]:
    try:
        found = journal.results()
    except (DanluError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=4096)
def _read(path: Path, _stamp: int) -> dict[str, Any]:
    """A recipe.yaml, which somebody may have damaged; read again only when it was written again."""
    try:
        found = from_yaml(path.read_text("utf-8", "replace"))
    except (DanluError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _model(recipe: dict[str, Any]) -> str:
    model = recipe.get("model")
    return str(model.get("name", "")) if isinstance(model, dict) else str(model or recipe.get("start") or "")


def _state(directory: Path, results: dict[str, Any], events: list[dict[str, Any]]) -> tuple[State, str]:
    """How a run stands; and where it has ended too early, why."""
    if holder(directory) or (is_run(directory.parent) and holder(directory.parent)):
        return "running", ""
    steps = results.get("steps")
    whole = isinstance(steps, dict) and steps and all(one.get("state") == "done" for one in steps.values())
    if "run" in results or whole:
        return "done", ""
    turns = (event for event in reversed(events) if event.get("kind") in _TURNS)
    last: dict[str, Any] = next(turns, {})
    if last.get("kind") in ("stopped", "interrupted"):
        return "stopped", str(last.get("reason", ""))
    return "broken off", ""
