"""A linear layer's product x W^T + b in the form that is fastest on this machine.

`live_product` calls the layers themselves and is the definition. The others take the weights once, in another layout
or number format, and join layers that read the same input into one product. Tests compare each with the plain one.

int8 and int4 round the weights. What they save is memory, and time to read them, which is most of a step of a few rows.
Where nothing was compiled (blocks.py), and of layers that fill no block, only products of a few rows gain, and rounded
weights stand ready in bfloat16 as well for the others: these formats then cost memory, 3 and 2.6 bytes a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.compute.blocks import BlockProduct, fits_blocks
from danlu.model.compute.rounding import GROUP, MIDDLE, Rounded, to_int4, to_int8

# x (tokens, inputs) -> (tokens, outputs)
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Held:
    """A product, and the tensors that it holds."""

    run: Product
    tensors: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.run(x)


# For more rows than this, torch's products of rounded weights take longer than those in bfloat16.
FEW_ROWS = 4


def live_product(layers: Sequence[Any]) -> Product:
    """What these layers answer to one input, side by side; their weights may change between two calls."""
    if len(layers) == 1:
        return lambda x: layers[0](x)
    return lambda x: torch.cat([layer(x) for layer in layers], -1)


def fixed_product(
    weight: Tensor,
    bias: Tensor | None,
    rounded: Rounded | None = None,
    *,
    is_paired: bool = False,
    read: Callable[[Tensor], None] = lambda _part: None,
) -> Held | BlockProduct:
    """The product of weights that stay as they are; `rounded` to a smaller format.

    Args:
        is_paired: of two layers side by side, so that a BlockProduct can gate the second with the first.
        read: hears of parts of the weight that are needed no more, where it is taken over part by part.
    """
    if fits_blocks(weight):
        fits = weight.shape[1] % GROUP == 0
        return BlockProduct(weight, bias, rounded if fits else None, is_paired=is_paired, read=read)
    if rounded == "int4" and _fits_int4(weight):
        return int4_product(weight, bias)
    if rounded is not None and weight.shape[1] % 32 == 0:
        return int8_product(weight, bias)
    return fastest_product(weight, bias)


def has_form(weight: Tensor) -> bool:
    """Whether another layout of this weight is faster than its own."""
    return _is_short(weight) and (fits_blocks(weight) or has_layout())


def lent_product(layers: Sequence[nn.Linear], *, is_paired: bool = False) -> Held | BlockProduct:
    """What `live_product` answers as long as no weight changes, by a copy in another layout where that is faster."""
    if has_form(layers[0].weight):
        return fixed_product(*joined(layers), is_paired=is_paired)
    return Held(live_product(layers), ())


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one layer that answers as these do side by side."""
    weights = [layer.weight.detach() for layer in layers]
    weight = weights[0] if len(layers) == 1 else torch.cat(weights)
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = [weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() for layer in layers]
    return weight, torch.cat(biases)


def fastest_product(weight: Tensor, bias: Tensor | None) -> Held:
    """The form for this device and number format that changes no result beyond rounding."""
    return packed_product(weight, bias) if _is_short(weight) and has_layout() else plain_product(weight, bias)


def _is_short(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


@cache
def has_layout() -> bool:
    """Whether oneDNN lays bfloat16 out here, which a product of ones shows.

    On x86 it takes AVX-512 or avx_ne_convert; builds for other processors say that they can and may refuse.
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    ones = torch.ones(32, 32, dtype=torch.bfloat16)
    try:
        return bool((packed_product(ones, None)(ones) == 32).all())
    except RuntimeError:
        return False


def plain_product(weight: Tensor, bias: Tensor | None) -> Held:
    """x W^T + b by torch: weight (outputs, inputs), bias (outputs,)."""
    return Held(lambda x: F.linear(x, weight, bias), (weight,))


def packed_product(weight: Tensor, bias: Tensor | None) -> Held:
    """`plain_product` of bfloat16 on a CPU, the weight in oneDNN's own layout: no call lays it out anew."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    run = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        out: Tensor = run(x, packed, bias, "none", [], "")
        return out

    return Held(product, (packed,))


def int8_product(weight: Tensor, bias: Tensor | None) -> Held:
    """The product of a bfloat16 weight rounded to int8, by torch."""
    rounded = to_int8(weight)
    scale = rounded.scale.to(weight.dtype)
    many = fastest_product((rounded.codes * scale.float()[:, None]).to(weight.dtype), bias)
    run = _by_rows(lambda x: torch._weight_int8pack_mm(x, rounded.codes, scale), bias, many)
    return Held(run, (rounded.codes, scale, *many.tensors))


def int4_product(weight: Tensor, bias: Tensor | None) -> Held:
    """The product of a bfloat16 weight rounded to int4, by torch."""
    rounded = to_int4(weight)
    assert MIDDLE == 8, "torch's kernel counts from 8"
    many = fastest_product(rounded.weight().to(weight.dtype), bias)
    packed = torch._convert_weight_to_int4pack_for_cpu(rounded.codes.to(torch.int32), 1)
    scales = torch.stack([rounded.step, rounded.middle], -1).transpose(0, 1).contiguous()  # (groups, outputs, 2)
    run = _by_rows(lambda x: torch._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales), bias, many)
    return Held(run, (packed, scales, *many.tensors))


def _fits_int4(weight: Tensor) -> bool:
    return weight.shape[0] % 16 == 0 and weight.shape[1] % GROUP == 0


def _by_rows(few: Product, bias: Tensor | None, many: Product) -> Product:
    def product(x: Tensor) -> Tensor:
        if len(x) > FEW_ROWS:
            return many(x)
        return few(x) if bias is None else few(x).add_(bias)

    return product
