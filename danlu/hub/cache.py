"""The directory `cache/models`, where a model appears whole or not at all.

It is built in `KEY.part` by the one process that holds `KEY.lock`, flushed, then renamed. A `.part`
whose lock is free belonged to a killed process and is swept. How a model is made is its caller's
affair; Hugging Face and ModelScope files stay in those libraries' own caches.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from danlu.errors import DiskError, disk_faults, size_in_words
from danlu.hub.directory import check_directory, is_whole
from danlu.hub.quiet import Say

# Ends every name in the cache: raise it when what is written there is to be made anew.
FORM = 2

MORE_DISK = "free some space, or set DANLU_CACHE to a directory on a larger disk"


def cache_directory() -> Path:
    """Where fetched models are kept: $DANLU_CACHE, else the user's cache directory. Read at each call."""
    chosen = os.environ.get("DANLU_CACHE") or platformdirs.user_cache_dir("danlu", appauthor=False)
    return Path(chosen).expanduser().absolute()


def kept(cache: Path, key: str) -> Path:
    """Where the model `key` is, or will be."""
    return cache.expanduser().absolute() / "models" / f"{key}-{FORM}"


def keep(cache: Path, key: str, make: Callable[[Path, Path], None], say: Say) -> Path:
    """`kept(cache, key)`, filled by `make(scratch, out)` if it is not there yet."""
    ready = kept(cache, key)
    if is_whole(ready):
        return ready
    with disk_faults(cache, f"keeping {ready.name} in the cache (DANLU_CACHE names another place)"):
        ready.parent.mkdir(parents=True, exist_ok=True)
        _sweep(ready.parent)
        with _lock(ready, say):
            if not is_whole(ready):
                _build(ready, make)
    return ready


def need_disk(directory: Path, need_bytes: int, what: str) -> None:
    """Raise DiskError unless that much is free where `directory` is."""
    free = shutil.disk_usage(directory).free
    if free < need_bytes:
        raise DiskError(
            f"{what} needs {size_in_words(need_bytes)} of disk in {directory}; {size_in_words(free)} are free",
            fix=MORE_DISK,
        )


def _build(ready: Path, make: Callable[[Path, Path], None]) -> None:
    """Fill `ready` through a `.part` beside it. The caller holds the lock."""
    scratch = ready.with_name(f"{ready.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    out = scratch / "model"
    try:
        out.mkdir(parents=True)
        make(scratch, out)
        check_directory(out)
        _flush(out)
        if ready.exists():  # not whole: somebody deleted files in it
            shutil.rmtree(ready)
        os.replace(out, ready)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _lock(ready: Path, say: Say) -> AbstractContextManager[object]:
    lock = FileLock(ready.with_name(f"{ready.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is making {ready.name}; waiting for it")
        return lock.acquire()


def _sweep(models: Path) -> None:
    """Remove what killed processes left: a `.part` whose lock is free."""
    for part in models.glob("*.part"):
        lock = FileLock(part.with_suffix(".lock"))
        with suppress(Timeout, OSError), lock.acquire(timeout=0):  # in use, or another user's
            shutil.rmtree(part, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Bring the files to the disk: a rename may outlive a power cut that their contents do not."""
    mode = (directory / "config.json").stat().st_mode
    for path in (path for path in directory.rglob("*") if path.is_file()):
        path.chmod(mode)  # safetensors writes files that only their owner can read
        with path.open("rb+") as file:
            os.fsync(file.fileno())
