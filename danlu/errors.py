"""Every error that a user can meet, drawn as one tree.

    DanluError
    ├── ConfigError          a recipe, an override or an option is wrong
    ├── DataError            a record, a file or a data source is wrong
    ├── ModelError           a model cannot be found, read or used
    │   ├── UnknownModel     no such name
    │   └── DownloadError    the name is known, but its files could not be brought here whole
    ├── InUse                another process writes there
    ├── ResourceError        the machine lacks something
    │   ├── DiskError        no space, no permission, not writable
    │   └── MemoryShortage   out of memory
    ├── TrainingError        a run went wrong in a way that the loop will not hide
    ├── ProcessLost          another process of this run has ended
    ├── ParityError          two forms of one model do not answer alike
    ├── AllBanned            no token is left to choose
    ├── FaultyScores         a model's scores are not numbers
    ├── GateFailed           an evaluation is not good enough
    ├── NotJudged            rows could not be judged, so nobody knows
    └── Interrupted          the user asked to stop; what was saved is said

Each says what was seen, what is allowed, and what to do next. `assert` is left for our own mistakes.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class DanluError(Exception):
    """Base of all errors meant for the user.

    Args:
        seen: what was found, with its place (file, line, key) where there is one.
        allowed: what would have been right.
        fix: what to do next.
    """

    exit_code = 1

    def __init__(self, seen: str, *, allowed: str = "", fix: str = "") -> None:
        self.seen, self.allowed, self.fix = seen, allowed, fix
        lines = [seen]
        if allowed:
            lines.append(f"  allowed: {allowed}")
        if fix:
            lines.append(f"  next: {fix}")
        super().__init__("\n".join(lines))


class ConfigError(DanluError):
    """A recipe, an override or an option is wrong."""

    exit_code = 2


class DataError(DanluError):
    """A record, a file or a data source is wrong."""


class ModelError(DanluError):
    """A model cannot be found, read or used."""


class UnknownModel(ModelError):
    """No model has this name."""


class DownloadError(ModelError):
    """The model's files could not be brought here whole; nothing half-written is left."""


class InUse(DanluError):
    """Another process writes where this one would."""


class ResourceError(DanluError):
    """The machine lacks something."""


class DiskError(ResourceError):
    """No space, no permission, or a path that cannot be written."""


class MemoryShortage(ResourceError):
    """Not enough memory for what was asked."""


class TrainingError(DanluError):
    """A run went wrong in a way that the loop will not hide."""


class ProcessLost(DanluError):
    """Another process that works on the same run has ended."""


class ParityError(DanluError):
    """Two forms of one model do not answer alike."""


class AllBanned(DanluError):
    """Every token is banned by the knobs: an answer cannot go on."""


class FaultyScores(DanluError):
    """The model's scores are not numbers; no knob of a request is to blame."""

    def __init__(self) -> None:
        super().__init__("the model's scores are not numbers", fix="try dtype float32; check the model's weights")


class GateFailed(DanluError):
    """An evaluation is not good enough."""


class NotJudged(DanluError):
    """Rows could not be judged, so nobody knows how good they are."""

    exit_code = 2


class Interrupted(DanluError):
    """The user asked to stop."""

    exit_code = 130


def nearest(name: str, names: Iterable[str]) -> str:
    """The valid name closest to `name`, as a question; empty when none is close."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


_DISK_FAULTS = {
    errno.ENOSPC: ("no space left on the disk", "free some space, or choose another directory"),
    errno.EFBIG: (
        "a file grew larger than is allowed here",
        "raise the limit (ulimit -f), or choose another directory",
    ),
    errno.EIO: ("input/output error; the disk may be failing", "choose another directory, on another disk"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "choose a shorter name"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another directory"),
    errno.EACCES: ("no permission to write", "choose a directory that you may write to"),
    errno.EPERM: ("no permission to write", "choose a directory that you may write to"),
    errno.EROFS: ("the file system is read-only", "choose a directory that can be written"),
    errno.EEXIST: ("a file stands where a directory is wanted", "choose another path, or move the file"),
    errno.ENOTDIR: ("a part of the path is a file", "choose another path"),
}


# What numpy says, without the system's number, of an array that was not written whole.
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")


def size_in_words(size: int) -> str:
    """Bytes in the unit that shows what there is of them: "1.50 GB", "23.4 MB", "512 bytes"."""
    for unit, name, digits in ((10**9, "GB", 2), (10**6, "MB", 1), (10**3, "kB", 1)):
        if size >= unit:
            return f"{size / unit:,.{digits}f} {name}"
    return f"{size} bytes"


@contextmanager
def disk_faults(path: Path | str, doing: str) -> Iterator[None]:
    """Turn the operating system's write errors below `path` into a DiskError; let other errors through."""
    try:
        yield
    except OSError as error:
        code = error.errno or (errno.ENOSPC if _CUT_SHORT.search(str(error)) else 0)
        fault = _DISK_FAULTS.get(code)
        if fault is None:
            raise
        reason, fix = fault
        raise DiskError(f"{doing}: {reason}: {error.filename or path}", fix=fix) from error
