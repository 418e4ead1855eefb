"""Products of linear layers with LoRA whose weights stay for a while: as long as a model under training draws answers.

The frozen weights in the machine's fastest form, and what the adapter adds beside them (adapt.py), in float32. The
adapter is read when the product is made and not merged into the weights, as most of what it has learnt is smaller than
what bfloat16 can tell apart. `live_product` is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from danlu.model.compute.adapt import Adapter, Owners, Table, adapt
from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.lora_kernel import is_at_work, is_vanilla_lora, layer_of
from danlu.model.compute.products import Held, lent_product, live_product


@dataclass(frozen=True)
class Adapted:
    """The product of some layers, and what their adapters add."""

    base: Held | BlockProduct
    adapter: Adapter

    @cached_property
    def table(self) -> Table:
        return Table([self.adapter])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.base.tensors, self.adapter.down, self.adapter.up, self.adapter.plan)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.base(x)
        adapt(x, self.table, Owners.of_one(len(x)), out)
        return out


def adapted_product(layers: Sequence[Any], *, is_paired: bool = False) -> Held | BlockProduct | Adapted:
    """What `live_product` of these layers answers as long as neither their weights nor their adapters change."""
    bases = [layer.base_layer if is_vanilla_lora(layer) else layer for layer in layers]
    if not all(type(base) is nn.Linear for base in bases):
        return Held(live_product(layers), ())
    base = lent_product(bases, is_paired=is_paired)
    parts: list[tuple[int, Tensor, Tensor]] = []
    column = 0
    for layer, below in zip(layers, bases, strict=True):
        if layer is not below and is_at_work(layer):
            weight, _, a, b, scaling = layer_of(layer)
            a, b = (matrix.detach().to(weight.dtype).float() for matrix in (a, b))  # rounded as in training
            parts.append((column, a.T, b.T * scaling))
        column += below.out_features
    if not parts:
        return base
    return Adapted(base, Adapter.of(parts))
