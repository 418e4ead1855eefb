"""What a benchmark ran on, for the line under its table."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """As Linux has it, on x86; elsewhere what the system says, if anything."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "an unnamed CPU")
