"""What a model forgets of a first task over a second one, with and without some of the first one's data.

    make bench-replay WRITE=--write      (puts what it found into docs/lora.md and its Chinese twin)
    .venv/bin/python benchmarks/replay.py --steps 20 --shares 0 0.2

The first task: a Python function's signature, answered with the first line of its docstring; its adapter is merged. The
second, from the merged model: the same signatures, answered with the name of their module. Measured is the loss a
learnt token on held-out modules of both tasks, and on general text (this project's English guides), which nobody
trained on: as PEFT's comparison of methods does, after the second training minus before it. Each run is `danlu train`
in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import guides
from guides import LORA, ROOT
from machine import cpu_name

SEED, BATCH, RATE, MOST_TOKENS = 1, 8, "1e-3", 512
TASKS = ("first", "second", "general")
HEADS = {
    "en": "| | first task | second task | general text |",
    "zh": "| | 第一个任务 | 第二个任务 | 一般文本 |",
}
ROWS = {
    "en": ("base model", "after the first task, merged", "change over the second task, replay {share:.0%}"),
    "zh": ("基座模型", "第一个任务之后（已合并）", "学第二个任务的变化，回放 {share:.0%}"),
}
HOW = {
    "en": "Loss a learnt token on held-out data; {model}, LoRA r = 8, {steps} steps of {batch} examples a task, on "
    "{cores} cores\nof {kind}; written by `make bench-replay WRITE=--write`.",
    "zh": "验证集上每个计入损失的 token 的损失；{model}，LoRA r = 8，每个任务 {steps} 步、每步 {batch} 条样本，\n"
    "{kind}，{cores} 核；由 `make bench-replay WRITE=--write` 写入。",
}
Losses = Mapping[str, float]


def write_tasks(folder: Path, held_out: int) -> None:
    """first.jsonl, second.jsonl and general.jsonl, and of the tasks aside-….jsonl with whole modules."""
    from danlu.data.stdlib import docstring_pairs

    rows = list(docstring_pairs())
    modules = sorted({row["group"] for row in rows})
    random.Random(SEED).shuffle(modules)
    aside: set[str] = set()
    for module in modules:
        if sum(row["group"] in aside for row in rows) < held_out:
            aside.add(module)
    for task in ("first", "second"):
        made = [row if task == "first" else asking_for_module(row) for row in rows]
        write(folder / f"{task}.jsonl", (row for row in made if row["group"] not in aside))
        write(folder / f"aside-{task}.jsonl", [row for row in made if row["group"] in aside][:held_out])
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")) if ".zh" not in path.name]
    write(folder / "aside-general.jsonl", ({"text": text[:1500]} for text in texts))


def asking_for_module(row: Mapping[str, Any]) -> dict[str, Any]:
    """The second task's row from the first one's: the same signature, another question."""
    *asked, _ = row["messages"]
    signature = asked[-1]["content"].split("\n\n")[-1]
    question = {"role": "user", "content": f"Name the module that this function belongs to.\n\n{signature}"}
    return {"messages": [question, {"role": "assistant", "content": row["group"]}], "group": row["group"]}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def trained(folder: Path, name: str, model: str, task: str, steps: int, share: float = 0.0) -> str:
    """The merged model after a task."""
    replay = ("--data.replay.path", str(folder / "first.jsonl"), "--data.replay.share", str(share)) if share else ()
    command = [
        *(sys.executable, "-c", "from danlu.cli import main; main()", "train", "--name", name, "--runs", str(folder)),
        *("--model.name", model, "--data.path", str(folder / f"{task}.jsonl"), "--seed", str(SEED), "--prove", "null"),
        *("--data.held_out_path", str(folder / f"aside-{task}.jsonl"), "--train.max_steps", str(steps), *replay),
        *("--train.batch_size", str(BATCH), "--train.learning_rate", RATE, "--train.num_train_epochs", "100"),
        *("--train.save_steps", "100000", "--merge.max_new_tokens", "8", "--merge.prompts", "4"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: failed\n{(done.stdout + done.stderr)[-2000:]}")
    return str(folder / name / "merged")


def measured(folder: Path, model: str) -> dict[str, float]:
    """Loss a learnt token on each held-out file."""
    command = [sys.executable, __file__, "--measure", model, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{model}: could not be measured\n{done.stderr[-2000:]}")
    losses: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return losses


def measure(folder: Path, name: str) -> dict[str, float]:
    from danlu.data.chat import Chat
    from danlu.data.formats import read_records
    from danlu.device import read_device
    from danlu.evaluate.held_out import example_losses
    from danlu.hub import cache_directory
    from danlu.model.likelihood import prepare
    from danlu.model.named import ModelOptions, load
    from danlu.train.sft import sft_examples

    device = read_device()
    loaded = load(ModelOptions(name=name), device, cache=cache_directory())
    prepare(loaded.model)
    chat, found = Chat.of(loaded.tokenizer, loaded.model.generation_config), {}
    for task in TASKS:
        records = read_records(folder / f"aside-{task}.jsonl")
        examples = list(sft_examples(records, chat, max_length=MOST_TOKENS, too_long="truncate"))
        losses = example_losses(loaded.model, examples, device, 2048)
        found[task] = sum(total for total, _ in losses) / sum(weight for _, weight in losses)
    return found


def block(base: Losses, first: Losses, after: Mapping[float, Losses], model: str, steps: int, language: str) -> str:
    """Losses before, and by how much each second training changed them."""
    of_base, of_first, of_share = ROWS[language]
    lines = [HEADS[language], "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(f'{losses[task]:.3f}' for task in TASKS)} |" for name, losses in
              ((of_base, base), (of_first, first))]  # fmt: skip
    for share, losses in after.items():
        cells = [f"{losses[task] - first[task]:+.3f}".replace("-", "−") for task in TASKS]
        lines.append(f"| {of_share.format(share=share)} | {' | '.join(cells)} |")
    how = HOW[language].format(model=model, steps=steps, batch=BATCH, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join(lines) + f"\n\n{how}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--held_out", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--write", action="store_true", help="put what was found into the guide to LoRA")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(measure(chosen.folder, chosen.measure)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tasks(folder, chosen.held_out)
        base = measured(folder, chosen.model)
        begun = trained(folder, "first", chosen.model, "first", chosen.steps)
        first, after = measured(folder, begun), {}
        print(f"base {base}\nfirst {first}", flush=True)
        for share in chosen.shares:
            made = trained(folder, f"second-{share:g}", begun, "second", chosen.steps, share)
            after[share] = measured(folder, made)
            print(f"second, replay {share:g}: {after[share]}", flush=True)
    print(block(base, first, after, chosen.model, chosen.steps, "en"), end="")
    if chosen.write:
        guides.write(LORA, "replay", lambda lang: block(base, first, after, chosen.model, chosen.steps, lang))


if __name__ == "__main__":
    main()
