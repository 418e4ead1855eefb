"""Attention under training beside torch's, and what the products of a pre-training step take alone; in one run.

    .venv/bin/python benchmarks/attention.py --write

Attention: forward and back over documents of some lengths, 8,192 tokens or one document in all, with the heads of
SmolLM2-135M; torch's batched products (up to 512 tokens, as Danlu has them without a compiler) and its flash kernel.
Products: each weight of the model times 1,024 rows, forward and both ways back, with nothing between them: no step can
be faster than that. Figures are the best of five. --write puts both into docs/log.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable

import guides
import torch
from machine import cpu_name
from torch.nn import functional as F

from danlu.device import kept_memory, read_device
from danlu.hub import cache_directory, resolve
from danlu.model.company.attention import Scoring, _ShortAttention, fast_attention
from danlu.model.company.documents import Documents, documents_of
from danlu.model.compute.document_attention import document_attention
from danlu.model.compute.kernels import apply
from danlu.model.load import load_model

HEADS, KV_HEADS, DIM = 9, 3, 64
LENGTHS = (64, 256, 512, 2048, 8192)
TOKENS, ROWS, BEST_OF = 8192, 1024, 5
Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents], torch.Tensor]


def batched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    return apply(_ShortAttention, q, k, v, documents, Scoring(DIM**-0.5))


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    spread = (documents.spread(x) for x in (q, k, v))
    return documents.gather(F.scaled_dot_product_attention(*spread, is_causal=True, enable_gqa=True))


def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    return fast_attention(q, k, v, documents, Scoring(DIM**-0.5))


def best(work: Callable[[], object]) -> float:
    """Seconds."""
    work()
    seconds = []
    for _ in range(BEST_OF):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def attention_seconds(form: Form, length: int) -> float:
    """Of all documents, forward and back."""
    documents = documents_of((length,) * (TOKENS // length), "cpu")
    q, k, v = (torch.randn(TOKENS, of, DIM).bfloat16().requires_grad_() for of in (HEADS, KV_HEADS, KV_HEADS))
    grad = torch.randn(TOKENS, HEADS, DIM).bfloat16()

    def work() -> None:
        torch.autograd.grad(form(q, k, v, documents), (q, k, v), grad)

    return best(work)


def products() -> tuple[float, float]:
    """(seconds of all products of a step with ROWS tokens, their operations)."""
    model = load_model(resolve("smollm2-135m", cache=cache_directory()), device=read_device(), dtype=torch.bfloat16)
    shapes = Counter(module.weight.shape for module in model.modules() if isinstance(module, torch.nn.Linear))
    total = operations = 0.0
    for (outputs, inputs), count in shapes.items():
        weight, x = torch.randn(outputs, inputs).bfloat16(), torch.randn(ROWS, inputs).bfloat16()
        y = torch.randn(ROWS, outputs).bfloat16()
        for work in (lambda w=weight, x=x: x @ w.T, lambda w=weight, y=y: y @ w, lambda x=x, y=y: y.T @ x):
            total += count * best(work)
        operations += 6.0 * count * ROWS * outputs * inputs
    return total, operations


def peak_rate() -> float:
    """Operations a second of one product that has all it wants."""
    a, b = (torch.randn(4096, 4096).bfloat16() for _ in range(2))
    return 2 * 4096**3 / best(lambda: a @ b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/log.md")
    asked = parser.parse_args()
    if document_attention() is None:
        raise SystemExit("no C compiler here")
    lines = ["| tokens a document | ours, ms | batched products, ms | torch's flash kernel, ms |", "|---|---|---|---|"]
    with kept_memory():
        for length in LENGTHS:
            forms: list[Form | None] = [ours, batched if length <= 512 else None, flash]
            cells = ["–" if form is None else f"{attention_seconds(form, length) * 1e3:,.0f}" for form in forms]
            lines.append(f"| {length:,} | {' | '.join(cells)} |")
        seconds, operations = products()
        peak = peak_rate()
    lines += [
        "",
        f"The products of a pre-training step of {ROWS:,} tokens on SmolLM2-135M, forward and both ways back, take "
        f"{seconds:.2f} s alone ({operations / seconds / 1e12:.2f} TFLOP/s; a large one reaches {peak / 1e12:.2f}): "
        f"nothing trains faster here than {ROWS / seconds:,.0f} tokens/s.",
        "",
        f"{TOKENS:,} tokens, {HEADS} heads of {DIM} numbers, {KV_HEADS} of keys, bfloat16, forward and back; "
        f"{os.cpu_count()} cores of {cpu_name()}. Command: `benchmarks/attention.py --write`.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.write:
        guides.write({"en": guides.ROOT / "docs" / "log.md"}, "attention", lambda _: text)


if __name__ == "__main__":
    main()
