"""What the doctor heals, and whether it leaves alone what is well.

    make bench-doctor
    .venv/bin/python benchmarks/doctor.py --only "rate x 100" --only "sft, LoRA"

Faults: one run that is well tuned, and the same run with something wrong, without the doctor (`train.doctor=off`) and
with it (`act`). Said are the held-out loss at the end, how far above the well-tuned run's it is, and all optimizer
steps, those of trials and those taken back included, as a multiple of its steps. Healthy runs of eight kinds: with the
doctor they have to end bit for bit as without. What was found is kept under .doctor/ (kept_runs.py).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import guides
import kept_runs
from guides import ROOT, TRAINING
from kept_runs import merged
from machine import cpu_name

KEPT = ROOT / ".doctor"
STEPS = 48
NEAR, LONGER = 0.05, 1.5  # what a healed run may end above the well-tuned one, and how many steps it may take
# What changes a run.
HEALED = ("went back", "rate changed", "skipped step", "stopped", "transient", "overflow", "precision")

DATA = {"source": "danlu.data.stdlib:docstring_pairs", "max_examples": 512, "held_out": 64}
TUNED = {
    "model": {"name": "smollm2-135m"},
    "data": DATA,
    "lora": {"lora_dropout": 0.0},
    "train": {"learning_rate": 1e-3, "batch_size": 8, "max_steps": STEPS, "save_steps": 1000},
    "prove": None,
    "merge": None,
}


@dataclass(frozen=True)
class Fault:
    """Something wrong.

    Attributes:
        recipe: what the recipe has otherwise.
        base: which well-tuned run it is held against.
        inject: called in the run's process before it begins.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    base: str = "well tuned"
    inject: Callable[[], None] = lambda: None


def _rate(factor: float) -> Mapping[str, Any]:
    return {"train": {"learning_rate": TUNED["train"]["learning_rate"] * factor}}


def _nan_gradient() -> None:
    """From one step on the plan, whatever is done: the gradient of its examples is no number."""
    from danlu.train.learner import Gradient, Learner

    gradient, seen = Learner.gradient, []

    def broken(self: Any, examples: Any) -> Gradient:
        found = gradient(self, examples)
        key = [example.place for example in examples]
        if len(seen) < STEPS // 2 and key not in seen:
            seen.append(key)
        if len(seen) == STEPS // 2 and key == seen[-1]:
            for weight in self.master.weights.values():
                weight.grad.fill_(math.nan)
            return Gradient(found.loss, math.nan, found.metrics)
        return found

    Learner.gradient = broken


def _exploding_batch() -> None:
    """One step's examples have their answers' tokens drawn at random, and count a thousand times."""
    import random
    from dataclasses import replace

    from danlu.train.batches import Shuffled

    take = Shuffled.take

    def broken(self: Any, step: int) -> Any:
        examples = take(self, step)
        if step != STEPS // 2:
            return examples
        dice = random.Random(1)
        return [
            replace(
                one, token_ids=tuple(dice.randrange(40_000) for _ in one.token_ids), learnt=(True,) * len(one.learnt)
            )
            for one in examples
        ]

    Shuffled.take = broken


def _later(factor: float) -> Callable[[], None]:
    """From a quarter of the run on, the rate is another one than planned."""

    def inject() -> None:
        from danlu.train.loop import _Loop

        planned = _Loop._planned_rate

        def broken(self: Any, position: int) -> float:
            return planned(self, position) * (factor if position >= STEPS // 4 else 1.0)

        _Loop._planned_rate = broken

    return inject


def _overflows() -> None:
    """The loss is scaled by far more than float16 holds, and stays so until somebody halves it."""
    from danlu.train import precision

    precision.FIRST_SCALE = 2.0**32


FAULTS = {
    "rate x 100": Fault(_rate(100)),
    "rate / 100": Fault(_rate(0.01)),
    "rate x 10": Fault(_rate(10)),
    "a gradient that is no number": Fault(inject=_nan_gradient),
    "an exploding batch": Fault(inject=_exploding_batch),
    "plateau: the rate / 50 from step 12 on": Fault(inject=_later(1 / 50)),
    "swinging: the rate x 30 from step 12 on": Fault(inject=_later(30.0)),
    "float16 overflows": Fault({"model": {"dtype": "float16"}}, base="small, float32", inject=_overflows),
    "overfitting: 24 examples, 16 times": Fault(base="24 examples"),
}
STDLIB = "danlu.data.stdlib:"
TEXTS = {"source": STDLIB + "docstring_texts", "max_length": 64, "held_out": 40, "max_examples": None}
RANDOM = {
    "kind": "pretrain", "data": TEXTS, "pretrain": {"weights": "random", "config": {"num_hidden_layers": 4}},
    "lora": None, "train": {"learning_rate": 1e-3},
}  # fmt: skip
# float16 is multiplied slowly on processors: 4 tokens a second with the model of four layers.
SMALL = merged(
    RANDOM,
    {
        "data": {"max_length": 32},
        "pretrain": {
            "config": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        },
    },
)
FEW = {"data": {"max_examples": 24}}
# What faults are built upon, and the runs whose best they are held against: of few examples, one that ends in time.
BASES: dict[str, dict[str, Any]] = {
    "well tuned": {},
    "small, float32": merged(SMALL, {"model": {"dtype": "float32"}}),
    "24 examples": FEW,
    **{f"24 examples, {steps} steps": merged(FEW, {"train": {"max_steps": steps}}) for steps in (6, 12, 24)},
}
WELL_TUNED = {
    "well tuned": ["well tuned"],
    "small, float32": ["small, float32"],
    "24 examples": [f"24 examples, {steps} steps" for steps in (6, 12, 24)],
}
HEALTHY: dict[str, dict[str, Any]] = {
    "sft, LoRA": {},
    "sft, all weights": {"lora": None, "train": {"learning_rate": 5e-5}},
    "sft, LoRA, gemma3-270m": {
        "model": {"name": "gemma3-270m", "accept_licence": True}, "train": {"learning_rate": 3e-4},
    },
    "sft, cosine, warmup 0": {"train": {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0}},
    "pretrain, LoRA": {"kind": "pretrain", "data": TEXTS, "lora": {"r": 16}, "train": {"learning_rate": 5e-4}},
    "pretrain, random weights": RANDOM,
    "reward": {
        "kind": "reward", "data": {"source": STDLIB + "docstring_preferences"},
        "reward": {"samples": 8, "max_new_tokens": 8}, "train": {"learning_rate": 5e-4},
    },
    "dpo": {"kind": "dpo", "data": {"source": STDLIB + "docstring_preferences"}, "train": {"learning_rate": 5e-5}},
}  # fmt: skip


def recipe_of(name: str, doctor: str) -> dict[str, Any]:
    """The recipe of a run by its name."""
    fault = FAULTS.get(name)
    given = (
        BASES[name] if name in BASES else HEALTHY[name] if fault is None else merged(BASES[fault.base], fault.recipe)
    )
    return merged(merged(TUNED, given), {"train": {"doctor": doctor}})


def run_here(name: str, recipe: str) -> int:
    """The run, in this process, with what goes wrong in it."""
    from danlu.cli import call

    if name in FAULTS:
        FAULTS[name].inject()
    return call(["run", recipe])


def found(name: str, doctor: str) -> dict[str, Any]:
    """What became of a run, and how many steps it made, those of trials included."""
    one = kept_runs.found(KEPT, f"{name} {doctor}", recipe_of(name, doctor), (__file__, "--here", name))
    told = [event for event in one["events"] if event.get("by") == "doctor"]
    return {**one, "told": told, "steps": len(one["losses"]) + sum(map(spent, told))}


def spent(event: Mapping[str, Any]) -> int:
    """Steps of trials that did not become the run's own."""
    return int(event["steps"]) * int(event["made"]) if "trials" in event else 0


def base_of(name: str) -> dict[str, Any]:
    """The well-tuned run that a fault is held against: the best of those that its base names."""
    return min((found(one, "off") for one in WELL_TUNED[FAULTS[name].base]), key=lambda one: one["held_out"])


HEADS = {
    "en": (
        "| fault | well tuned | without the doctor | with it | steps | what it did |\n|---|---|---|---|---|---|",
        "| healthy run | held-out loss | the same with it, bit for bit | steps, with its trials |\n|---|---|---|---|",
    ),
    "zh": (
        "| 故障 | 调好的训练 | 不用训练诊断 | 使用训练诊断 | 步数 | 它做了什么 |\n|---|---|---|---|---|---|",
        "| 正常的训练 | 验证损失 | 使用训练诊断后逐位相同 | 步数（含试跑） |\n|---|---|---|---|",
    ),
}
HOW = {
    "en": "Held-out losses at the end; smollm2-135m, {steps} steps of 8 examples, {cores} cores of {kind}; written by\n"
    "`make bench-doctor WRITE=--write`. Steps count trials and what was taken back.",
    "zh": "训练结束时的验证损失；smollm2-135m，{steps} 步，每步 8 个样本，{cores} 核（{kind}）；由\n"
    "`make bench-doctor WRITE=--write` 写入。步数包含试跑和被撤回的步。",
}
ANSWERS = {"en": ("yes", "no"), "zh": ("是", "否")}


def row_of_fault(name: str) -> tuple[str, bool]:
    """(a row of the table, whether it holds)."""
    best, without, healed = base_of(name), found(name, "off"), found(name, "act")
    times = healed["steps"] / STEPS
    did = "; ".join(told(event) for event in healed["told"])
    ends = f"{best['held_out']:.3f} | {said(without, best)} | {said(healed, best)}"
    holds = healed["held_out"] <= best["held_out"] * (1 + NEAR) and times <= LONGER
    return f"| {name} | {ends} | {times:.2f} x | {did} |", holds


def is_left_alone(name: str) -> bool:
    """Whether a healthy run goes on as without the doctor, bit for bit."""
    without, watched = found(name, "off"), found(name, "act")
    treated = any(event["kind"] in HEALED for event in watched["told"])
    return not treated and watched["losses"] == without["losses"] and watched["held_out"] == without["held_out"]


def row_of_healthy(name: str, language: str) -> str:
    """A row of the other table."""
    without, watched = found(name, "off"), found(name, "act")
    answer = ANSWERS[language][0 if is_left_alone(name) else 1]
    return f"| {name} | {without['held_out']:.3f} | {answer} | {watched['steps'] / without['steps']:.2f} x |"


def faults(names: Sequence[str], language: str) -> str:
    """What became of them."""
    return "\n".join([HEADS[language][0], *(row_of_fault(name)[0] for name in names), "", how(language)])


def healthy(names: Sequence[str], language: str) -> str:
    """What became of those."""
    return "\n".join([HEADS[language][1], *(row_of_healthy(name, language) for name in names), "", how(language)])


def how(language: str) -> str:
    return HOW[language].format(steps=STEPS, cores=os.cpu_count(), kind=cpu_name()) + "\n"


TABLES = {"doctor": (FAULTS, faults), "doctor-healthy": (HEALTHY, healthy)}  # its block in the guides -> what it shows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="a fault or a healthy run by its name; more than once")
    parser.add_argument("--write", action="store_true", help="put what was asked into the guides to training")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        return run_here(*asked.here)
    names = asked.only or [*FAULTS, *HEALTHY]
    failed = [name for name in names if not (row_of_fault(name)[1] if name in FAULTS else is_left_alone(name))]
    shown = {block: [name for name in names if name in some] for block, (some, _) in TABLES.items()}
    for block, some in shown.items():
        print(TABLES[block][1](some, "en") if some else "")
    print(f"not within {NEAR:.0%} and {LONGER:g} x the steps, or not left alone: {', '.join(failed) or 'none'}")
    if asked.write:
        for block, some in shown.items():
            if some:
                guides.write(TRAINING, block, partial(TABLES[block][1], some))
    return int(bool(failed))


def said(one: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    if one["code"]:
        return "no end"
    return f"{one['held_out']:.3f} ({one['held_out'] / best['held_out'] - 1:+.1%})"


def told(event: Mapping[str, Any]) -> str:
    factor = f" to {event['factor']:.3g} x" if "factor" in event else ""
    return f"{event['kind']}{factor}, step {event['step']}"


if __name__ == "__main__":
    sys.exit(main())
