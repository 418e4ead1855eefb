"""What the control groups that this process is in (a container's limits) leave it of memory and cores; Linux only."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_left_bytes() -> int | None:
    """Memory that its groups still grant; None where they set no limit."""
    left = []
    for group in _groups("memory"):
        limit, used = _number_in(group / "memory.max"), _number_in(group / "memory.current")
        if limit is None:  # the older interface
            limit, used = _number_in(group / "memory.limit_in_bytes"), _number_in(group / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            left.append(max(0, limit - used + _file_pages(group)))
    return min(left, default=None)


def cores() -> int:
    """Cores that this process may keep busy: those it may run on, or the fewer whose time its groups grant it.

    A container's `--cpus 2` hides no core. More threads than that are stopped for most of each tenth of a second, and
    those of a product wait for each other.
    """
    return max(1, min(len(own_cores()), int(_granted())))


def own_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@cache  # asked for each question of recall's
def _granted() -> float:
    """Seconds of cores in a second that the groups of this process grant it; 1e9 where they set no limit."""
    return min((time for group in _groups("cpu") if (time := _time_of(group)) is not None), default=1e9)


def threads_given() -> int | None:
    """What OMP_NUM_THREADS says; None where it says no number."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(given) if given.isdigit() and int(given) > 0 else None


def _time_of(group: Path) -> float | None:
    """Seconds of cores in a second that a group grants; None where it sets no limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):  # the older interface
        quota, period = (_text_of(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _groups(controller: str) -> list[Path]:
    """Folders of the groups of this process that may limit it, with all that hold them."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _ROOT / controller if controllers else _ROOT
        own = top / path.lstrip("/")
        found += [place for place in (own, *own.parents) if place == top or top in place.parents]
    return found


def _number_in(path: Path) -> int | None:
    text = _text_of(path)
    return int(text) if text.isdigit() else None  # "max" is no limit


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _file_pages(group: Path) -> int:
    """Bytes of files that the group counts as used and gives back when memory is wanted."""
    figures = dict(line.split(" ", 1) for line in _text_of(group / "memory.stat").splitlines() if " " in line)
    return int(figures.get("inactive_file", figures.get("total_inactive_file", 0)))
