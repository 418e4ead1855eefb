"""What the doctor heals, and whether it leaves alone what is well.

    make bench-doctor
    .venv/bin/python benchmarks/doctor.py --only "rate x 100" --only "sft, LoRA"

Faults: one run that is well tuned, and the same run with something wrong, without the doctor (`train.doctor=off`) and
with it (`act`). Said are the held-out loss at the end, how far above the well-tuned run's it is, and all optimizer
steps, those of trials and those taken back included, in its steps. Healthy runs of eight kinds: with the doctor they
have to end bit for bit as without. Each run is a process of its own; what was found is kept under .doctor/ and not
computed again: remove that folder to begin anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".doctor"
STEPS = 48
NEAR, LONGER = 0.05, 1.5  # what a healed run may end above the well-tuned one, and how many steps it may take
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
        inject: called in the run's process before it begins.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
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


FAULTS = {
    "rate x 100": Fault(_rate(100)),
    "rate / 100": Fault(_rate(0.01)),
    "rate x 10": Fault(_rate(10)),
    "a gradient that is no number": Fault(inject=_nan_gradient),
    "an exploding batch": Fault(inject=_exploding_batch),
    "plateau: the rate / 50 from step 12 on": Fault(inject=_later(1 / 50)),
    "swinging: the rate x 30 from step 12 on": Fault(inject=_later(30.0)),
    "no warmup, random weights": Fault(),
    "overfitting: 24 examples, 16 times": Fault({"data": {"max_examples": 24}}),
}
STDLIB = "danlu.data.stdlib:"
HEALTHY: dict[str, dict[str, Any]] = {
    "sft, LoRA": {},
    "sft, all weights": {"lora": None, "train": {"learning_rate": 5e-5}},
    "sft, LoRA, gemma3-270m": {
        "model": {"name": "gemma3-270m", "accept_licence": True}, "train": {"learning_rate": 3e-4},
    },
    "sft, cosine, warmup 0": {"train": {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0}},
    "pretrain, LoRA": {
        "kind": "pretrain",
        "data": {"source": STDLIB + "docstring_texts", "max_length": 256, "held_out": 40, "max_examples": None},
        "lora": {"r": 16}, "train": {"learning_rate": 5e-4},
    },
    "pretrain, random weights": {
        "kind": "pretrain",
        "data": {"source": STDLIB + "docstring_texts", "max_length": 256, "held_out": 40, "max_examples": None},
        "pretrain": {"weights": "random", "config": {"num_hidden_layers": 4}},
        "lora": None, "train": {"learning_rate": 1e-3},
    },
    "reward": {
        "kind": "reward", "data": {"source": STDLIB + "docstring_preferences"},
        "reward": {"samples": 8, "max_new_tokens": 8}, "train": {"learning_rate": 5e-4},
    },
    "dpo": {"kind": "dpo", "data": {"source": STDLIB + "docstring_preferences"}, "train": {"learning_rate": 5e-5}},
}  # fmt: skip


def merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `other` has otherwise, section by section."""
    both = {**base}
    for key, value in other.items():
        old = base.get(key)
        both[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return both


def recipe_of(name: str, doctor: str) -> dict[str, Any]:
    """The recipe of a run by its name."""
    given = HEALTHY[name] if name in HEALTHY else FAULTS[name].recipe if name in FAULTS else {}
    recipe = merged(TUNED, given)
    return merged(recipe, {"train": {"doctor": doctor}})


def run_here(name: str, doctor: str, place: Path) -> None:
    """The run, in this process; its figures go to place/found.json."""
    import yaml

    from danlu.cli import call
    from danlu.journal import Journal

    if name in FAULTS:
        FAULTS[name].inject()
    place.mkdir(parents=True, exist_ok=True)
    recipe = {**recipe_of(name, doctor), "name": "run", "runs": str(place)}
    recipe["data"] = {key: value for key, value in recipe["data"].items() if value is not None}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code = call(["run", str(place / "recipe.yaml")])
    journal = Journal(place / "run")
    rows, events = journal.metrics(), [event for event in journal.events() if event.get("by") == "doctor"]
    ends = [event for event in journal.events() if event["kind"] == "held out"]
    found = {
        "code": code,
        "held_out": ends[-1]["eval_loss"] if ends else rows[-1].get("eval_loss", math.nan) if rows else math.nan,
        "steps": len(rows) + sum(spent(event) for event in events),
        "losses": [row["loss"] for row in rows],
        "events": events,
    }
    (place / "found.json").write_text(json.dumps(found))


def spent(event: Mapping[str, Any]) -> int:
    """Steps of trials that did not become the run's own."""
    return int(event["steps"]) * (len(event["trials"]) - 1) if "trials" in event else 0


def found(name: str, doctor: str) -> dict[str, Any]:
    """What became of a run, computed once."""
    place = KEPT / "".join(letter if letter.isalnum() else "-" for letter in f"{name} {doctor}")
    if not (place / "found.json").exists():
        print(f"{name}, doctor={doctor}", flush=True)
        command = [sys.executable, __file__, "--here", name, doctor, str(place)]
        place.mkdir(parents=True, exist_ok=True)
        with (place / "log").open("w") as log:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    known: dict[str, Any] = json.loads((place / "found.json").read_text())
    return known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="a fault or a healthy run by its name; more than once")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        run_here(asked.here[0], asked.here[1], Path(asked.here[2]))
        return 0
    names = asked.only or [*FAULTS, *HEALTHY]
    print(f"{os.cpu_count()} cores of {cpu_name()}\n")
    best, failed = found("well tuned", "off"), []
    print(f"well tuned: {best['held_out']:.3f} after {best['steps']} steps")
    for name in names:
        without, healed = found(name, "off"), found(name, "act")
        treated = [event for event in healed["events"] if event["kind"] in HEALED]
        if name in HEALTHY:
            ok = healed["losses"] == without["losses"] and not treated and healed["held_out"] == without["held_out"]
        else:
            ok = healed["held_out"] <= best["held_out"] * (1 + NEAR) and healed["steps"] <= LONGER * STEPS
        failed += [] if ok else [name]
        print(f"{'ok ' if ok else 'BAD'} {name}: {said(without, best)} | {said(healed, best)} "
              f"{'; '.join(event['kind'] for event in healed['events'])}")  # fmt: skip
    return int(bool(failed))


def said(one: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    if one["code"]:
        return "no end"
    above = one["held_out"] / best["held_out"] - 1
    return f"{one['held_out']:.3f} ({above:+.1%}), {one['steps'] / STEPS:.2f} x the steps"


if __name__ == "__main__":
    sys.exit(main())
