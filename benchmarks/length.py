"""Memory and speed of training on one text that grows, with and without gradient checkpointing.

    make bench-length WRITE=--write       (puts what it found into docs/training.md and its Chinese twin)
    .venv/bin/python benchmarks/length.py --lengths 512 2048 --ways "LoRA"

Each cell is `danlu train` in a process of its own, two optimizer steps on one text of so many tokens: what is said is
the second, by when the optimizer's state is there. Nothing is cut: the whole text is one forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import guides
from guides import ROOT, TRAINING
from machine import cpu_name

WAYS = {
    "LoRA": [],
    "LoRA, gradient_checkpointing": ["--train.gradient_checkpointing"],
    "all weights": ["--lora", "null"],
    "all weights, gradient_checkpointing": ["--lora", "null", "--train.gradient_checkpointing"],
}
IN_CHINESE = {
    "LoRA": "LoRA",
    "LoRA, gradient_checkpointing": "LoRA + gradient_checkpointing",
    "all weights": "全参数",
    "all weights, gradient_checkpointing": "全参数 + gradient_checkpointing",
}
HEADS = {"en": "tokens of one text", "zh": "一条文本的 token 数"}
HOW = {
    "en": "Peak memory in GB, and tokens/s, of one optimizer step; {model}, bfloat16, on {cores} cores of {kind};\n"
    "written by `make bench-length WRITE=--write`.",
    "zh": "一个优化步的内存峰值（GB）与 token/s；{model}，bfloat16，{kind}，{cores} 核；\n"
    "由 `make bench-length WRITE=--write` 写入。",
}
Cells = Mapping[tuple[str, int], tuple[float, float]]


def one_run(model: str, text: Path, length: int, flags: Sequence[str]) -> tuple[float, float]:
    """(peak gigabytes, tokens a second) of the second step."""
    with tempfile.TemporaryDirectory() as runs:
        command = [
            *(sys.executable, "-c", "from danlu.cli import main; main()", "train", "--name", "length", "--runs", runs),
            *("--model.name", model, "--data.path", str(text), "--data.held_out", "0", "--prove", "null"),
            *("--merge", "null", "--data.max_length", str(length), "--data.too_long", "truncate"),
            *("--train.max_steps", "2", "--train.batch_size", "1", "--train.micro_batch_tokens", str(length), *flags),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(
                f"{length} tokens, {' '.join(flags) or 'LoRA'}: failed\n{(done.stdout + done.stderr)[-2000:]}"
            )
        rows = (Path(runs) / "length" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(rows[-1])
    if row["tokens"] != length:
        raise SystemExit(f"a step of {row['tokens']} tokens; {length} were asked for")
    return row["peak_memory_bytes"] / 1e9, row["tokens"] / row["seconds"]


def block(found: Cells, model: str, language: str) -> str:
    """A row a length, a column a way."""
    ways, lengths = (list(dict.fromkeys(key[at] for key in found)) for at in (0, 1))
    names = [IN_CHINESE[way] if language == "zh" else way for way in ways]
    lines = [f"| {' | '.join([HEADS[language], *names])} |", f"|{' --- |' * (1 + len(ways))}"]
    for length in lengths:
        cells = [f"{found[way, length][0]:.2f} GB, {found[way, length][1]:.0f}/s" for way in ways]
        lines.append(f"| {' | '.join([f'{length:,}', *cells])} |")
    how = HOW[language].format(model=model, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join(lines) + f"\n\n{how}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--write", action="store_true", help="put what was found into the guide to training")
    chosen = parser.parse_args(arguments)
    found: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.jsonl"
        text.write_text(json.dumps({"text": Path(argparse.__file__).read_text("utf-8")}) + "\n", "utf-8")
        for length in chosen.lengths:
            for way in chosen.ways:
                found[way, length] = peak, speed = one_run(chosen.model, text, length, WAYS[way])
                print(f"{length:6} tokens  {way:36} {peak:6.2f} GB  {speed:6.0f} tokens/s", flush=True)
    print(block(found, chosen.model, "en"), end="")
    if chosen.write:
        guides.write(TRAINING, "length", lambda language: block(found, chosen.model, language))


if __name__ == "__main__":
    main()
