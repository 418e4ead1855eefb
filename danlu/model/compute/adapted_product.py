"""Products of linear layers with LoRA whose weights stay for a while: as long as a model under training draws answers.

The frozen weights in the machine's fastest form, and what the adapter adds in float32: for all layers of one input what
their A make of it, then a small product with each B. The adapter is read when the product is made and not merged into
the weights, as most of what it has learnt is smaller than what bfloat16 can tell apart. `live_product` is the
definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.lora_kernel import is_at_work, is_vanilla_lora, layer_of
from danlu.model.compute.native import Kernels, LowRank, plain_adapt
from danlu.model.compute.products import Held, lent_product, live_product

# (x (tokens, inputs), what is added, out (tokens, outputs), which it is added to)
Adapt = Callable[[Tensor, LowRank, Tensor], None]


@dataclass(frozen=True)
class Adapted:
    """The product of some layers, and what their adapters add."""

    base: Held | BlockProduct
    low_rank: LowRank
    adapt: Adapt

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.base.tensors, self.low_rank.down, self.low_rank.up, self.low_rank.plan)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.base(x)
        self.adapt(x, self.low_rank, out)
        return out


def adapted_product(
    layers: Sequence[Any], kernels: Kernels | None, *, is_paired: bool = False
) -> Held | BlockProduct | Adapted:
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
            a, up = (matrix.detach().to(weight.dtype).float() for matrix in (a, b))  # rounded as in training
            parts.append((column, a, (up.T * scaling).contiguous()))
        column += below.out_features
    if not parts:
        return base
    return Adapted(base, LowRank.of(parts), plain_adapt if kernels is None else kernels.adapt)
