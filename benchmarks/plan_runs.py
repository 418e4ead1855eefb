"""Runs of Danlu on this machine, and what each held: the training of two steps, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from plan_fit import OWN
from plan_rows import Row

from danlu.plan.memory import Job
from danlu.plan.models import shape_of
from danlu.plan.programs import DANLU_CPU
from danlu.plan.whole import keeps_no_scores

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "Danlu"
AGAIN = 3  # times, of which the middle one counts: how small blocks come to lie between large ones is chance


@dataclass(frozen=True)
class Asked:
    """One run: texts of so many tokens, as many as make one pass."""

    model: str
    kind: str
    method: str
    texts: int
    length: int
    checkpointing: bool = False

    @property
    def name(self) -> str:
        twice = ", checkpointing" if self.checkpointing else ""
        return f"{self.model} {self.kind}, {self.method}{twice}, {self.texts} x {self.length}"


def asked() -> Iterator[Asked]:
    """All of them, the smaller model first."""
    small, large = "smollm2-135m", "gemma3-270m"
    for texts, length in ((1, 512), (8, 128), (8, 256), (1, 2048), (2, 1024)):
        yield Asked(small, "sft", "lora", texts, length)
    yield Asked(small, "sft", "lora", 1, 2048, True)
    yield Asked(small, "sft", "lora", 8, 256, True)
    yield Asked(small, "sft", "full", 1, 512)
    yield Asked(small, "sft", "full", 4, 512)
    yield Asked(small, "sft", "full", 1, 2048, True)
    for method in ("lora", "full"):
        for length, twice in ((1024, False), (4096, False), (512, True), (1024, True), (4096, True)):
            yield Asked(small, "sft", method, 1, length, twice)
    yield Asked(small, "pretrain", "full", 2, 512)
    yield Asked(small, "pretrain", "lora", 4, 512)
    for model in (small, large):
        yield Asked(model, "dpo", "lora", 4, 256)
        yield Asked(model, "reward", "lora", 4, 256)
    for texts, length in ((1, 512), (8, 128), (2, 1024)):
        yield Asked(large, "sft", "lora", texts, length)
    yield Asked(large, "sft", "lora", 1, 2048, True)
    yield Asked(large, "sft", "full", 1, 512)
    yield Asked(large, "pretrain", "full", 2, 256)


def measured(one: Asked) -> Row:
    """Run it. Raises SystemExit with what it said where it fails."""
    plans = sorted((_run(one) for _ in range(AGAIN)), key=lambda plan: float(plan["measured"]))
    plan = plans[AGAIN // 2]
    return Row(SOURCE, one.name, job(one, plan), OWN, "resident", float(plan["measured"]), 0.5e6)


def _run(one: Asked) -> dict[str, Any]:
    """Its plan of memory, with what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _write(place / "rows.jsonl", one)
        (place / "run.yaml").write_text(yaml.safe_dump(_recipe(one, place)), "utf-8")
        command = [sys.executable, "-c", "from danlu.cli import main; main()", "run", str(place / "run.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"{one.name}: failed\n{(done.stdout + done.stderr)[-2000:]}")
        found: dict[str, Any] = json.loads((place / "run" / "results.json").read_text("utf-8"))["memory_plan"]
    return found


def job(one: Asked, plan: dict[str, Any]) -> Job:
    """What the run foresaw, from what it kept of it."""
    base = Job(shape_of(one.model), "full" if one.method == "full" else "lora", program=DANLU_CPU)
    of_passes = {"batch": plan["batch"], "length": plan["length"], "adds_up": plan["adds_up"]}
    flash, has_logits = keeps_no_scores("cpu", plan["length"]), one.kind != "reward"
    return replace(base, **of_passes, flash=flash, checkpointing=one.checkpointing, has_logits=has_logits)


def _write(path: Path, one: Asked) -> None:
    """Rows that are cut to the length that is wanted, each different; enough for two whole steps."""
    text = Path(subprocess.__file__).read_text("utf-8")
    parts = [text[at * 997 : at * 997 + 8 * one.length + 64] for at in range(2 * max(one.texts, 8))]
    with path.open("w", encoding="utf-8") as file:
        for at, part in enumerate(parts):
            row: dict[str, Any] = {"text": part}
            if one.kind in ("dpo", "reward"):
                half = one.length * 3 // 2
                row = {"prompt": f"{at}: continue", "chosen": part[:half], "rejected": part[half : 2 * half]}
            print(json.dumps(row), file=file)


def _recipe(one: Asked, place: Path) -> dict[str, Any]:
    pairs = one.kind in ("dpo", "reward")
    most = one.texts * one.length * (2 if pairs else 1)
    train = {"max_steps": 2, "batch_size": one.texts, "micro_batch_tokens": most,
             "gradient_checkpointing": one.checkpointing, "warmup_ratio": 0}  # fmt: skip
    recipe: dict[str, Any] = {
        "kind": one.kind, "name": "run", "runs": str(place), "model": {"name": one.model, "accept_licence": True},
        "data": {"path": str(place / "rows.jsonl"), "held_out": 0, "max_length": one.length, "too_long": "truncate"},
        "train": train, "prove": None,
    }  # fmt: skip
    if one.kind == "pretrain":
        recipe["data"]["too_long"] = "window"
    if pairs:  # which are never cut
        recipe["data"] |= {"max_length": 4 * one.length, "too_long": "skip"}
    if one.kind in ("sft", "dpo"):
        recipe["merge"] = None
    recipe["lora"] = None if one.method == "full" else {}
    if one.kind == "reward":
        recipe["reward"] = {"samples": 8, "max_new_tokens": 4}
    return recipe
