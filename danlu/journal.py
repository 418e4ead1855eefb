"""The run directory: one place that knows its files, written by the steps, only read by report and pages.

    recipe.yaml      the recipe as resolved
    metrics.jsonl    one row a step: step, tokens, loss, lr, grad_norm, memory_bytes (at the step's end),
                     peak_memory_bytes (the most in use at once during it), seconds
    events.jsonl     what was decided and why
    results.json     what the steps measured, by step name
    checkpoints/     exact state, for resuming
    adapter/ merged/ model/   the products: an adapter, that folded into its base, a model trained whole
    report.html
    track.json       which trackers were told how far; tensorboard/ and the like: what they keep here

Knows nothing of models or training.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import yaml

from danlu.errors import ConfigError, DanluError, DataError, InUse, disk_faults


class Hearer(Protocol):
    """Who is told of what stands in a run directory by now. It raises nothing, and waits for nobody."""

    def metric(self, row: Mapping[str, Any]) -> None: ...

    def event(self, row: Mapping[str, Any]) -> None: ...

    def result(self, part: str, values: Any) -> None: ...

    def rewind(self, step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Journal:
    """A run directory. Rows are appended and flushed at once, so a killed run leaves whole rows behind it.

    Attributes:
        hearer: told of all that is written by this object.
    """

    directory: Path
    hearer: Hearer | None = field(default=None, compare=False)

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
    def tracking_path(self) -> Path:
        return self.directory / "track.json"

    @property
    def adapter(self) -> Path:
        return self.directory / "adapter"

    @property
    def merged(self) -> Path:
        return self.directory / "merged"

    @property
    def model(self) -> Path:
        return self.directory / "model"

    @property
    def report_path(self) -> Path:
        return self.directory / "report.html"

    @property
    def is_of_chain(self) -> bool:
        """Whether this is the directory of a run of several steps."""
        return "steps" in self.results()

    def metric(self, **row: Any) -> None:
        """Append one row to metrics.jsonl."""
        _append(self.metrics_path, row)
        if self.hearer is not None:
            self.hearer.metric(row)

    def event(self, kind: str, reason: str, **details: Any) -> None:
        """Append one decision to events.jsonl: what was decided (`kind`), why, and its figures."""
        row = {"time": round(time.time(), 3), "kind": kind, "reason": reason, **details}
        _append(self.events_path, row)
        if self.hearer is not None:
            self.hearer.event(row)

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
        try:
            loaded: dict[str, Any] = json.loads(self.results_path.read_text("utf-8"))
        except ValueError as error:
            raise DataError(
                f"{self.results_path}: no whole JSON: {error}",
                fix="remove the file; a run that is resumed goes on without it, and what it proves is measured anew",
            ) from error
        return loaded

    def result(self, step: str, values: Any) -> None:
        """Keep what `step` measured in results.json, whole or not at all."""
        write_atomic(self.results_path, json.dumps({**self.results(), step: values}, ensure_ascii=False, indent=2))
        if self.hearer is not None:
            self.hearer.result(step, values)

    def rewind(self, step: int) -> None:
        """Drop the metric rows after `step`: a resumed run writes them again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        write_atomic(self.metrics_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        if self.hearer is not None:
            self.hearer.rewind(step)

    def close(self) -> None:
        """The run has ended; whoever hears of it may end as well."""
        if self.hearer is not None:
            self.hearer.close()


class Mute(Journal):
    """A run directory that another process writes: it is only read here."""

    def metric(self, **row: Any) -> None:
        pass

    def event(self, kind: str, reason: str, **details: Any) -> None:
        pass

    def result(self, step: str, values: Any) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass


@dataclass
class Draft:
    """Events and results of a run whose directory is not opened yet: nothing of it is on the disk, but for what is too
    large for memory, which stands beside it under a hidden name and goes if the directory is never opened."""

    rows: list[Callable[[Journal], None]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def folder(self, directory: Path, name: str) -> Path:
        """Where the folder `name` of the run directory is to be made; it is not there yet."""
        place = directory.with_name(f".{directory.name}.{name}")
        shutil.rmtree(place, ignore_errors=True)  # left by a killed process
        self.folders.append(place)
        self.rows.append(lambda journal: _replace(place, journal.directory / name))
        return place

    def event(self, kind: str, reason: str, **details: Any) -> None:
        """What `Journal.event` will write."""
        self.rows.append(lambda journal: journal.event(kind, reason, **details))

    def result(self, step: str, values: Any) -> None:
        """What `Journal.result` will write."""
        self.rows.append(lambda journal: journal.result(step, values))

    def write_to(self, journal: Journal) -> None:
        for write in self.rows:
            write(journal)


def _replace(made: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def clear_leftovers(directory: Path) -> None:
    """Remove what a killed `write_atomic` left in the directory."""
    for path in directory.glob(".*.????????"):
        if re.fullmatch(r"\.(results\.json|recipe\.yaml|metrics\.jsonl|report\.html)\.[0-9a-f]{8}", path.name):
            path.unlink(missing_ok=True)


# -- one writer -----------------------------------------------------------------------------------------


def is_run(directory: Path) -> bool:
    """Whether a run was begun there."""
    return (directory / "recipe.yaml").is_file()


def check_replaceable(directory: Path) -> None:
    """Raise ConfigError if something other than a run is there: that is not moved aside."""
    if not directory.exists() or is_run(directory):
        return
    if directory.is_file() or any(not entry.name.startswith(".") for entry in directory.iterdir()):
        raise ConfigError(f"{directory} exists and is no run directory", fix="choose another name or another runs")


def set_aside(directory: Path) -> Path | None:
    """Give an earlier run the first free of the names NAME.1, NAME.2, …; returns it, or None if there is no run."""
    if not is_run(directory):
        return None
    number = 1
    while (aside := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(aside)
    return aside


def opened_run(directory: Path, recipe: Mapping[str, Any], goes_on: bool, say: Callable[[str], None]) -> Journal:
    """The run directory with this recipe in it; what another run left there is moved aside, unless this one goes on."""
    journal = Journal(directory)
    with disk_faults(directory, "making the run directory"):
        if not goes_on and (aside := set_aside(directory)):
            say(f"an earlier run was kept as {aside}")
        directory.mkdir(parents=True, exist_ok=True)
    clear_leftovers(directory)
    write_atomic(journal.recipe_path, yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
    return journal


@contextmanager
def claimed(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only process that writes `directory` until the block ends or the process dies.

    The lock is the operating system's, on the file .NAME.lock beside the directory: after a `kill -9` it is free, and
    nothing has to be cleared away. Over NFS it holds between machines where the server locks files (its lockd); on a
    file system without locks it is said that there is none.

    Raises InUse while another process has it.
    """
    path = _lock_path(directory)
    with disk_faults(path, "making the run directory's lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        number = _lock(path, directory)
    if number is None:
        say(f"{path.parent}: its file system has no locks; a second run of this name would not be noticed")
    try:
        yield
    finally:
        if number is not None:
            path.unlink(missing_ok=True)  # while it is still held; whoever waits for it looks again
            os.close(number)


def holder(directory: Path) -> str:
    """Who writes `directory` now, as "process 12 on HOST"; empty if nobody does."""
    try:
        number = os.open(_lock_path(directory), os.O_RDWR)
    except OSError:
        return ""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(number, 200, 0).decode("utf-8", "replace") or "another process"
    except OSError:  # no locks here
        return ""
    finally:
        os.close(number)
    return ""


def check_free(path: Path) -> None:
    """Raise InUse if `path` is, or lies in, a directory that another process writes."""
    place = path.resolve()
    for directory in (place, *list(place.parents)[:-1]):  # all but the root
        if who := holder(directory):
            raise _in_use(directory, who)


def _lock_path(directory: Path) -> Path:
    place = directory.resolve()
    return place.with_name(f".{place.name}.lock")


def _lock(path: Path, directory: Path) -> int | None:
    """An open file that is locked, or None where there are no locks."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.fstat(number).st_ino == path.stat().st_ino:
                    os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                    return number
            os.close(number)  # its holder removed the file in between
        except BlockingIOError:
            who = os.pread(number, 200, 0).decode("utf-8", "replace") or "another process"
            os.close(number)
            raise _in_use(directory, who) from None
        except OSError as error:
            os.close(number)
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            return None


def _in_use(directory: Path, who: str) -> DanluError:
    return InUse(f"{directory} is being written by {who}", fix="wait until it has ended, or choose another name")


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or leave the old one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # another process may write the same file
    with disk_faults(path, f"writing {path.name}"):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _flush(directory: Path) -> None:
    """Let the names in a directory outlive a loss of power, where its file system can."""
    number = os.open(directory, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(number)
    os.close(number)


def _append(path: Path, row: dict[str, Any]) -> None:
    with disk_faults(path, f"writing {path.name}"), path.open("ab+") as file:
        if file.tell() and not _ends_with_newline(file):  # a kill cut the last line short
            file.write(b"\n")
        file.write(json.dumps(_as_json(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _as_json(value: Any) -> Any:
    """What JSON has no numbers for, in words: inf, -inf, nan."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    return f"{value}" if isinstance(value, float) and not math.isfinite(value) else value


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
