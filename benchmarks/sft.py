"""Training speed beside TRL's: same model, data, LoRA, optimizer and schedule, in one run on one machine.

    make bench-sft                       (about 20 minutes on two cores)
    .venv/bin/python benchmarks/sft.py --steps 8 --trial-steps 4

First TRL's settings are tried, each in a process of its own: float32 weights, bfloat16 autocast, bfloat16
weights, small and large batches, batches sorted by length, packing. Its fastest then trains for the full
number of steps, and Danlu with it. Both adapters are measured by the same code on the same held-out
examples. Tokens are those of examples; padding counts for nobody.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guides
from attention import peak_rate
from machine import cpu_name
from training_sides import PEERS, TRL_PYTHON, run_side, speed

from danlu.plan.models import shape_of

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
JOB = {"batch_size": 32, "learning_rate": 3e-4, "weight_decay": 0.01, "warmup_ratio": 0.1, "seed": 42}


def setting(weights: str, size: int, *, autocast: bool = False, sampling: str = "random", packing: bool = False) -> Any:
    return {
        "weights": weights,
        "autocast": autocast,
        "per_device_train_batch_size": size,
        "sampling": sampling,
        "packing": packing,
        "max_length": 512,
        "examples_a_row": 8,
    }


TRL_SETTINGS = {
    "float32, 8 rows": setting("float32", 8),
    "float32, 32 rows": setting("float32", 32),
    "float32, 8 rows, by length": setting("float32", 8, sampling="group_by_length"),
    "float32, packed": setting("float32", 2, packing=True),
    "bf16 autocast, 8 rows": setting("float32", 8, autocast=True),
    "bf16 weights, 8 rows": setting("bfloat16", 8),
    "bf16 weights, 32 rows": setting("bfloat16", 32),
    "bf16 weights, 8 rows, by length": setting("bfloat16", 8, sampling="group_by_length"),
    "bf16 weights, packed": setting("bfloat16", 2, packing=True),
}


def run_trl(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    return run_side([TRL_PYTHON, str(PEERS / "trl_sft.py")], job, scratch)


def run_danlu(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    return run_side([sys.executable, __file__, "--side"], job, scratch)


def danlu_side(job: dict[str, Any]) -> None:
    """Danlu's own training loop, at its defaults, on the job; runs in a process of its own."""
    from danlu.data.chat import Chat
    from danlu.data.formats import read_records
    from danlu.device import peak_memory_bytes, read_device
    from danlu.journal import Journal
    from danlu.model.adapters import attach, save_adapter
    from danlu.model.likelihood import prepare
    from danlu.model.load import load_model, load_tokenizer
    from danlu.model.lora_options import LoraOptions
    from danlu.train.batches import Shuffled
    from danlu.train.loop import Run, TrainOptions, train
    from danlu.train.sft import sft_examples, sft_stage

    device = read_device()
    directory = Path(job["model"])
    base = load_model(directory, device=device, dtype=device.dtype("auto"))
    chat = Chat.of(load_tokenizer(directory), base.generation_config)
    examples = list(sft_examples(read_records(Path(job["data"])), chat, max_length=512))
    model = attach(base, LoraOptions(**job["lora"], init="kaiming"), job["seed"])
    prepare(model)
    options = TrainOptions(
        max_steps=job["steps"],
        save_steps=10_000,
        **{key: job[key] for key in ("batch_size", "learning_rate", "weight_decay", "warmup_ratio")},
    )
    scratch = Path(tempfile.mkdtemp())
    journal = Journal(scratch)
    batches = Shuffled(examples, options.batch_size, job["seed"])
    before = peak_memory_bytes()  # each step sets the mark back
    train(sft_stage(device), model, Run(batches, [], seed=job["seed"], identity={}), options, journal, device)
    save_adapter(model, Path(job["adapter"]))
    rows = journal.metrics()
    result = {name: [row[name] for row in rows] for name in ("seconds", "tokens", "learnt_tokens")}
    result["losses"] = [row["loss"] for row in rows]
    result["peak_memory_bytes"] = max(before, peak_memory_bytes(), *[row["peak_memory_bytes"] for row in rows])
    Path(job["out"]).write_text(json.dumps(result))


def held_out_loss(model: Path, adapter: Path, data: Path) -> float:
    """Loss a learnt token of base + adapter in float32, by the same code for both sides."""
    import torch

    from danlu.data.chat import Chat
    from danlu.data.formats import read_records
    from danlu.device import read_device
    from danlu.evaluate.held_out import example_losses
    from danlu.model.adapter_files import put_adapter
    from danlu.model.likelihood import prepare
    from danlu.model.load import load_model, load_tokenizer
    from danlu.train.sft import sft_examples

    device = read_device()
    base = load_model(model, device=device, dtype=torch.float32)
    chat = Chat.of(load_tokenizer(model), base.generation_config)
    examples = list(sft_examples(read_records(data), chat, max_length=512))
    adapted = put_adapter(base, adapter)
    prepare(adapted)
    losses = example_losses(adapted, examples, device, max_tokens=4096)
    return sum(total for total, _ in losses) / sum(weight for _, weight in losses)


def write_data(folder: Path, train_rows: int, held_out_rows: int) -> tuple[Path, Path]:
    """The quickstart's data, split by module, as two JSONL files."""
    from danlu.data.formats import Skipped
    from danlu.data.source import DataOptions, read

    options = DataOptions(source="danlu.data.stdlib:docstring_pairs", max_examples=train_rows, held_out=held_out_rows)
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    split = read(options, 42, Skipped())
    for path, records in zip(paths, (split.train, split.held_out), strict=True):
        path.write_text("".join(json.dumps({"messages": r.messages}) + "\n" for r in records))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of the full runs")
    parser.add_argument("--trial-steps", type=int, default=4, help="optimizer steps of each TRL setting's trial")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        danlu_side(json.loads(Path(arguments.side).read_text()))
        return
    from danlu.hub import cache_directory, resolve

    model = resolve("smollm2-135m", cache=cache_directory())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        train_data, held_out = write_data(scratch, JOB["batch_size"] * arguments.steps, 256)
        job = {**JOB, "model": str(model), "data": str(train_data), "lora": LORA, "adapter": str(scratch / "trial")}
        trials = {}
        for label, one in TRL_SETTINGS.items():
            trials[label] = run_trl({**job, "steps": arguments.trial_steps, "setting": one}, scratch)
            peak = trials[label]["peak_memory_bytes"] / 1e9
            print(f"TRL trial  {label:34} {speed(trials[label]):7.0f} tokens/s  {peak:5.1f} GB", flush=True)
        best = max(trials, key=lambda label: speed(trials[label]))
        full = {**job, "steps": arguments.steps}
        trl = run_trl({**full, "setting": TRL_SETTINGS[best], "adapter": str(scratch / "trl")}, scratch)
        danlu = run_danlu({**full, "adapter": str(scratch / "danlu")}, scratch)
        losses = {side: held_out_loss(model, scratch / side, held_out) for side in ("trl", "danlu")}
    found = found_of(best, trl, danlu, losses)
    print(block(found, arguments.steps, "en"))
    print(f"products: {found.of_peak:.0%} of what one large product reaches, as if no example shared its beginning")
    for side, result in (("TRL  ", trl), ("Danlu", danlu)):
        print(f"training loss a step, {side}:", " ".join(f"{loss:.2f}" for loss in result["losses"]))
    if arguments.write:
        guides.write(guides.README, "sft", lambda language: block(found, arguments.steps, language))


@dataclass(frozen=True)
class Side:
    """What one of the two did: tokens of examples and learnt ones a second, the most memory, the loss afterwards."""

    rate: float
    learnt_rate: float
    peak_bytes: float
    loss: float


@dataclass(frozen=True)
class Found:
    """of_steps: the ratio between median steps. of_peak: Danlu's products a second beside one large product."""

    setting: str
    trl: Side
    danlu: Side
    of_steps: float
    of_peak: float


def found_of(setting: str, trl: dict[str, Any], danlu: dict[str, Any], losses: dict[str, float]) -> Found:
    share = sum(danlu["learnt_tokens"]) / sum(danlu["tokens"])

    def side(result: dict[str, Any], loss: float) -> Side:
        return Side(speed(result), speed(result) * share, result["peak_memory_bytes"], loss)

    medians = [statistics.median(t / s for t, s in zip(r["tokens"], r["seconds"], strict=True)) for r in (danlu, trl)]
    of_peak = operations(speed(danlu), share) / peak_rate()
    return Found(setting, side(trl, losses["trl"]), side(danlu, losses["danlu"]), medians[0] / medians[1], of_peak)


def operations(rate: float, learnt_share: float) -> float:
    """A second, in products: of each token forward and one way back, in the head of those that are learnt."""
    shape = shape_of("SmolLM2-135M")
    return 4 * rate * (shape.linear + shape.width * shape.vocabulary * learnt_share)


HEADS = {
    "en": "| | tokens/s | learnt tokens/s | peak memory | held-out loss |",
    "zh": "| | token/秒 | 计入损失的 token/秒 | 峰值内存 | 验证集损失 |",
}
SIDES = {
    "en": ("TRL 1.16 SFTTrainer + PEFT, the fastest of {tried} settings: {setting}", "Danlu, its defaults"),
    "zh": ("TRL 1.16 SFTTrainer + PEFT，{tried} 种设置中最快的：{setting}", "Danlu，默认设置"),
}
HOW = {
    "en": """SFT of SmolLM2-135M, LoRA r = 8 on every linear layer, the quickstart's data, {steps} steps of {batch}
examples on each side, in one run on {cores} cores of {kind}: {ratio:.1f} times as fast, {of_steps:.1f} between median
steps. Both adapters are measured by the same code. The examples share a system prompt and an instruction, which Danlu
computes once a forward pass; tokens are those of whole examples on both sides. Written by
`make bench-sft WRITE=--write`.""",
    "zh": """SmolLM2-135M 的 SFT，所有线性层 LoRA r = 8，quickstart 的数据，双方各 {steps} 步、每步 {batch} 条，
同一次运行，{cores} 核（{kind}）：速度为 {ratio:.1f} 倍，按每步中位数为 {of_steps:.1f} 倍。
两个适配器用同一份代码测量。样本共用系统提示词和指令，Danlu 在一次前向中只计算一次；双方都按完整样本计 token。
由 `make bench-sft WRITE=--write` 写入。""",
}


def block(found: Found, steps: int, language: str) -> str:
    names = [one.format(tried=len(TRL_SETTINGS), setting=found.setting) for one in SIDES[language]]
    lines = [HEADS[language], "|---" * 5 + "|"]
    for name, one in zip(names, (found.trl, found.danlu), strict=True):
        cells = (name, f"{one.rate:.0f}", f"{one.learnt_rate:.0f}", f"{one.peak_bytes / 1e9:.2f} GB", f"{one.loss:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    values = {"steps": steps, "batch": JOB["batch_size"], "cores": os.cpu_count(), "kind": cpu_name()}
    values |= {"ratio": found.danlu.rate / found.trl.rate, "of_steps": found.of_steps}
    return "\n".join([*lines, "", HOW[language].format(**values), ""])


if __name__ == "__main__":
    main()
