"""The rate that `train.learning_rate: auto` finds, beside the best of a grid of whole runs.

    make bench-rate
    .venv/bin/python benchmarks/rate.py --only "sft, LoRA" --steps 400

For each setting (model, data, method): a run of so many steps at each rate of a grid, and one at `auto`. Said are the
held-out losses at the end, the best of the grid, what `auto` took, the factor between them, and what the search cost in
steps. The grid is as fine as a factor of 2, and goes on until both its ends are worse. What was found is kept under
.rates/ (kept_runs.py).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import guides
import kept_runs
from guides import ROOT, TRAINING
from kept_runs import merged
from machine import cpu_name

KEPT = ROOT / ".rates"
NEAR = 2.0
STDLIB = "danlu.data.stdlib:"
BASE: dict[str, Any] = {
    "model": {"name": "smollm2-135m"},
    "data": {"source": STDLIB + "docstring_pairs", "held_out": 64},
    "lora": {"lora_dropout": 0.0},
    "train": {"batch_size": 2, "save_steps": 1000, "num_train_epochs": 100},
    "prove": None,
    "merge": None,
}
TEXTS = {"source": STDLIB + "docstring_texts", "max_length": 48, "held_out": 60}
PAIRS = {"source": STDLIB + "docstring_preferences"}
# Setting -> (what its recipe has otherwise, the middle of its grid).
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "sft, LoRA": ({}, 1e-3),
    "pretrain, 4 layers, random": (
        {"kind": "pretrain", "data": TEXTS, "lora": None,
         "pretrain": {"weights": "random", "config": {"num_hidden_layers": 4}}}, 1e-3,
    ),
    "sft, LoRA r 64, kaiming": ({"lora": {"r": 64, "lora_alpha": 128, "init": "kaiming"}}, 2.5e-4),
    "reward, LoRA": ({"kind": "reward", "data": PAIRS, "reward": {"samples": 8, "max_new_tokens": 8}}, 4e-4),
    "pretrain, LoRA": ({"kind": "pretrain", "data": TEXTS}, 1e-3),
    "sft, all weights": ({"lora": None}, 1e-4),
    "dpo, LoRA": ({"kind": "dpo", "data": PAIRS, "dpo": {"reference": "adapter_off"}}, 4e-5),
    "sft, LoRA, gemma3-270m": ({"model": {"name": "gemma3-270m", "accept_licence": True}}, 1e-3),
}  # fmt: skip


def recipe_of(setting: str, rate: float | str, steps: int) -> dict[str, Any]:
    """The recipe of one run."""
    return merged(merged(BASE, SETTINGS[setting][0]), {"train": {"learning_rate": rate, "max_steps": steps}})


def found(setting: str, rate: float | str, steps: int) -> dict[str, Any]:
    """What became of a run."""
    found: dict[str, Any] = kept_runs.found(KEPT, f"{setting} {rate} {steps}", recipe_of(setting, rate, steps))
    return found


def grid(setting: str, steps: int) -> dict[float, float]:
    """Rate -> held-out loss of a whole run, in twos around the setting's middle, until both ends are worse."""
    losses: dict[int, float] = {}

    def rate(rung: int) -> float:
        return float(f"{SETTINGS[setting][1] * math.pow(2.0, rung):.3g}")

    waiting = [-1, 0, 1]
    while waiting:
        losses |= {rung: found(setting, rate(rung), steps)["held_out"] for rung in waiting}
        best = min(losses, key=lambda rung: losses[rung])
        waiting = [rung for rung in (best - 1, best + 1) if rung not in losses]
    return {rate(rung): loss for rung, loss in losses.items()}


HEADS = {
    "en": "| setting | rates and their held-out losses | the best | found | apart | cost |\n|---|---|---|---|---|---|",
    "zh": "| 设置 | 各学习率及其验证损失 | 最好 | 自动选择 | 相差倍数 | 开销 |\n|---|---|---|---|---|---|",
}
HOW = {
    "en": "{steps} steps of {batch} examples, {cores} cores of {kind}; written by `make bench-rate WRITE=--write`.",
    "zh": "{steps} 步，每步 {batch} 个样本，{cores} 核（{kind}）；由 `make bench-rate WRITE=--write` 写入。",
}


def row(setting: str, steps: int) -> tuple[str, bool]:
    """(a row of the table, whether it holds)."""
    losses = grid(setting, steps)
    best = min(losses, key=lambda rate: losses[rate])
    auto = found(setting, "auto", steps)
    search = next(event for event in auto["events"] if event["kind"] == "rate found")
    factor = max(search["learning_rate"] / best, best / search["learning_rate"])
    shown = ", ".join(f"{rate:g}: {losses[rate]:.3f}" for rate in sorted(losses))
    line = (
        f"| {setting} | {shown} | {best:g}: {losses[best]:.3f} | "
        f"{search['learning_rate']:g}: {auto['held_out']:.3f} | {factor:.1f} x | {search['steps'] / steps:.0%} |"
    )
    return line, factor <= NEAR


def block(settings: Sequence[str], steps: int, language: str) -> str:
    """The table."""
    batch = BASE["train"]["batch_size"]
    how = HOW[language].format(steps=steps, batch=batch, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join([HEADS[language], *(row(setting, steps)[0] for setting in settings)]) + f"\n\n{how}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=SETTINGS, help="a setting by its name; more than once")
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--write", action="store_true", help="put the table into the guides to training")
    asked = parser.parse_args()
    settings = asked.only or list(SETTINGS)
    holds = [row(setting, asked.steps)[1] for setting in settings]
    print(block(settings, asked.steps, "en"))
    print(f"within a factor of {NEAR:g} of the best: {sum(holds)} of {len(holds)}")
    if asked.write:
        guides.write(TRAINING, "rate", lambda language: block(settings, asked.steps, language))
    return int(not all(holds))


if __name__ == "__main__":
    sys.exit(main())
