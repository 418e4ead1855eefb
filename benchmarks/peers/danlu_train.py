"""Danlu's own training loop, at its defaults, on a work of benchmarks/train.py.

Usage: python danlu_train.py JOB.json   (see training.py; keys of the job in benchmarks/training_works.py)
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from training import judged, peak_bytes, read_job, write

from danlu.data.batches.pairs import Pair
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.device import Device, read_device
from danlu.generate.engine import Engine
from danlu.journal import Journal
from danlu.model.adapters import attach
from danlu.model.likelihood import prepare
from danlu.model.load import load_model, load_tokenizer
from danlu.model.lora_options import LoraOptions
from danlu.model.score_head import put_head
from danlu.steps.dpo import Kept
from danlu.train.batches import Batches
from danlu.train.dpo import DpoOptions, adapter_off, dpo_stage
from danlu.train.judges import Answered
from danlu.train.learner import Stage
from danlu.train.loop import Run, TrainOptions, train
from danlu.train.policy import ModelPolicy
from danlu.train.ppo import PpoOptions, ppo_stage
from danlu.train.reward import reward_stage
from danlu.train.rollout import Prompt, Rollouts
from danlu.train.sft import sft_stage


class InOrder:
    """The rows as they stand, so many a step: those that the other side takes."""

    def __init__(self, examples: Sequence[Any], size: int) -> None:
        self._examples, self._size = examples, size

    @property
    def per_epoch(self) -> int:
        return len(self._examples) // self._size

    def take(self, step: int) -> Sequence[Any]:
        return self._examples[step * self._size : (step + 1) * self._size]

    def figures(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def example_of(row: dict[str, Any]) -> Example:
    return Example(tuple(row["input_ids"]), tuple(label != -100 for label in row["labels"]), "row")


def pair_of(row: dict[str, Any]) -> Pair:
    def answer(ids: list[int]) -> Example:
        learnt = (*[False] * len(row["prompt_ids"]), *[True] * len(ids))
        return Example((*row["prompt_ids"], *ids), learnt, "row")

    return Pair(answer(row["chosen_ids"]), answer(row["rejected_ids"]), row.get("margin"))


def trainable(job: dict[str, Any], device: Device, dtype: torch.dtype) -> Any:
    """The model with a fresh adapter, or with all its weights under training; prepared for the loop."""
    model: Any = load_model(Path(job["model"]), device=device, dtype=dtype)
    if job["lora"] is not None:
        model = attach(model, LoraOptions(**job["lora"], init="kaiming", trainable_token_indices=None), job["seed"])
    prepare(model)
    return model


def parts(job: dict[str, Any], device: Device, options: TrainOptions) -> tuple[Any, Stage[Any, Any], Batches[Any]]:
    """(the model, the stage, what each step takes), as the step of that kind prepares them."""
    model = trainable(job, device, device.dtype("auto"))
    if job["stage"] in ("sft", "pretrain"):
        return model, sft_stage(device), InOrder([example_of(row) for row in job["rows"]], options.batch_size)
    if job["stage"] == "grpo":
        return model, *rollouts(job, device, options, model)
    pairs = [pair_of(row) for row in job["rows"]]
    batches = InOrder(pairs, options.batch_size)
    if job["stage"] == "reward":
        put_head(model, job["seed"])
        return model, reward_stage(device), batches
    reference: Any = partial(adapter_off, mean=False)
    if job["precomputed"]:
        reference = Kept(pairs, False, device, options.micro_batch_tokens)
        reference.fill(Path(job["scratch"]) / "reference.safetensors", model, "benchmark")
    return model, dpo_stage(DpoOptions(beta=job["beta"]), device, reference), batches


def rollouts(
    job: dict[str, Any], device: Device, options: TrainOptions, model: Any
) -> tuple[Stage[Any, Any], Rollouts]:
    """One update a rollout, by GRPO."""
    chat = Chat.of(load_tokenizer(Path(job["model"])), model.get_base_model().generation_config)
    ppo = PpoOptions(
        advantage_estimator="grpo",
        num_generations=job["group"],
        rollout_batch_size=job["examples"],
        num_ppo_epochs=1,
        kl_coef=job["kl_coef"],
        unfinished_reward=None,
    )
    policy = ModelPolicy(
        model,
        Engine.around(model, chat, in_place=True),
        device,
        temperature=1.0,
        max_new_tokens=job["max_new_tokens"],
        has_value=False,
    )
    prompts = [Prompt(tuple(row["prompt"]), tuple(row["prompt_ids"]), "row") for row in job["rows"]]

    def judge(answers: Sequence[Answered]) -> list[float]:
        return [judged(answer.text) for answer in answers]

    batches = Rollouts(
        prompts,
        policy,
        judge,
        ppo,
        batch_size=options.batch_size,
        micro_batch_tokens=options.micro_batch_tokens,
        seed=job["seed"],
    )
    return ppo_stage(ppo, device, temperature=1.0, max_new_tokens=job["max_new_tokens"]), batches


def main() -> None:
    job = read_job()
    device = read_device()
    taken = ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm")
    options = TrainOptions(
        max_steps=job["steps"],
        batch_size=job["examples"],
        lr_scheduler_type="constant",
        warmup_ratio=0,
        save_steps=10_000,
        optim=job["optim"],
        **{name: job[name] for name in taken},
    )
    Path(job["scratch"]).mkdir(exist_ok=True)
    model, stage, batches = parts(job, device, options)
    before = peak_bytes()  # each step sets the mark back
    journal = Journal(Path(tempfile.mkdtemp(dir=job["scratch"])))
    train(stage, model, Run(batches, [], seed=job["seed"], identity={}), options, journal, device)
    rows = journal.metrics()
    result = {name: [row[name] for row in rows] for name in ("seconds", "tokens")}
    result["losses"] = [row["loss"] for row in rows]
    result["peak_memory_bytes"] = max(before, peak_bytes(), *[row["peak_memory_bytes"] for row in rows])
    result["threads"] = torch.get_num_threads()
    if job["stage"] == "grpo":
        result["answer_tokens"] = [row["answer_tokens"] for row in rows]
    write(job, result)


if __name__ == "__main__":
    main()
