"""Time and memory of QLoRA beside LoRA, on one and the same run, and beside published figures.

    make bench-qlora WRITE=--write       (puts what it found into docs/lora.md and its Chinese twin)
    .venv/bin/python benchmarks/qlora.py --steps 4 --ways "LoRA, bfloat16" "QLoRA, NF4, double"

Each way is `danlu train` in a process of its own: the same examples in the same order, so many optimizer steps, the
first of which is left out. Memory is the most that the process held; loss is that of held-out examples at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import guides
from guides import LORA, ROOT
from machine import cpu_name

FIRST = "LoRA, bfloat16"
PACKED = ("--model.load_in_4bit",)
WAYS: dict[str, tuple[str, ...]] = {
    FIRST: (),
    "QLoRA, NF4, double": PACKED,
    "QLoRA, NF4": (*PACKED, "--model.bnb_4bit_use_double_quant=false"),
    "QLoRA, FP4": (*PACKED, "--model.bnb_4bit_quant_type", "fp4", "--model.bnb_4bit_use_double_quant=false"),
}
HEADS = {
    "en": "| way | tokens/s | time | peak memory | memory | held-out loss |",
    "zh": "| 方式 | token/s | 时间 | 内存峰值 | 内存 | 验证集损失 |",
}
HOW = {
    "en": "SFT of {model} with r = 8 on all linear layers, {steps} steps of {batch} examples, on {cores} cores of\n"
    "{kind}; time and memory beside the first row. Written by `make bench-qlora WRITE=--write`. Published for\n"
    "Llama 2 7B on one A100 (Raschka 2023): memory −33.5 %, time +39.6 % (FP4) and +50 % (NF4).",
    "zh": "{model} 的 SFT，r = 8，全部线性层，{steps} 步、每步 {batch} 条样本，{kind}，{cores} 核；\n"
    "时间与内存相对第一行。由 `make bench-qlora WRITE=--write` 写入。公开数据（Llama 2 7B，一张 A100，\n"
    "Raschka 2023）：内存 −33.5 %，时间 +39.6 %（FP4）、+50 %（NF4）。",
}
BATCH = 8


@dataclass(frozen=True)
class Found:
    """What a way took.

    Attributes:
        speed: tokens a second, of all steps but the first.
        peak_bytes: the most memory held in a step.
        loss: of what is held out, at the end.
    """

    speed: float
    peak_bytes: float
    loss: float


def one_run(model: str, steps: int, flags: Sequence[str]) -> Found:
    """One way, in a process of its own."""
    with tempfile.TemporaryDirectory() as runs:
        command = [
            *(sys.executable, "-c", "from danlu.cli import main; main()", "train", "--name", "qlora", "--runs", runs),
            *("--model.name", model, "--model.dtype", "bfloat16", "--data.source", "danlu.data.stdlib:docstring_pairs"),
            *("--data.held_out", "32", "--prove", "null", "--merge", "null", "--train.max_steps", str(steps)),
            *("--train.batch_size", str(BATCH), "--lora.lora_dropout", "0", *flags),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(flags) or FIRST}: failed\n{(done.stdout + done.stderr)[-2000:]}")
        return read(Path(runs) / "qlora" / "metrics.jsonl")


def read(path: Path) -> Found:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    timed = rows[1:]
    speed = sum(row["tokens"] for row in timed) / sum(row["seconds"] for row in timed)
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    return Found(speed, max(row["peak_memory_bytes"] for row in rows), losses[-1])


def block(found: Mapping[str, Found], model: str, steps: int, language: str) -> str:
    """A row a way; shares beside the first."""
    first = found[FIRST]
    lines = [HEADS[language], f"|{' --- |' * HEADS[language].count('|')}".removesuffix(" --- |")]
    for way, one in found.items():
        time, memory = first.speed / one.speed - 1, one.peak_bytes / first.peak_bytes - 1
        cells = [way, f"{one.speed:.0f}", f"{time:+.0%}", f"{one.peak_bytes / 1e9:.2f} GB", f"{memory:+.0%}"]
        lines.append(f"| {' | '.join([*cells, f'{one.loss:.3f}'])} |".replace("-", "−"))
    how = HOW[language].format(model=model, steps=steps, batch=BATCH, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join(lines) + f"\n\n{how}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--write", action="store_true", help="put what was found into the guide to LoRA")
    chosen = parser.parse_args(arguments)
    found: dict[str, Found] = {}
    for way in dict.fromkeys([FIRST, *chosen.ways]):
        found[way] = one = one_run(chosen.model, chosen.steps, WAYS[way])
        print(f"{way:20} {one.speed:6.0f} tokens/s {one.peak_bytes / 1e9:6.2f} GB  {one.loss:.3f}", flush=True)
    print(block(found, chosen.model, chosen.steps, "en"), end="")
    if chosen.write:
        guides.write(LORA, "qlora", lambda language: block(found, chosen.model, chosen.steps, language))


if __name__ == "__main__":
    main()
