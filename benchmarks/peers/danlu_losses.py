"""Danlu's losses on given rows at given weights, in float32 and without dropout, and what rounding may do to each.

Usage: python danlu_losses.py JOB.json   (see training_losses.py). It makes the adapters that both sides carry (B drawn,
so that they change something) and writes them where the job says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from danlu_train import example_of, pair_of, trainable
from torch import Tensor
from training import read_job, write

from danlu.data.batches.packing import collate
from danlu.data.batches.pairs import PairBatch, collate_pairs
from danlu.data.example import Example
from danlu.device import Device, read_device
from danlu.model.adapters import save_adapter
from danlu.model.company.wiring import as_it_came, base_of
from danlu.model.likelihood import token_losses
from danlu.model.score_head import put_head, save_with_head, scores
from danlu.train.advantages import group_relative
from danlu.train.dpo import DpoOptions, adapter_off, dpo_stage
from danlu.train.learner import Stage
from danlu.train.ppo import Experience, PpoOptions, ppo_stage
from danlu.train.reward import reward_stage
from danlu.train.sft import sft_stage

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from rounding import SUMS_IN_A_BLOCK, of_model, of_sums

AGGREGATION = {"dapo": "token", "grpo": "sequence", "dr_grpo": "constant"}
DEVIATION_OF_B = 0.02
Found = dict[str, dict[str, float]]


def mean_loss(stage: Stage[Any, Any], model: Any, examples: Sequence[Any]) -> float:
    """As the loop takes it of one micro-batch."""
    model.eval()
    with torch.no_grad():
        total = stage.loss(model, stage.collate(examples)).total
    return float(total) / sum(map(stage.weight, examples))


def fill(model: Any, seed: int) -> None:
    """Give the adapter's second matrices values: they start at zero, where it changes nothing."""
    dice = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = DEVIATION_OF_B * torch.randn(weight.shape, generator=dice)


@torch.no_grad()
def of_a_token(model: Any, ids: Sequence[int]) -> float:
    """By how much rounding may move the log-probability of a token of this text."""
    with as_it_came(base_of(model)):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return of_model(torch.log_softmax(logits.float(), -1), model.config)


def of_tokens(job: dict[str, Any], device: Device) -> Found:
    """Fine-tuning and pre-training: a mean of n tokens is off by what one of them is, less by the root of n."""
    model = trainable(job | {"lora": None}, device, torch.float32)
    found = {}
    for name in ("sft", "pretrain"):
        examples = [example_of(row) for row in job["rows"] if row["of"] == name]
        learnt = sum(example.learnt_tokens for example in examples)
        within = of_a_token(model, examples[0].token_ids) / learnt**0.5
        found[name] = {"loss": mean_loss(sft_stage(device), model, examples), "within": within}
    return found


def of_pairs(job: dict[str, Any], device: Device, model: Any) -> Found:
    """DPO at the start, where policy and reference are one, and then with an adapter that changes something."""
    pairs = [pair_of(row) for row in job["rows"] if row["of"] == "pairs"]
    a_token = of_a_token(model, pairs[0].chosen.token_ids)
    learnt = max(pair.chosen.learnt_tokens + pair.rejected.learnt_tokens for pair in pairs)
    # A margin is beta times a sum over the tokens of both answers, of policy and reference; no loss is steeper than 1.
    within = job["beta"] * a_token * (2 * learnt) ** 0.5
    found: Found = {}
    fresh = {name: weight.clone() for name, weight in model.named_parameters() if "lora_B" in name}
    for name, case in job["dpo"].items():
        if case["adapter"] == "filled":
            fill(model, job["seed"])
        options = DpoOptions(beta=job["beta"], loss_type=case["loss_type"], label_smoothing=case["label_smoothing"])
        mean = options.loss_type == "ipo"
        stage = dpo_stage(options, device, partial(adapter_off, mean=mean))
        loss = mean_loss(stage, model, pairs)
        # ipo: the square of four means less 1 / (2 beta), whose slope is twice its root
        found[name] = {"loss": loss, "within": 2 * loss**0.5 * 2 * a_token if mean else within}
        for own, weight in model.named_parameters():
            if own in fresh:
                weight.data = fresh[own].clone()
    return found


def of_rewards(job: dict[str, Any], device: Device, scored: Callable[[PairBatch], Tensor], model: Any) -> Found:
    pairs = [pair_of(row) for row in job["rows"] if row["of"] == "pairs"]
    plain = [type(pair)(pair.chosen, pair.rejected) for pair in pairs]
    size = float(scored(collate_pairs(pairs)).abs().max())
    config = model.config
    within = 2**0.5 * of_sums(size, config.intermediate_size, SUMS_IN_A_BLOCK * config.num_hidden_layers + 1)
    stage = reward_stage(device)
    return {
        name: {"loss": mean_loss(stage, model, rows), "within": within}
        for name, rows in (("reward", plain), ("reward, margin", pairs))
    }


def of_answers(job: dict[str, Any], device: Device, model: Any) -> tuple[Found, list[list[float]]]:
    """GRPO on given answers with given rewards; (losses, the log-probabilities that the answers were drawn with).

    Those are the model's own, moved by more than the clip range on either side.
    """
    rows = [row for row in job["rows"] if row["of"] == "answers"]
    examples = [
        Example(
            (*row["prompt_ids"], *row["answer_ids"]),
            (*[False] * len(row["prompt_ids"]), *[True] * len(row["answer_ids"])),
            "row",
        )
        for row in rows
    ]
    model.eval()
    with torch.no_grad():
        own = -token_losses(model, collate(examples))
    dice = torch.Generator().manual_seed(job["seed"])
    moved = own + 0.3 * torch.randn(own.shape, generator=dice)
    old = [part.tolist() for part in moved.split([len(row["answer_ids"]) for row in rows])]
    advantages = group_relative(torch.tensor([row["reward"] for row in rows]), job["group"], scale=True)
    experiences = [
        Experience(example, tuple(drawn), (), (float(advantage),) * len(drawn), (), ())
        for example, drawn, advantage in zip(examples, old, advantages, strict=True)
    ]
    steepest = float(advantages.abs().max()) * float((own - moved).exp().max())
    within = steepest * of_a_token(model, examples[0].token_ids)
    found = {}
    for name, aggregation in AGGREGATION.items():
        options = PpoOptions(
            advantage_estimator="grpo", num_generations=job["group"], kl_coef=0.0, loss_aggregation=aggregation
        )
        stage = ppo_stage(options, device, temperature=1.0, max_new_tokens=job["max_new_tokens"])
        found[name] = {"loss": mean_loss(stage, model, experiences), "within": within}
    return found, old


def main() -> None:
    job = read_job()
    device = read_device()
    found = of_tokens(job, device)
    model = trainable(job, device, torch.float32)
    found |= of_pairs(job, device, model)
    fill(model, job["seed"])
    save_adapter(model, Path(job["adapter"]))
    losses, old = of_answers(job, device, model)
    put_head(model, job["seed"])
    Path(job["reward_adapter"]).mkdir()
    save_with_head(model, Path(job["reward_adapter"]))

    @torch.no_grad()
    def scored(batch: PairBatch) -> Tensor:
        return scores(model.eval(), batch.documents)

    found |= of_rewards(job, device, scored, model) | losses
    write(job, {"losses": found, "old": old})


if __name__ == "__main__":
    main()
