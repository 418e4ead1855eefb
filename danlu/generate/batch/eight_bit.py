"""Keys and values in 8 bits: of each token and head 127 steps up and down, and the size of one.

The size, float32, lies in the four bytes behind the codes, so that whoever moves, copies or sweeps keys need not know:
to a shelf they are rows of bytes, a little wider. What is computed with is taken out before each product.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from danlu.generate.batch.kv import KVShape

KvDtype = Literal["auto", "int8"]
SCALE_BYTES = 4
LARGEST = 127


def in_eight_bits(shape: KVShape) -> KVShape:
    """The same keys and values, held in 8 bits and computed with as before."""
    widths = tuple(
        replace(width, key_dim=width.key_dim + SCALE_BYTES, value_dim=width.value_dim + SCALE_BYTES)
        for width in shape.widths
    )
    # A place that holds nothing is zeros, and a step of zero is a number.
    return replace(shape, widths=widths, dtype=torch.int8, computed=shape.dtype, must_be_clean=True)


def packed(x: Tensor) -> Tensor:
    """(..., dim) -> int8 (..., dim + 4)."""
    wide = x.float()
    step = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (wide / step).round_().to(torch.int8)
    return torch.cat([codes, step.view(torch.int8)], -1)


def unpacked(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What `packed` was given, as near as 8 bits come to it."""
    step = x[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (x[..., :-SCALE_BYTES].float() * step).to(dtype)
