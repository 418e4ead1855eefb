"""Trained weights in float32, whatever the model computes in.

A step of AdamW changes a weight by about the rate; bfloat16 has 8 bits of mantissa, so that a change below 1/256 of the
weight is lost in it. The optimizer therefore holds each half-precision weight in float32 (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1) and the model a rounded copy of it. Gradients are summed in float32 as well: cutting a
step into micro-batches then changes nothing but its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Master:
    """The trained weights of `model` as its optimizer has them.

    Attributes:
        weights: name -> float32, the model's own parameter where that is float32. Gradients arrive here.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self._rounded: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._hooks: list[Any] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            self.weights[name] = parameter
            if parameter.dtype in (torch.bfloat16, torch.float16):
                self.weights[name] = master = nn.Parameter(parameter.detach().float())
                self._rounded.append((parameter, master))
                self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(_hand_on, master)))

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take these values, as a checkpoint has them."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Give the model what the optimizer has made of its weights."""
        for parameter, master in self._rounded:
            parameter.copy_(master)


def _hand_on(master: nn.Parameter, parameter: Tensor) -> None:
    """The gradient of a micro-batch goes to the float32 weight; the model's own is freed at once."""
    grad, parameter.grad = parameter.grad, None
    if grad is None:
        return
    if master.grad is None:
        master.grad = grad.float()
    else:
        master.grad.add_(grad)
