"""A linear layer's product x W^T + b in the form that is fastest on this machine.

`live_product` calls the layers themselves and is the definition. The others take the weights once, in another layout
or number format, and join layers that read the same input into one product. Tests compare each with the plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# x (tokens, inputs) -> (tokens, outputs)
Product = Callable[[Tensor], Tensor]


def live_product(layers: Sequence[Any]) -> Product:
    """What these layers answer to one input, side by side; their weights may change between two calls."""
    if len(layers) == 1:
        return lambda x: layers[0](x)
    return lambda x: torch.cat([layer(x) for layer in layers], -1)


def fixed_product(layers: Sequence[nn.Linear]) -> Product:
    """The same, as one product of weights that stay as they are."""
    return fastest_product(*joined(layers))


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one layer that answers as these do side by side."""
    weights = [layer.weight.detach() for layer in layers]
    weight = weights[0] if len(layers) == 1 else torch.cat(weights)
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = [weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() for layer in layers]
    return weight, torch.cat(biases)


def fastest_product(weight: Tensor, bias: Tensor | None) -> Product:
    """The form for this device and number format that changes no result beyond rounding."""
    has_layout = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
    return packed_product(weight, bias) if has_layout else plain_product(weight, bias)


def plain_product(weight: Tensor, bias: Tensor | None) -> Product:
    """x W^T + b by torch: weight (outputs, inputs), bias (outputs,)."""
    return lambda x: F.linear(x, weight, bias)


def packed_product(weight: Tensor, bias: Tensor | None) -> Product:
    """`plain_product` of bfloat16 on a CPU, the weight in oneDNN's own layout: no call lays it out anew."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    run = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        out: Tensor = run(x, packed, bias, "none", [], "")
        return out

    return product
