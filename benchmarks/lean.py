"""The lean forward pass beside the plain one: milliseconds of a decoding step of one row, kind by kind, in one run.

    make bench-lean                      (about five minutes on two quiet cores)
    .venv/bin/python benchmarks/lean.py --kinds qwen3_5_text --steps 16

Each kind is a model of random weights in bfloat16, twelve layers of 576 numbers: small enough that what stands
between the products is seen. Both passes run in the same engine core, in turn; a figure is the best of --runs medians.
--write puts the table into docs/models.md and docs/models.zh.md.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from generation_table import put_block
from machine import cpu_name
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from danlu.generate.batch.core import Core
from danlu.generate.batch.scheduler import Request
from danlu.generate.search.strategies import Independent, Limits
from danlu.model.lean.lean import LeanDecoder, plain_decoder

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- bench-lean: written by the command; do not edit -->", "<!-- bench-lean: end -->"
GUIDES = {"en": ROOT / "docs" / "models.md", "zh": ROOT / "docs" / "models.zh.md"}
HEADS = {
    "en": ("kind", "plain, ms", "lean, ms", "plain / lean"),
    "zh": ("类型", "原样，毫秒", "精简，毫秒", "原样 / 精简"),
}
HOW = {
    "en": "One row, bfloat16, 12 layers of 576 numbers, random weights; {cores} cores of {name}. "
    "Command: `make bench-lean`.",
    "zh": "单行、bfloat16、12 层、宽 576、随机权重；{cores} 核 {name}。命令：`make bench-lean`。",
}

PROMPT_TOKENS, SKIPPED_STEPS, BUDGET_BYTES = 64, 4, 2**28
SHAPE: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 576, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1536, "max_position_embeddings": 2048,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 384}
DELTA = {
    "linear_num_key_heads": 8, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 3,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "glm4": {},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | EXPERTS | {"shared_expert_intermediate_size": 384},
    "qwen3_moe": EXPERTS,
    "gpt_oss": {
        "num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 384, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 6,
    },
    "gemma4_text": {
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 3, "global_head_dim": 64,
        "vocab_size_per_layer_input": 32_000, "hidden_size_per_layer_input": 64, "num_kv_shared_layers": 0,
    },
}  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**SHAPE | KINDS[kind])
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def step_milliseconds(core: Core, steps: int) -> float:
    """The median of greedy steps of one row."""
    greedy = Independent(1, Limits(steps, frozenset()), lambda scores, _rows, _made: scores.argmax(-1).tolist())
    core.submit(Request(tuple(range(5, 5 + PROMPT_TOKENS)), greedy, lambda scores: scores))
    seconds: list[float] = []
    while not core.is_idle:
        started = time.perf_counter()
        core.step()
        seconds.append(time.perf_counter() - started)
    return 1e3 * median(seconds[SKIPPED_STEPS:])


def measure(kind: str, steps: int, runs: int) -> tuple[float, float]:
    """(plain, lean) milliseconds a step, in turn."""
    model = model_of(kind)
    plain, lean = Core(model, BUDGET_BYTES), Core(model_of(kind), BUDGET_BYTES, weights_change=False)
    plain.decoder = plain_decoder(model, plain.bank)
    if not isinstance(lean.decoder, LeanDecoder):
        raise SystemExit(f"{kind} has no lean pass here")
    pairs = [(step_milliseconds(plain, steps), step_milliseconds(lean, steps)) for _ in range(runs + 1)][1:]
    return min(one for one, _ in pairs), min(one for _, one in pairs)


def rows_of(found: dict[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    return [(kind, f"{plain:.1f}", f"{lean:.1f}", f"{plain / lean:.2f}") for kind, (plain, lean) in found.items()]


def block(found: dict[str, tuple[float, float]], language: str) -> str:
    head = HEADS[language]
    lines = [head, tuple("---" for _ in head), *rows_of(found)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{HOW[language].format(cores=os.cpu_count(), name=cpu_name())}\n\n{table}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into the guides to models")
    asked = parser.parse_args()
    found = {kind: measure(kind, asked.steps, asked.runs) for kind in asked.kinds}
    table = Table(*HEADS["en"])
    for row in rows_of(found):
        table.add_row(*row)
    Console().print(table)
    if asked.write:
        for language, guide in GUIDES.items():
            guide.write_text(put_block(guide.read_text("utf-8"), block(found, language), START, END), "utf-8")


if __name__ == "__main__":
    main()
