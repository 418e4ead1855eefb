"""How benchmarks of training run a side, and what they take from it: shared by sft.py and train.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks/peers"
TRL_PYTHON = str(ROOT / ".peers/trl/bin/python")
WARMUP_STEPS = 2  # left out of every speed, on both sides


class Refused(Exception):
    """A side ended with an error; the message is the end of what it said."""


def run_side(command: list[str], job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Run one side in its own process and return what it measured. Raises Refused."""
    path = scratch / "job.json"
    out = scratch / "out.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps({**job, "out": str(out), "scratch": str(scratch / "trainer")}))
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def speed(result: dict[str, Any], counted: str = "tokens") -> float:
    """So many a second over all steps but the first."""
    return sum(result[counted][WARMUP_STEPS:]) / sum(result["seconds"][WARMUP_STEPS:])
