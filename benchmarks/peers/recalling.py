"""What the sides of benchmarks/recall.py share: what is asked on standard input, times, memory, sizes."""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def request() -> dict[str, Any]:
    """table, folder, questions (name -> condition), repeats."""
    asked: dict[str, Any] = json.load(sys.stdin)
    return asked


def best(work: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Seconds of the fastest, after one that is not counted; and what it gave."""
    result = work()
    seconds = []
    for _ in range(repeats):
        begun = clock()
        result = work()
        seconds.append(clock() - begun)
    return min(seconds), result


def once(work: Callable[[], Any]) -> float:
    """Seconds that it takes, at once."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def forget(folder: Path) -> None:
    """Drop what memory keeps of the files; nobody may have them mapped."""
    gc.collect()
    for path in folder.rglob("*"):
        if path.is_file():
            number = os.open(path, os.O_RDONLY)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return (
        path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    )
