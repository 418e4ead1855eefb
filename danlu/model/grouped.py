"""Weights of a linear layer in few bits, by groups along its inputs: what every method of quantizing makes.

A group of neighbouring inputs of one output shares a scale and a zero. How codes are found is quantize's; how they lie
in files of AWQ, GPTQ and compressed-tensors, that of their formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.errors import ConfigError

WIDTHS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Scheme:
    """How weights are held.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; None: all of a row.
        symmetric: the zero is the middle code everywhere, so it need not be kept.
    """

    bits: int
    group_size: int | None = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise ConfigError(f"bits={self.bits}", allowed=", ".join(map(str, WIDTHS)))
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size={self.group_size}", allowed="a positive number, or none: whole rows")

    @property
    def middle(self) -> int:
        """The zero of symmetric codes."""
        return 1 << (self.bits - 1)

    @property
    def largest(self) -> int:
        """The largest code; the least is 0."""
        return (1 << self.bits) - 1

    def groups(self, inputs: int) -> int:
        """Of a layer with so many inputs. Raises ConfigError where they cannot be divided."""
        size = self.group_size or inputs
        if inputs % size:
            raise ConfigError(
                f"group_size={size} does not divide a layer's {inputs} inputs",
                allowed="a divisor of every layer's inputs",
                fix=f"take {_divisor(inputs, size)}",
            )
        return inputs // size


class Grouped(NamedTuple):
    """(codes - zeros) * scales: uint8 (outputs, inputs), float (outputs, groups), uint8 (outputs, groups).

    Columns may be in groups that are not neighbours (GPTQ's g_idx in files of others): `group_of` is (inputs,) then.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor | None = None

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(outputs, inputs), computed in float32."""
        scales, zeros = self.scales.float(), self.zeros.float()
        if self.group_of is not None:
            return ((self.codes.float() - zeros[:, self.group_of]) * scales[:, self.group_of]).to(dtype)
        groups: Tensor = self.codes.float().unflatten(1, (scales.shape[1], -1))
        return groups.sub_(zeros[..., None]).mul_(scales[..., None]).flatten(1).to(dtype)


def _divisor(inputs: int, size: int) -> int:
    """The largest number below `size` that divides the inputs, a power of two if there is one above 8."""
    powers = [one for one in (128, 64, 32, 16) if one < size and inputs % one == 0]
    return powers[0] if powers else max(one for one in range(1, min(size, inputs) + 1) if inputs % one == 0)
