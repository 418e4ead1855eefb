"""Weights that lie in 4 bits, as whoever multiplies with them sees them. How they came there is four_bit.py's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.hub import import_bitsandbytes


def is_packed(layer: Any) -> bool:
    """Whether a layer's weight is in 4 bits."""
    return is_packed_weight(getattr(layer, "_parameters", {}).get("weight"))


def is_packed_weight(weight: Any) -> bool:
    return getattr(weight, "quant_state", None) is not None


def count(weight: Any) -> int:
    """How many numbers a weight has: two packed ones lie in a byte."""
    return int(weight.quant_state.shape.numel() if is_packed_weight(weight) else weight.numel())


def inputs(weight: Any) -> int:
    """How many numbers a layer with this weight takes."""
    return int(weight.quant_state.shape[-1] if is_packed_weight(weight) else weight.shape[-1])


def number_format(weight: Any) -> torch.dtype:
    """What a weight is multiplied in."""
    found: torch.dtype = weight.quant_state.dtype if is_packed_weight(weight) else weight.dtype
    return found


def whole(weight: Any, dtype: torch.dtype) -> Tensor:
    """(out, in) in `dtype`: the weight itself, or what its 4 bits say."""
    if not is_packed_weight(weight):
        plain: Tensor = weight
        return plain
    return _taken_out(weight.data, weight.quant_state).to(dtype)


def rounded(weight: Tensor, kind: str, *, is_double: bool) -> Tensor:
    """What stays of a weight in 4 bits, float32, of its shape."""
    functions = import_bitsandbytes().functional
    return _taken_out(*functions.quantize_4bit(weight, compress_statistics=is_double, quant_type=kind)).float()


def _taken_out(data: Tensor, state: Any) -> Tensor:
    """What the 4 bits say, block by block. bitsandbytes' own function takes rows for whole blocks on a CPU: of a layer
    whose inputs are no multiple of 64 it makes something else."""
    scales = state.absmax
    if state.nested:
        functions = import_bitsandbytes().functional
        scales = functions.dequantize_blockwise(state.absmax, state.state2) + state.offset
    blocks, size = len(scales), state.blocksize
    packed = data.reshape(-1)
    missing = blocks * size // 2 - packed.numel()
    packed = F.pad(packed, (0, missing)) if missing else packed
    shape = (blocks, size)
    take = torch.ops.bitsandbytes.dequantize_4bit.default
    values: Tensor = take(packed.reshape(-1, 1), scales.float(), size, state.quant_type, shape, state.dtype)
    return values.reshape(-1)[: state.shape.numel()].reshape(state.shape)


class _PackedLinear(torch.autograd.Function):
    """Keeps no weight that was taken out; its gradient goes to the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, whole(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ whole(ctx.weight, grad.dtype), None, None


def forward(layer: Any, x: Tensor) -> Tensor:
    """What a linear layer with a packed, frozen weight answers."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    out: Tensor = _PackedLinear.apply(x, layer.weight, bias)  # type: ignore[no-untyped-call]
    return out
