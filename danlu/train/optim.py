"""Optimizers, parameter groups and learning-rate schedules.

The schedule is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from danlu.config import Options

SchedulerName = Literal["linear", "cosine", "constant"]


class OptimOptions(Options):
    """How weights change. Defaults: AdamW at 3e-4 with 10 % warmup, then a line to zero."""

    optim: Literal["adamw_torch", "sgd"] = Field(
        "adamw_torch", description="AdamW (Loshchilov & Hutter 2019); SGD saves its state and learns worse"
    )
    learning_rate: float = Field(3e-4, gt=0, le=10, description="peak rate; LoRA bears ten times a full tuning's")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="decoupled decay a step, times the rate")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's mean")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's mean")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the denominator")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum; has no meaning for AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    lr_scheduler_type: SchedulerName = Field("linear", description="shape of the rate after warmup")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises")

    @model_validator(mode="after")
    def _each_knob_has_an_effect(self) -> OptimOptions:
        adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
        idle, other, own = (("momentum",), "adamw_torch", adam) if self.optim != "sgd" else (adam, "sgd", ("momentum",))
        fields = type(self).model_fields
        given = [name for name in idle if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"{', '.join(given)} has no effect with optim={other}; that one has {', '.join(own)}")
        return self


def rate_factor(step: int, steps: int, kind: SchedulerName, warmup_ratio: float) -> float:
    """Share of the peak rate at `step` (from 0) of `steps`.

    Rises linearly over the first ceil(warmup_ratio * steps) steps, then falls to zero along a line or a
    half cosine, or stays. The first step of a warmup is above zero, so that no step is wasted.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], options: OptimOptions
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; vectors (norms, biases) are not decayed."""
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optim == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum)
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=True,
    )
