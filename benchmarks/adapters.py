"""Speed of answers with LoRA adapters of their own, beside the model alone, PEFT's mixed batches and vLLM.

    make bench-adapters WRITE=--write     (puts what it found into docs/lora.md and its Chinese twin; an hour)
    .venv/bin/python benchmarks/adapters.py --runs 1 --new_tokens 8

Adapters of rank 8 on every linear layer, of random numbers; each prompt asks for one of them, in turn. Sides, clock and
prompts are those of benchmarks/generate.py. A peer that refuses a work says so in its cell.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import guides
import torch
from generate import cores_in_use, make_job, measure, ordinary_ids, prepare_files
from generation_sides import ROOT, Side, Work, danlu_side, hf, vllm
from guides import LORA
from machine import cpu_name
from safetensors.torch import save_file

RANK, SEED, TRIAL_NEW_TOKENS = 8, 42, 8
WORKS = {
    "one": Work("one", 1, 160),
    "32": Work("32", 32, 160),  # those without one first: PEFT changes the model
    "one, adapter": Work("one, adapter", 1, 160, adapters=1),
    "32, one adapter": Work("32, one adapter", 32, 160, adapters=1),
    "32, 4 adapters": Work("32, 4 adapters", 32, 160, adapters=4),
    "32, 32 adapters": Work("32, 32 adapters", 32, 160, adapters=32),
}
PEERS = (
    Side("transformers with PEFT", "transformers_generate.py", {"bf16, sdpa": hf("bfloat16", "sdpa")}),
    Side(
        "vLLM-CPU",
        "vllm_generate.py",
        # More places cost its kernels more, whoever is in them; fewer than adapters mean that it waits and loads.
        {f"bf16, eager, {n} at once": vllm("bfloat16", eager=True, all_cores=True) | {"loras": n} for n in (4, 32)},
        "vllm",
    ),
)
WORDS = {
    "en": {
        "work": "prompts, adapters", "one": "1, none", "one, adapter": "1, its own", "32": "32, none",
        "32, one adapter": "32, one for all", "32, 4 adapters": "32, 4 in turn", "32, 32 adapters": "32, each its own",
        "refused": "refused",
        "below": "New tokens of all rows a second, {tokens} after prompts of 160, the prompts' reading included;\n"
        "median of {runs} calls. smollm2-135m, adapters of rank {rank} on all linear layers, {machine}; {date}. By\n"
        "`make bench-adapters WRITE=--write`.\n",
    },
    "zh": {
        "work": "提示词，适配器", "one": "1，无", "one, adapter": "1，有", "32": "32，无",
        "32, one adapter": "32，共用一个", "32, 4 adapters": "32，4 个轮流", "32, 32 adapters": "32，各用一个",
        "refused": "拒绝",
        "below": "所有行每秒的新 token 数：提示词 160 个 token，生成 {tokens} 个，含读提示词的时间；\n"
        "{runs} 次的中位数。smollm2-135m，每个线性层上都有秩为 {rank} 的适配器，{machine}；{date}。由\n"
        "`make bench-adapters WRITE=--write` 写入。\n",
    },
}  # fmt: skip


def main() -> None:
    asked = arguments()
    found = measure_all(asked)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    print("\n" + block(found, "en"))
    if asked.write:
        guides.write(LORA, "adapters", lambda language: block(found, language))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8", "int4"], help="Danlu's number formats")
    parser.add_argument("--peers", nargs="*", default=[side.name for side in PEERS])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="timed calls; their median counts")
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--write", action="store_true", help="put the table into the guide to LoRA")
    return parser.parse_args()


def measure_all(asked: argparse.Namespace) -> dict[str, Any]:
    from danlu.model.load import load_tokenizer

    with tempfile.TemporaryDirectory(dir=ROOT / ".peers") as name:
        files: dict[str, Any] = prepare_files(Path(name))
        places = {f"a{n}": Path(name) / f"a{n}" for n in range(max(WORKS[work].adapters for work in asked.works))}
        for seed, place in enumerate(places.values()):
            make_adapter(Path(files["model"]), place, seed)
        files["adapters"] = {name: str(place) for name, place in places.items()}
        tokenizer = load_tokenizer(Path(files["model"]))
        ids = ordinary_ids(tokenizer)

        def jobs(work: str, trial: bool) -> dict[str, Any]:
            tokens, runs = (TRIAL_NEW_TOKENS, 1) if trial else (asked.new_tokens, asked.runs)
            return make_job(WORKS[work], ids, tokenizer, tokens, runs, SEED + 1 if trial else SEED)

        sides = [danlu_side(dtype) for dtype in asked.dtypes] + [side for side in PEERS if side.name in asked.peers]
        columns = [measure(replace(side, works=tuple(WORKS)), asked.works, jobs, files) for side in sides]
    return {
        "date": date.today().isoformat(), "machine": f"{cores_in_use()} cores of {cpu_name()}", "works": asked.works,
        "new_tokens": asked.new_tokens, "runs": asked.runs, "columns": columns,
    }  # fmt: skip


def make_adapter(model: Path, to: Path, seed: int) -> None:
    """An adapter on every linear layer below the head, in PEFT's files."""
    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qo"},
        **{f"self_attn.{name}_proj": (hidden, narrow) for name in "kv"},
        **{f"mlp.{name}_proj": (hidden, inner) for name in ("gate", "up")},
        "mlp.down_proj": (inner, hidden),
    }
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in shapes.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
            tensors[f"{place}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) / 50
    to.mkdir()
    save_file(tensors, str(to / "adapter_model.safetensors"))
    said = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
        "base_model_name_or_path": str(model), "target_modules": [name.split(".")[1] for name in shapes],
    }  # fmt: skip
    (to / "adapter_config.json").write_text(json.dumps(said))


def block(found: dict[str, Any], language: str) -> str:
    """The table in one language."""
    words = WORDS[language]
    heads = [words["work"], *(f"{column['name']} {shown_version(column)}".strip() for column in found["columns"])]
    lines = [heads, ["---", *("--:" for _ in found["columns"])]]
    for work in found["works"]:
        cells = [column["cells"][work] for column in found["columns"]]
        lines.append([words[work], *(f"{cell['rate']:.0f}" if "rate" in cell else words["refused"] for cell in cells)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    reasons = {
        f"{column['name']}: {cell['refused']}"
        for column in found["columns"]
        for cell in column["cells"].values()
        if "refused" in cell
    }
    below = words["below"].format(
        tokens=found["new_tokens"], runs=found["runs"], rank=RANK, machine=found["machine"], date=found["date"]
    )
    return "\n".join([table, below, *(f"{reason}\n" for reason in sorted(reasons))])


def shown_version(column: dict[str, Any]) -> str:
    return "" if column["name"].startswith("Danlu") else column["version"] or ""


if __name__ == "__main__":
    main()
