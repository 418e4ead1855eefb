"""A peer's side of a benchmark: a script of peers/ in an environment of its own, with a job on its standard input."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "peers"


def run_peer(
    python: Path, script: str, job: Mapping[str, Any], *, holds: str = "", timeout: float | None = None
) -> str:
    """What it printed.

    Args:
        holds: what it prints where all went well.
        timeout: in seconds.

    Raises RuntimeError with its last words, subprocess.TimeoutExpired, and OSError where there is no such program.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [python, SCRIPTS / script], input=json.dumps(job), capture_output=True, text=True, timeout=timeout,
        env=environment,
    )  # fmt: skip
    if run.returncode or holds not in run.stdout:
        raise RuntimeError(last_words(run.stderr))
    return run.stdout


def last_words(text: str) -> str:
    """The last line that names an error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0]]
    return (named or lines or ["it said nothing"])[-1][:160]
