"""Weights of a linear layer rounded to int8 and int4: codes, and the scales that make numbers of them again."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Rounded = Literal["int8", "int4"]

# Weights of a row that share a step and a middle in int4. The blocks of llama.cpp's formats are of this size.
GROUP = 32
# int4: this code is the middle.
MIDDLE = 8


class Int8(NamedTuple):
    """codes * scale: int8 (outputs, inputs), float32 (outputs,)."""

    codes: Tensor
    scale: Tensor

    def weight(self) -> Tensor:
        """(outputs, inputs) float32."""
        return self.codes * self.scale[:, None]


class Int4(NamedTuple):
    """(codes - MIDDLE) * step + middle: int8 of 0 to 15 (outputs, inputs), bfloat16 (outputs, inputs / GROUP)."""

    codes: Tensor
    step: Tensor
    middle: Tensor

    def weight(self) -> Tensor:
        """(outputs, inputs) float32."""
        step, middle = (numbers.float().repeat_interleave(GROUP, 1) for numbers in (self.step, self.middle))
        return (self.codes.float() - MIDDLE) * step + middle


def to_int8(weight: Tensor) -> Int8:
    """weight (outputs, inputs), with one scale for each output."""
    scale = (weight.float().abs().amax(1) / 127).clamp_min(1e-12)
    return Int8((weight.float() / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale)


def to_int4(weight: Tensor) -> Int4:
    """weight (outputs, inputs), inputs a multiple of GROUP: in each group 16 steps from its least to its largest."""
    outputs, inputs = weight.shape
    groups = weight.float().view(outputs, inputs // GROUP, GROUP)
    least, most = groups.amin(2), groups.amax(2)
    step = ((most - least) / 15).clamp_min(1e-12).bfloat16()
    middle = (least + MIDDLE * step.float()).bfloat16()
    codes = (groups - middle.float()[..., None]) / step.float()[..., None] + MIDDLE
    return Int4(codes.round_().clamp_(0, 15).to(torch.int8).view(outputs, inputs), step, middle)
