"""A frozen linear layer whose weight stays in few bits by groups.

Where there is a kernel, and no gradient is asked for, the product is made from the codes; else the weight is made whole
for one product in the inputs' format, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.compute.blocks import BLOCK
from danlu.model.compute.grouped_weight import GroupedWeight


class GroupedLinear(GroupedWeight):
    """x W^T + b. Made empty, and filled when the files are read; its bias is read as any other weight is.

    Args:
        dtype: what it is multiplied in.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__(out_features, in_features, dtype)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.order is not None:
            rows = rows[:, self.order]
        if self.multiplies(rows) and not (torch.is_grad_enabled() and rows.requires_grad):
            out = self.blocks.product(self.bias)(rows)
        else:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            out = F.linear(rows, self.whole_as_it_lies(x.dtype), bias)
        return out.view(*x.shape[:-1], self.out_features)


def grouped_layers(model: Any) -> dict[str, GroupedLinear]:
    """The layers of a model whose weights are in few bits by groups, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, GroupedLinear)}


def fixed_together(layers: Sequence[GroupedWeight]) -> Callable[[Tensor], Tensor] | None:
    """What these answer side by side, each as by `fixed`; None where one is multiplied by torch."""
    joined = side_by_side(layers)
    found = [layer.fixed() for layer in ([joined] if joined is not None else layers)]
    runs = [run for run in found if run is not None]
    if len(runs) < len(found):
        return None
    return runs[0] if len(runs) == 1 else lambda x: torch.cat([run(x) for run in runs], -1)


@torch.no_grad()
def side_by_side(layers: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """One weight that answers as these do, one behind the other, and whose memory they use from then on; None where
    they lie in different ways, or one ends within a block."""
    first = layers[0]
    if len(layers) == 1:
        return first
    if any(layer.order is not None or _form(layer) != _form(first) for layer in layers):
        return None
    outputs = [layer.shape[0] for layer in layers]
    if first.is_laid_out and any(count % BLOCK for count in outputs[:-1]):
        return None
    whole = GroupedLinear(first.shape[1], sum(outputs), first.bias is not None, first.dtype)
    whole.bits, whole.is_laid_out, whole.is_in_pairs = first.bits, first.is_laid_out, first.is_in_pairs
    for name in ("codes", "numbers"):
        parts = [getattr(layer, name) for layer in layers]
        setattr(whole, name, torch.cat(parts))
        for layer, part in zip(layers, getattr(whole, name).split([len(one) for one in parts]), strict=True):
            setattr(layer, name, part)
    if whole.bias is not None:
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole


def _form(layer: GroupedWeight) -> tuple[object, ...]:
    """What layers have to have in common to lie side by side."""
    lying = layer.is_laid_out, layer.is_in_pairs, layer.bits, layer.numbers.shape[1], layer.group_of is None
    return *lying, layer.dtype, layer.bias is None, layer.codes.device
