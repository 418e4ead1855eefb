"""The recipe that `danlu plan recipe` makes for this machine, beside a small grid around it.

    make bench-recipe WRITE=--write

Its rate is divided and multiplied by three, its rank by four, its epochs by two: one at a time. Held-out losses at the
end are compared. What was found is kept under .planned/ (kept_runs.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

import guides
import kept_runs
import yaml
from guides import PLAN, ROOT
from kept_runs import merged
from machine import cpu_name

KEPT = ROOT / ".planned"
ROWS, NEAR = 500, 0.05
# What is changed -> the section and key, and the factors.
GRID = {
    "learning_rate": ("train", (1 / 3, 3)),
    "r": ("lora", (1 / 4, 4)),
    "num_train_epochs": ("train", (1 / 2, 2)),
}


def planned() -> dict[str, Any]:
    """The recipe for one-line answers about functions of Python's own library, as a stranger's file."""
    from danlu.data.stdlib import docstring_pairs

    KEPT.mkdir(exist_ok=True)
    rows = KEPT / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in islice(docstring_pairs(), ROWS)), "utf-8")
    command = [sys.executable, "-m", "danlu", "plan", "recipe", str(rows), "--model", "smollm2-135m"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    recipe: dict[str, Any] = yaml.safe_load(told)
    return merged(recipe, {"merge": None, "prove": None, "train": {"save_steps": 10_000}})


def around(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is changed -> the recipe with it; `as planned` among them. alpha stays the rank's multiple."""
    found = {"as planned": dict(recipe)}
    for key, (section, factors) in GRID.items():
        for factor in factors:
            value = recipe[section][key] * factor
            own = {key: float(f"{value:.3g}") if key == "learning_rate" else max(1, round(value))}
            if key == "r":
                own["lora_alpha"] = round(recipe["lora"]["lora_alpha"] * factor)
            found[f"{key}: {own[key]:g}"] = merged(recipe, {section: own})
    return found


HEADS = {"en": "| recipe | held-out loss | beside the best |", "zh": "| 配方 | 验证损失 | 与最好的相比 |"}
PLANNED = {"en": "as planned", "zh": "按计划"}
HOW = {
    "en": "{rows} rows, smollm2-135m, {cores} cores of {kind}; written by `make bench-recipe WRITE=--write`.",
    "zh": "{rows} 行数据，smollm2-135m，{cores} 核（{kind}）；由 `make bench-recipe WRITE=--write` 写入。",
}


def block(losses: Mapping[str, float], language: str) -> str:
    best = min(losses.values())
    lines = [HEADS[language], "|---|---|---|"]
    for name, loss in losses.items():
        shown = PLANNED[language] if name == "as planned" else f"`{name}`"
        lines.append(f"| {shown} | {loss:.3f} | {loss / best - 1:+.1%} |")
    how = HOW[language].format(rows=ROWS, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join([*lines, "", how, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/plan.md and its Chinese twin")
    asked = parser.parse_args()
    losses = {name: kept_runs.found(KEPT, name, recipe)["held_out"] for name, recipe in around(planned()).items()}
    print(block(losses, "en"))
    if asked.write:
        guides.write(PLAN, "plan-recipe", lambda language: block(losses, language))
    return int(losses["as planned"] > min(losses.values()) * (1 + NEAR))


if __name__ == "__main__":
    sys.exit(main())
