"""Published peaks of memory, each with its own metric and what is known of the program that held it.

Data alone. Where something that the arithmetic needs was not published, or the figure cannot be what it says, the row
stands with the reason and is judged by nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from danlu.plan.memory import Job
from danlu.plan.models import shape_of
from danlu.plan.programs import Program

GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        source: who published it.
        job: what was done.
        program: the name of the program's constants.
        metric: allocated, active, reserved, or what the card's driver shows.
        measured: bytes.
        rounding: half of the last digit that was published, in bytes.
        out: why it is not judged; nothing where it is.
    """

    source: str
    name: str
    job: Job
    program: str
    metric: str
    measured: float
    rounding: float
    out: str = ""


# What is known of each program from its source. Constants that no source tells are fitted (see FITTED in plan.py).
PROGRAMS: dict[str, Program] = {
    # lit-gpt, October 2023 (bitsandbytes 0.41.1 keeps what quantized layers read): float norms, one dropout for
    # queries, keys and values, which are views of one product; adapters and their means in bfloat16.
    "litgpt-2023": Program(
        has_joined_heads=True, adapter_weight=2, adapter_input=2, shares_input=True, logit=6, quantized_input=2,
        quantized_heads=1,
    ),
    # 2024: the same; keys and values are repeated for each head.
    "litgpt-2024": Program(
        has_joined_heads=True, repeats_keys=True, adapter_weight=2, adapter_input=2, shares_input=True, logit=6,
        quantized_input=4, quantized_heads=1,
    ),
    # transformers with PEFT: float norms, float32 adapters, each of which casts what it reads; logits in bfloat16, the
    # logarithms of their float32 copy, and both gradients.
    "peft": Program(logit=12),
    # transformers of early 2024: float32 logits, the shifted copy that the loss reads, its logarithms, their gradient.
    "llama-factory": Program(logit=16),
    # torchtune: float norms; compiled, norms and activations are computed again instead of kept.
    "torchtune": Program(adapter_weight=2, adapter_input=2, adapter_dropout=0, shares_input=True, logit=12),
    "torchtune, compiled": Program(
        rms_norm=0, trained_norm=0, gated=2, adapter_weight=2, adapter_input=2, adapter_dropout=0, shares_input=True,
        logit=12,
    ),
    # with the loss in 8 chunks: all logits in bfloat16, and one chunk's float32 copies.
    "torchtune, chunked": Program(
        rms_norm=0, trained_norm=0, gated=2, adapter_weight=2, adapter_input=2, adapter_dropout=0, shares_input=True,
        logit=2, chunk_tokens=1024, chunk_logit=12,
    ),
}  # fmt: skip


def _untied(name: str) -> Any:
    """LitGPT holds a head of its own, whatever the model ties."""
    return replace(shape_of(name), is_tied=False)


def rows() -> Iterator[Row]:
    """All of them, in the order of their publication."""
    yield from _litgpt_tables()
    yield from _litgpt_configs()
    yield from _torchtune()
    yield from _peft()
    yield from _llama_factory()


def _litgpt_tables() -> Iterator[Row]:
    attention = ("q_proj", "v_proj")
    joined = ("query_key_value",)
    longest = {"phi-1.5": 1044, "stablelm-base-alpha-3b": 1034, "llama-2-7b": 1304, "llama-2-13b": 1304}
    targets = {"stablelm-base-alpha-3b": joined}
    found = (
        ("phi-1.5", "bfloat16", 1, 4.82), ("phi-1.5", "bfloat16", 2, 6.76), ("phi-1.5", "bfloat16", 4, 10.68),
        ("phi-1.5", "nf4", 1, 3.78), ("phi-1.5", "nf4-dq", 1, 3.72),
        ("stablelm-base-alpha-3b", "bfloat16", 1, 9.69), ("stablelm-base-alpha-3b", "bfloat16", 2, 12.10),
        ("stablelm-base-alpha-3b", "bfloat16", 4, 16.92), ("stablelm-base-alpha-3b", "nf4", 1, 6.35),
        ("stablelm-base-alpha-3b", "nf4-dq", 1, 6.19), ("stablelm-base-alpha-3b", "autocast", 1, 26.92),
        ("llama-2-7b", "bfloat16", 1, 21.30), ("llama-2-7b", "bfloat16", 2, 29.07), ("llama-2-7b", "nf4", 1, 14.14),
        ("llama-2-7b", "nf4-dq", 1, 13.84), ("llama-2-13b", "bfloat16", 1, 38.12), ("llama-2-13b", "nf4", 1, 23.14),
        ("llama-2-13b", "nf4-dq", 1, 22.55),
    )  # fmt: skip
    for name, stored, batch, measured in found:
        out = "autocast, which casts weights anew and keeps them: not counted" if stored == "autocast" else ""
        is_plain = stored in ("bfloat16", "autocast")
        job = Job(
            _untied(name), "lora" if is_plain else "qlora", batch, longest[name], r=8,
            targets=targets.get(name, attention), stored=None if is_plain else stored,
        )  # fmt: skip
        yield _row("LitGPT resource tables", f"{name} LoRA {stored}, batch {batch}", job, "litgpt-2023", measured, out)
    for stored, measured in (("bfloat16", 13.52), ("nf4", 4.57), ("nf4-dq", 4.26)):
        job = Job(_untied("llama-2-7b"), "inference", 1, 100, stored=None if stored == "bfloat16" else stored)
        yield _row("LitGPT resource tables", f"llama-2-7b inference {stored}", job, "litgpt-2023", measured)


def _row(source: str, name: str, job: Job, program: str, measured: float, out: str = "") -> Row:
    return Row(source, name, job, program, "allocated", measured * GB, 0.005 * GB, out)


def _litgpt_configs() -> Iterator[Row]:
    found = (
        ("llama-2-7b", 32, "lora", 2, 19.77), ("llama-2-7b", 32, "qlora", 2, 13.68),
        ("mistral-7b", 32, "lora", 2, 20.66), ("mistral-7b", 32, "qlora", 2, 14.29),
        ("llama-3-8b", 32, "lora", 1, 19.73), ("llama-3-8b", 32, "qlora", 2, 17.41),
        ("llama-3.2-3b", 32, "lora", 1, 9.67), ("llama-3.2-3b", 32, "qlora", 2, 10.30),
        ("llama-3.2-3b", 0, "full", 4, 16.51), ("llama-3.2-1b", 32, "lora", 1, 4.49),
        ("llama-3.2-1b", 32, "qlora", 2, 5.53), ("llama-3.2-1b", 0, "full", 4, 8.70),
    )  # fmt: skip
    for name, r, method, batch, measured in found:
        out = "less than its weights, gradients and AdamW's means take together" if method == "full" else ""
        job = Job(
            _untied(name), method, batch, 512, r=max(r, 1), targets=("q_proj", "v_proj"),  # type: ignore[arg-type]
            stored="nf4" if method == "qlora" else None,
        )  # fmt: skip
        yield _row("LitGPT config_hub", f"{name} {method}, batch {batch}, 512", job, "litgpt-2024", measured, out)


def _torchtune() -> Iterator[Row]:
    small, large = shape_of("llama-3.2-3b"), shape_of("llama-3.1-8b")
    full = Job(small, "full", 2, 4096, dropout=0)
    twice = replace(full, checkpointing=True)
    offloaded = "activations lie in main memory, and how many of them was not published"
    seen = (
        ("full", full, "torchtune", 25.5, "texts of no published length"),
        ("full, packed", full, "torchtune", 60.0, ""),
        ("+ compile", full, "torchtune, compiled", 51.0, ""),
        ("+ loss in chunks", full, "torchtune, chunked", 42.9, ""),
        ("+ checkpointing", twice, "torchtune, chunked", 24.9, ""),
        ("+ optimizer in the backward pass", replace(twice, in_backward=True), "torchtune, chunked", 23.1, ""),
        ("+ activations offloaded", twice, "torchtune, chunked", 21.8, offloaded),
        ("+ 8-bit AdamW", twice, "torchtune, chunked", 17.6, offloaded),
        ("LoRA", twice, "torchtune, chunked", 8.5, offloaded),
        ("QLoRA", twice, "torchtune, chunked", 4.6, offloaded),
    )
    for name, job, program, measured, out in seen:
        yield _active(f"llama-3.2-3b {name}, batch 2, 4096", job, program, measured, out)
    lora = Job(large, "lora", 2, 2048, r=8, targets=("q_proj", "v_proj"), dropout=0)
    paged = "a paged optimizer: how much of it lay on the card was not published"
    for name, job, measured, out in (
        ("full", replace(lora, method="full"), 18.9, paged),
        ("full, larger card", replace(lora, method="full"), 37.4, paged),
        ("LoRA, checkpointing", replace(lora, checkpointing=True), 16.2, offloaded),
        ("LoRA", lora, 30.3, ""),
        ("QLoRA, checkpointing", replace(lora, method="qlora", checkpointing=True), 7.4, offloaded),
    ):
        yield _active(f"llama-3.1-8b {name}, batch 2, 2048", job, "torchtune, chunked", measured, out)


def _active(name: str, job: Job, program: str, measured: float, out: str) -> Row:
    return Row("torchtune README", name, job, program, "active", measured * GIB, 0.05 * GIB, out)


def _peft() -> Iterator[Row]:
    shape = shape_of("llama-3.2-3b")
    base = Job(shape, "lora", 4, 768, r=32, targets=("q_proj", "v_proj"), dropout=0)
    mlp = replace(base, r=10, targets=("gate_proj", "up_proj", "down_proj"))
    for name, job, measured, out in (
        ("LoRA r 32", base, 20.76, ""),
        ("LoRA r 64", replace(base, r=64), 21.00, ""),
        ("DoRA r 32", base, 22.85, "DoRA: not counted"),
        ("LoRA on the feed-forward parts, r 10", mlp, 23.00, ""),
        ("full", replace(base, method="full"), 36.20, ""),
    ):
        yield Row("PEFT method_comparison", f"llama-3.2-3b {name}, batch 4, 768", job, "peft", "reserved",
                  measured * GIB, 0.005 * GIB, out)  # fmt: skip


def _llama_factory() -> Iterator[Row]:
    base = Job(shape_of("llama-2-7b"), "lora", 4, 1024, r=8, dropout=0, checkpointing=True)
    one = replace(base, method="qlora", batch=1, stored="nf4-dq")
    unsloth = "Unsloth's kernels: not counted"
    found = [
        ("16 bit, batch 4, 1024", replace(base, flash=False), 18, ""),
        ("16 bit, FlashAttention 2, batch 4, 1024", base, 17, ""),
        ("16 bit, Unsloth, batch 4, 1024", base, 16, unsloth),
        ("4 bit, batch 4, 1024", replace(base, method="qlora", flash=False), 9, ""),
        ("4 bit, Unsloth, batch 4, 1024", replace(base, method="qlora"), 7, unsloth),
    ]
    lengths = ((1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32))
    found += [(f"4 bit, FlashAttention 2, {length}", replace(one, length=length), gb, "") for length, gb in lengths]
    for name, job, measured, out in found:
        yield Row(
            "LLaMA-Factory wiki", f"llama-2-7b {name}", job, "llama-factory", "card", measured * GB, 0.5 * GB, out
        )
