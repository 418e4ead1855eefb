"""Direct preference optimization: a pair's better answer becomes likelier than its worse one, next to a reference.

The policy's implicit reward is beta (log pi - log pi_ref) (Rafailov et al. 2023, arXiv:2305.18290, eq. 5); the losses
differ in what they ask of the difference of two such rewards. The reference is no second model: it is the same one
with its adapter off, or log-probabilities that were computed before training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from danlu.config import Options
from danlu.data.batches.pairs import Pair, PairBatch, collate_pairs
from danlu.device import Device
from danlu.model.likelihood import document_log_probs
from danlu.train.learner import Loss, Stage

LossType = Literal["sigmoid", "ipo", "hinge"]


class DpoOptions(Options):
    """What is asked of a pair."""

    beta: float = Field(
        0.1, gt=0, le=100, description="how dear it is to leave the reference; for ipo, 1 / (2 beta) is the gap wanted"
    )
    loss_type: LossType = Field(
        "sigmoid",
        description="sigmoid (Rafailov et al. 2023, eq. 7), ipo (Azar et al. 2023, eq. 17: a gap, and no more) or "
        "hinge (SLiC)",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of the pairs taken to be labelled the wrong way round (sigmoid alone)"
    )
    reference: Literal["auto", "adapter_off", "precomputed"] = Field(
        "auto",
        description="log-probabilities of the reference: from the model with its adapter off, or computed once before "
        "training; auto computes them before where there is no adapter, or several epochs",
    )

    @model_validator(mode="after")
    def _smoothing_has_an_effect(self) -> Self:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(f"label_smoothing has no effect with loss_type: {self.loss_type}")
        return self


def dpo_losses(policy: Tensor, reference: Tensor, options: DpoOptions) -> Tensor:
    """The loss of each pair: (n,) from log-probabilities (n, 2) of better and worse answers.

    For ipo they are means over an answer's tokens, as its authors advise; else sums.
    """
    gap = (policy - reference) @ policy.new_tensor([1.0, -1.0])
    if options.loss_type == "ipo":
        return (gap - 1 / (2 * options.beta)) ** 2
    margin = options.beta * gap
    if options.loss_type == "hinge":
        return torch.relu(1 - margin)
    smoothing = options.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def pair_log_probs(model: Any, batch: PairBatch, *, mean: bool) -> Tensor:
    """(n, 2) log-probabilities of better and worse answers: sums over their tokens, or means."""
    sums = document_log_probs(model, batch.documents)
    if mean:
        learnt = torch.bincount(batch.documents.document_of, minlength=len(sums))
        sums = sums / learnt
    return sums.view(-1, 2)


def dpo_stage(
    options: DpoOptions, device: Device, reference: Callable[[Any, PairBatch], Tensor]
) -> Stage[Pair, PairBatch]:
    """The stage as the loop wants it: each pair counts one.

    Args:
        reference: (model, batch) -> (n, 2), what the reference says of the same answers, without a gradient.
    """

    def loss(model: Any, batch: PairBatch) -> Loss:
        policy = pair_log_probs(model, batch, mean=options.loss_type == "ipo")
        with torch.no_grad():
            expected = reference(model, batch).to(policy)
        losses = dpo_losses(policy, expected, options)
        rewards = options.beta * (policy.detach() - expected)
        gap = rewards[:, 0] - rewards[:, 1]
        return Loss(
            losses.sum(),
            {
                "rewards/chosen": float(rewards[:, 0].sum()),
                "rewards/rejected": float(rewards[:, 1].sum()),
                "rewards/margins": float(gap.sum()),
                "rewards/accuracies": float((gap > 0).sum()),
                "logps/chosen": float(policy.detach()[:, 0].sum()),
                "logps/rejected": float(policy.detach()[:, 1].sum()),
            },
        )

    return Stage(
        name="dpo",
        length=lambda pair: pair.tokens,
        weight=lambda pair: 1.0,
        counted="pairs",
        collate=lambda pairs: collate_pairs(pairs, device.name),
        loss=loss,
        chance=float(dpo_losses(torch.zeros(1, 2), torch.zeros(1, 2), options)),
    )


@torch.no_grad()
def adapter_off(model: Any, batch: PairBatch, *, mean: bool) -> Tensor:
    """(n, 2) log-probabilities of the answers without the adapter, and without dropout."""
    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            return pair_log_probs(model, batch, mean=mean)
    finally:
        model.train(was_training)
