"""A journal's rows -> its trackers, each in a thread of its own: none stops a run, or lets it wait.

A tracker that fails is told of once, as an event, and hears nothing more. Which steps it was told stands in the run
directory, in `track.json`: a run that is resumed goes on in the same run there, and no step is told twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from danlu.config import Options
from danlu.errors import ConfigError, nearest
from danlu.journal import Journal
from danlu.track.trackers import OURS, TRACKERS, Beginning, Tracker, flat

END_SECONDS = 30  # that a finished run waits for its slowest tracker


class TrackOptions(Options):
    """Who is told of a run while it goes on."""

    report_to: tuple[str, ...] = Field(
        ("tensorboard",),
        description="trackers: tensorboard (files in the run directory), wandb, swanlab, trackio, mlflow; [] is none",
    )
    project: str = Field("danlu", min_length=1, description="what the runs of one undertaking are called there")
    run_name: str | None = Field(None, description="the run's name there; else the name of the run directory")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="tracker -> arguments of the package's own function that begins a run, such as "
        "{wandb: {mode: offline}}, {mlflow: {tracking_uri: …}}",
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _as_list(cls, names: Any) -> Any:
        """One name, and none, as Hugging Face writes them."""
        if names in (None, "none"):
            return ()
        return (names,) if isinstance(names, str) else names

    @model_validator(mode="after")
    def _known(self) -> TrackOptions:
        for name in self.report_to:
            if name not in TRACKERS:
                raise ValueError(f"report_to: {name!r} {nearest(name, TRACKERS)}; there are: {', '.join(TRACKERS)}")
        if len(set(self.report_to)) < len(self.report_to):
            raise ValueError("report_to: a tracker is named twice")
        for name, options in self.options.items():
            if name not in self.report_to:
                raise ValueError(f"options.{name} has no effect without {name} in report_to")
            if own := sorted(OURS & options.keys()):
                raise ValueError(f"options.{name}: {', '.join(own)}: the run has these; see track.project, run_name")
        return self


def check_trackers(options: TrackOptions) -> None:
    """Raise ConfigError for a tracker whose package is not installed, or that has no such options. Begins nothing."""
    for name in options.report_to:
        kind = TRACKERS[name]
        given = options.options.get(name, {})
        if not kind.package:
            if given:
                raise ConfigError(f"track.options: {name} has none", fix="leave them out")
            continue
        if importlib.util.find_spec(kind.package) is None:
            raise ConfigError(
                f"track.report_to: {name} is not installed", fix=f"pip install {kind.package}, or leave it out"
            )
        try:
            function = getattr(importlib.import_module(kind.package), kind.function)
        except Exception as error:  # a package that is there, and broken
            raise ConfigError(f"track.report_to: {name} cannot be used: {type(error).__name__}: {error}") from error
        _check_options(name, function, given, kind.more)


def _check_options(name: str, function: Callable[..., Any], given: Mapping[str, Any], more: tuple[str, ...]) -> None:
    parameters = inspect.signature(function).parameters
    known = [*more, *(key for key in parameters if key not in OURS)]
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if unknown := [key for key in given if key not in known]:
        if takes_any and unknown[0].isidentifier():
            return
        raise ConfigError(
            f"track.options.{name}: {unknown[0]!r} {nearest(unknown[0], known)}".rstrip(), allowed=", ".join(known)
        )


def tracked(
    journal: Journal, options: TrackOptions, config: Mapping[str, Any], name: str, say: Callable[[str], None]
) -> Journal:
    """The journal, heard by its trackers; `close` it when the run has ended. `say` is told of one that fails."""
    if not options.report_to:
        return journal
    tracking = Tracking(journal, say)
    for tracker in options.report_to:
        tracking.add(tracker, options, config, options.run_name or name)
    return Journal(journal.directory, tracking)


class Tracking:
    """What a run's trackers hear."""

    def __init__(self, journal: Journal, say: Callable[[str], None]) -> None:
        self._say = say
        self._journal = journal  # that nobody hears: what it tells of a tracker goes to no tracker
        self._known = _read(journal.tracking_path)
        self._lock = threading.Lock()
        self._lines: list[_Line] = []
        self._failed: set[str] = set()
        self._step = max((int(row["step"]) for row in journal.metrics()), default=0)

    def add(self, name: str, options: TrackOptions, config: Mapping[str, Any], run_name: str) -> None:
        known = self._known.get(name)
        beginning = Beginning(
            folder=self._journal.directory / name,
            project=options.project,
            name=run_name,
            identity=str(known["identity"]) if known else secrets.token_hex(11)[:21],
            goes_on=known is not None,
            config=config,
            options=options.options.get(name, {}),
        )
        self._lines.append(_Line(name, beginning, int(known["step"]) if known else 0, self))

    # -- what a journal tells ----------------------------------------------------------------------------

    def metric(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        self._step = int(row["step"])
        step, figures = self._step, figures_of(row)
        for line in self._lines:
            line.put(lambda tracker: tracker.scalars(figures, step), step)

    def event(self, row: Mapping[str, Any]) -> None:
        """A row of events.jsonl."""
        step, kind, text = int(row.get("step", self._step)), str(row["kind"]), _said(row)
        for line in self._lines:
            line.put(lambda tracker: tracker.text(kind, text, step))

    def result(self, part: str, values: Any) -> None:
        """What a part of the run measured, if there are figures in it."""
        found = {f"{part}/{key}": value for key, value in _numbers(values).items()}
        step = 0 if part == "before" else self._step
        if found:
            for line in self._lines:
                line.put(lambda tracker: tracker.summary(found, step))

    def rewind(self, step: int) -> None:
        """A run that is resumed goes on after this step, which may be before the last that was told."""
        self._step = step
        rows, events, results = self._journal.metrics(), self._journal.events(), self._journal.results()
        for line in self._lines:
            if TRACKERS[line.name].rewrites and line.goes_on:
                line.anew(step, partial(_retell, rows, events, results))

    def close(self) -> None:
        """Let each of them end, in so many seconds; what is slower than that goes on without being waited for."""
        for line in self._lines:
            line.end()
        for line in self._lines:
            line.thread.join(END_SECONDS)
            if line.thread.is_alive():
                self.failed(line.name, f"it had not ended after {END_SECONDS} s; nobody waits for it any longer")

    # -- what the threads tell ----------------------------------------------------------------------------

    def failed(self, name: str, reason: str) -> None:
        """Tell it, once, in the run directory and to the user."""
        with self._lock, suppress(Exception):  # a full disk; the run meets it too, and says so
            if name in self._failed:
                return
            self._failed.add(name)
            self._journal.event("tracker", f"{name}: {reason}", tracker=name)
            self._say(f"tracker {name}: {reason}")

    def keep(self, name: str, identity: str, step: int) -> None:
        """How far a tracker was told; a write that is cut short leaves the one before."""
        with self._lock, suppress(OSError):
            self._known[name] = {"identity": identity, "step": step}
            draft = self._journal.tracking_path.with_suffix(".part")
            draft.write_text(json.dumps(self._known), "utf-8")
            draft.replace(self._journal.tracking_path)


class _Line:
    """One tracker and its thread."""

    def __init__(self, name: str, beginning: Beginning, told: int, tracking: Tracking) -> None:
        self.name, self.goes_on, self._told, self._before = name, beginning.goes_on, told, told
        self._tracker, self._beginning, self._tracking = TRACKERS[name].make(), beginning, tracking
        self._waiting: queue.SimpleQueue[tuple[Callable[[Tracker], None], int | None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def put(self, tell: Callable[[Tracker], None], step: int | None = None) -> None:
        """`step`: of a row, which is passed over if it was told before."""
        if step is not None:
            if step <= self._told:
                return
            self._told = step
        self._waiting.put((tell, step))

    def end(self) -> None:
        self._waiting.put(None)

    def anew(self, step: int, retell: Callable[[Tracker], None]) -> None:
        """Begin once more, with what there is up to this step."""

        def again(tracker: Tracker) -> None:
            tracker.end()
            tracker.begin(self._beginning)
            retell(tracker)

        self._told = step
        self._waiting.put((again, step))

    def _run(self) -> None:
        try:
            identity = self._tracker.begin(self._beginning)
            self._tracking.keep(self.name, identity, self._before)
            while (asked := self._waiting.get()) is not None:
                tell, step = asked
                tell(self._tracker)
                if step is not None:
                    self._tracking.keep(self.name, identity, step)
            self._tracker.end()
        except BaseException as error:
            self._tracking.failed(self.name, f"{type(error).__name__}: {error}; it is told nothing more")


def _retell(
    rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], results: Mapping[str, Any], tracker: Tracker
) -> None:
    """All that a run directory holds by now."""
    for row in rows:
        tracker.scalars(figures_of(row), int(row["step"]))
    for event in events:
        tracker.text(str(event["kind"]), _said(event), int(event.get("step", 0)))
    for part, values in results.items():
        if found := {f"{part}/{key}": value for key, value in _numbers(values).items()}:
            tracker.summary(found, 0)


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a metrics row under the names that trackers sort by: train/loss, eval/loss."""
    found = {}
    for key, value in _numbers(row).items():
        if key not in ("step", "steps"):
            of_eval = key.startswith("eval_")
            found[f"eval/{key.removeprefix('eval_')}" if of_eval else f"train/{key}"] = value
    return found


def _numbers(values: Any) -> dict[str, float]:
    """The numbers of a mapping, groups as dotted keys; lists and words are none."""
    if not isinstance(values, Mapping):
        return {}
    numbers = {key: value for key, value in flat(values).items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if not isinstance(value, bool)}


def _said(row: Mapping[str, Any]) -> str:
    """An event in words, with its figures."""
    more = [f"{key} {value}" for key, value in row.items() if key not in ("time", "kind", "reason", "step")]
    return "; ".join([str(row["reason"]), *more])


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier halves of the run told whom; nothing where that cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: one for name, one in found.items() if isinstance(one, dict) and {"identity", "step"} <= one.keys()}
