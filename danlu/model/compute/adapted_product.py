"""Products of linear layers with LoRA whose weights stay for a while: as long as a model under training draws answers.

The frozen weights in the machine's fastest form, and what the adapter adds in float32: for all layers of one input one
product with their A, then a small one with each B. The adapter is read when the product is made; it is not merged into
the weights, as most of what it has learnt is smaller than what bfloat16 can tell apart. `live_product` is the
definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.model.compute.lora_kernel import is_at_work, is_vanilla_lora, layer_of
from danlu.model.compute.native import Kernels, plain_add_low_rank
from danlu.model.compute.products import Held, lent_product, live_product
from danlu.model.compute.tiles import TileProduct

# (inner (tokens, rank), up (rank, outputs), out (tokens, outputs)): out += inner up
AddLowRank = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Part:
    """What one layer's adapter adds.

    Attributes:
        columns: of the answer. ranks: of `Adapted.down`.
        up: (rank, outputs) float32, B scaled.
    """

    columns: slice
    ranks: slice
    up: Tensor


@dataclass(frozen=True)
class Adapted:
    """The product of some layers, and what their adapters add.

    Attributes:
        down: (inputs, sum of ranks) float32.
    """

    base: Held | TileProduct
    down: Tensor
    parts: Sequence[Part]
    add: AddLowRank

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.base.tensors, self.down, *(part.up for part in self.parts))

    def __call__(self, x: Tensor) -> Tensor:
        out = self.base(x)
        inner = x.to(self.down.dtype) @ self.down
        for part in self.parts:
            self.add(inner[:, part.ranks], part.up, out[:, part.columns])
        return out


def adapted_product(
    layers: Sequence[Any], kernels: Kernels | None, *, is_paired: bool = False
) -> Held | TileProduct | Adapted:
    """What `live_product` of these layers answers as long as neither their weights nor their adapters change."""
    bases = [layer.base_layer if is_vanilla_lora(layer) else layer for layer in layers]
    if not all(type(base) is nn.Linear for base in bases):
        return Held(live_product(layers), ())
    base = lent_product(bases, is_paired=is_paired)
    downs: list[Tensor] = []
    parts: list[Part] = []
    column = rank = 0
    for layer, below in zip(layers, bases, strict=True):
        if layer is not below and is_at_work(layer):
            weight, _, a, b, scaling = layer_of(layer)
            a, up = (matrix.detach().to(weight.dtype).float() for matrix in (a, b))  # rounded as in training
            ends = column + below.out_features, rank + len(a)
            parts.append(Part(slice(column, ends[0]), slice(rank, ends[1]), (up.T * scaling).contiguous()))
            downs.append(a.T)
            rank = ends[1]
        column += below.out_features
    if not parts:
        return base
    add = plain_add_low_rank if kernels is None else kernels.add_low_rank
    return Adapted(base, torch.cat(downs, 1).contiguous(), parts, add)
