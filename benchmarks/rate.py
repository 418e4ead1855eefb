"""The rate that `train.learning_rate: auto` finds, beside the best of a grid of whole runs.

    make bench-rate
    .venv/bin/python benchmarks/rate.py --only "sft, LoRA" --steps 400

For each setting (model, data, method): a run of so many steps at each rate of a grid, and one at `auto`. Said are the
held-out losses at the end, the best of the grid, what `auto` took, the factor between them, and what the search cost in
steps. The grid is as fine as a factor of 2. Each run is a process of its own; what was found is kept under .rates/ and
not computed again: remove that folder to begin anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doctor import merged
from machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".rates"
NEAR = 2.0
STDLIB = "danlu.data.stdlib:"
BASE: dict[str, Any] = {
    "model": {"name": "smollm2-135m"},
    "data": {"source": STDLIB + "docstring_pairs", "held_out": 64},
    "lora": {"lora_dropout": 0.0},
    "train": {"batch_size": 4, "save_steps": 1000, "num_train_epochs": 100},
    "prove": None,
    "merge": None,
}
TEXTS = {"source": STDLIB + "docstring_texts", "max_length": 128, "held_out": 40}
PAIRS = {"source": STDLIB + "docstring_preferences"}
# Setting -> (what its recipe has otherwise, the middle of its grid).
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "sft, LoRA": ({}, 1e-3),
    "sft, LoRA r 64, kaiming": ({"lora": {"r": 64, "lora_alpha": 128, "init": "kaiming"}}, 2.5e-4),
    "sft, all weights": ({"lora": None}, 1e-4),
    "sft, LoRA, gemma3-270m": ({"model": {"name": "gemma3-270m", "accept_licence": True}}, 1e-3),
    "pretrain, LoRA": ({"kind": "pretrain", "data": TEXTS}, 1e-3),
    "pretrain, 4 layers, random": (
        {"kind": "pretrain", "data": TEXTS, "lora": None,
         "pretrain": {"weights": "random", "config": {"num_hidden_layers": 4}}}, 1e-3,
    ),
    "reward, LoRA": ({"kind": "reward", "data": PAIRS, "reward": {"samples": 8, "max_new_tokens": 8}}, 4e-4),
    "dpo, LoRA": ({"kind": "dpo", "data": PAIRS, "dpo": {"reference": "adapter_off"}}, 4e-5),
}  # fmt: skip
GRID = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)


def recipe_of(setting: str, rate: float | str, steps: int) -> dict[str, Any]:
    """The recipe of one run."""
    return merged(merged(BASE, SETTINGS[setting][0]), {"train": {"learning_rate": rate, "max_steps": steps}})


def found(setting: str, rate: float | str, steps: int) -> dict[str, Any]:
    """What became of a run, computed once."""
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{setting} {rate} {steps}")
    place = KEPT / name
    if not (place / "found.json").exists():
        import yaml

        print(f"{setting}, {rate}", file=sys.stderr, flush=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / "recipe.yaml").write_text(
            yaml.safe_dump({**recipe_of(setting, rate, steps), "name": "run", "runs": str(place)})
        )
        command = [sys.executable, "-c", "from danlu.cli import main; main()", "run", str(place / "recipe.yaml")]
        with (place / "log").open("w") as log:
            code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        (place / "found.json").write_text(json.dumps({"code": code, **read(place / "run")}))
    known: dict[str, Any] = json.loads((place / "found.json").read_text())
    return known


def read(directory: Path) -> dict[str, Any]:
    """The held-out loss at the end, and the search where there was one."""
    from danlu.journal import Journal

    journal = Journal(directory)
    rows = journal.metrics()
    searches = [event for event in journal.events() if event["kind"] == "rate found"]
    last = rows[-1].get("eval_loss", math.inf) if rows else math.inf
    return {"held_out": last, "search": searches[-1] if searches else None}


def row(setting: str, steps: int) -> tuple[str, bool]:
    """(a row of the table, whether it holds)."""
    rates = [float(f"{SETTINGS[setting][1] * by:.3g}") for by in GRID]
    losses: Mapping[float, float] = {rate: found(setting, rate, steps)["held_out"] for rate in rates}
    best = min(losses, key=lambda rate: losses[rate])
    auto = found(setting, "auto", steps)
    search = auto["search"]
    factor = max(search["learning_rate"] / best, best / search["learning_rate"])
    shown = " ".join(f"{losses[rate]:.3f}" for rate in rates)
    line = (
        f"| {setting} | {rates[0]:g} … {rates[-1]:g}: {shown} | {best:g}: {losses[best]:.3f} | "
        f"{search['learning_rate']:g}: {auto['held_out']:.3f} | {factor:.1f} | {search['steps'] / steps:.0%} |"
    )
    return line, factor <= NEAR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=SETTINGS, help="a setting by its name; more than once")
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores of {cpu_name()}; {asked.steps} steps of {BASE['train']['batch_size']} examples\n")
    print("| setting | grid: held-out losses | best | auto | factor | cost |\n|---|---|---|---|---|---|")
    holds = []
    for setting in asked.only or SETTINGS:
        line, held = row(setting, asked.steps)
        holds.append(held)
        print(line, flush=True)
    print(f"\nwithin a factor of {NEAR:g} of the best: {sum(holds)} of {len(holds)}")
    return int(not all(holds))


if __name__ == "__main__":
    sys.exit(main())
