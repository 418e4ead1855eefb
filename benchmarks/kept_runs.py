"""Runs of Danlu whose figures are kept: what was computed once is not computed again.

Each run is a process of its own in a folder of its own under a benchmark's folder; remove that to begin anew.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from guides import ROOT


def merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `other` has otherwise, section by section."""
    both = {**base}
    for key, value in other.items():
        old = base.get(key)
        both[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return both


def found(folder: Path, name: str, recipe: Mapping[str, Any], command: Sequence[str] = ("-m", "danlu", "run")) -> Any:
    """What became of the run: its exit code, the held-out loss at its end and at every look, losses, and events.

    A key of `data` that is None is left out.

    Args:
        command: what Python is called with, before the recipe's path.
    """
    place = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    if not (place / "found.json").exists():
        print(name, file=sys.stderr, flush=True)
        place.mkdir(parents=True, exist_ok=True)
        own = {**recipe, "name": "run", "runs": str(place)}
        own["data"] = {key: value for key, value in own["data"].items() if value is not None}
        (place / "recipe.yaml").write_text(yaml.safe_dump(own))
        with (place / "log").open("w") as log:
            called = [sys.executable, *command, str(place / "recipe.yaml")]
            code = subprocess.run(called, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        (place / "found.json").write_text(json.dumps({"code": code, **_figures(place / "run")}))
    return json.loads((place / "found.json").read_text())


def _figures(directory: Path) -> dict[str, Any]:
    from danlu.journal import Journal

    journal = Journal(directory)
    rows, events = journal.metrics(), journal.events()
    looks = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    looks += [(event["step"], event["eval_loss"]) for event in events if event["kind"] == "held out"]
    last = float(looks[-1][1]) if looks else math.inf
    return {
        "held_out": last if math.isfinite(last) else math.inf,
        "looks": looks,
        "losses": [row["loss"] for row in rows],
        "events": events,
    }
