"""Where the time of one optimizer step goes: the largest operators, for the plain form and for ours.

    .venv/bin/python benchmarks/profile_sft.py

The plain form is the same model and adapter as transformers and PEFT run them: padded batch, PEFT's own LoRA
layers, torch's attention, the head on learnt positions. Both take the same 32 examples of the quickstart's data.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import profile

from danlu.data.batches.packing import collate
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.records import Skipped
from danlu.data.source import DataOptions, read
from danlu.device import read_device
from danlu.hub import cache_directory
from danlu.model.adapters import attach
from danlu.model.likelihood import prepare, token_losses
from danlu.model.lora_options import LoraOptions
from danlu.model.named import ModelOptions, load
from danlu.train.sft import sft_examples

EXAMPLES, SHOWN, REPEATS = 32, 12, 5


def plain_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    """Summed loss of a right-padded batch."""
    longest = max(len(example.token_ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    learnt = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        learnt[row, : len(example.learnt)] = torch.tensor(example.learnt)
    learnt[:, 0] = False
    base = model.get_base_model()
    hidden = base.model(input_ids=ids).last_hidden_state[:, :-1][learnt[:, 1:]]
    return torch.nn.functional.cross_entropy(base.lm_head(hidden).float(), ids[learnt], reduction="sum")


def measure(name: str, step: Any, tokens: int) -> None:
    """Print tokens a second and the operators that take most of a step."""
    step()
    started = time.perf_counter()
    for _ in range(REPEATS):
        step()
    seconds = (time.perf_counter() - started) / REPEATS
    with profile() as record:
        step()
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\n{name}: {tokens / seconds:,.0f} tokens/s forward and backward")
    for event in events[:SHOWN]:
        print(f"  {event.self_cpu_time_total / total:6.1%}  {event.key}  x{event.count}")


def main() -> None:
    options = DataOptions(source="danlu.data.stdlib:docstring_pairs", max_examples=EXAMPLES)
    records = read(options, 42, Skipped()).train
    for name in ("plain", "ours"):
        device = read_device()
        loaded = load(ModelOptions(), device, cache=cache_directory())
        chat = Chat.of(loaded.tokenizer, loaded.model.generation_config)
        examples = list(sft_examples(records, chat, max_length=512))
        model = attach(loaded.model, LoraOptions(), seed=0)
        if name == "ours":
            prepare(model)
        model.train()
        batch = collate(examples)

        def step(model: Any = model, batch: Any = batch, examples: Any = examples, name: str = name) -> None:
            loss = token_losses(model, batch).sum() if name == "ours" else plain_loss(model, examples)
            loss.backward()
            model.zero_grad(set_to_none=True)

        measure(name, step, batch.tokens)


if __name__ == "__main__":
    main()
