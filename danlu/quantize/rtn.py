"""Plain rounding: each group of a row gets the scale that holds its extremes, each weight its nearest code.

Symmetric codes have their zero in the middle, and one code more below it than above: the scale is the smallest that
cuts nothing off on either side. Asymmetric ones stretch from the least to the largest weight of the group, zero always
among them, and never as the least code, which files of GPTQ have no zero for. Scales are numbers of float16 before a
code is chosen, as the files hold them: what is rounded is what will be read. Weights that lie on such a grid already
come out as they are. Knows one matrix, no model and no text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from danlu.model.grouped import Grouped, Scheme

SCALES = torch.float16
LEAST_ZERO = 1  # of asymmetric codes


def rounded(weight: Tensor, scheme: Scheme, shrink: Tensor | float = 1.0) -> Grouped:
    """The codes nearest to `weight` (outputs, inputs).

    Args:
        shrink: (outputs, groups), or one for all: how much of a group's extremes its codes reach. What lies beyond
            gets the outermost code.
    """
    scales, zeros = fitted(weight, scheme, shrink)
    return Grouped(codes_of(by_groups(weight, scheme), scales, zeros, scheme).flatten(1), scales, zeros)


def by_groups(weight: Tensor, scheme: Scheme) -> Tensor:
    """(outputs, groups, inputs of a group). Raises ConfigError where they cannot be divided."""
    groups: Tensor = weight.float().unflatten(1, (scheme.groups(weight.shape[1]), -1))
    return groups


def fitted(weight: Tensor, scheme: Scheme, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """(scales, zeros) of each group, both (outputs, groups): float32 numbers of float16, uint8 codes."""
    grouped = by_groups(weight, scheme)
    high, low = (bound.clamp(*sides) for bound, sides in ((grouped.amax(-1), (0, None)), (grouped.amin(-1), (None, 0))))
    high, low = high * shrink, low * shrink
    if scheme.symmetric:
        steps = torch.maximum(high / (scheme.largest - scheme.middle), -low / scheme.middle)
        return as_scales(steps), torch.full_like(steps, scheme.middle, dtype=torch.uint8)
    low = torch.minimum(low, -high * LEAST_ZERO / (scheme.largest - LEAST_ZERO))
    scales = as_scales((high - low) / scheme.largest)
    return scales, (-low / scales).round().clamp(0, scheme.largest).to(torch.uint8)


def as_scales(steps: Tensor) -> Tensor:
    """The next number of float16 below, and never zero: a group of zeros has a scale too.

    With one above, the outermost codes might be missed, and what is rounded twice would not be what was rounded once.
    """
    info = torch.finfo(SCALES)
    steps = steps.clamp(info.smallest_normal * info.eps, info.max)
    nearest = steps.to(SCALES)
    is_above = nearest.float() > steps * (1 + 2**-20)  # by more than the rounding of float32
    return torch.where(is_above, (nearest.view(torch.int16) - 1).view(SCALES), nearest).float()


def codes_of(grouped: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme) -> Tensor:
    """uint8, of the shape of `grouped`, whose last dimension shares a scale and a zero."""
    steps = (grouped / scales.unsqueeze(-1)).round() + zeros.float().unsqueeze(-1)
    return steps.clamp(0, scheme.largest).to(torch.uint8)


def error(weight: Tensor, held: Tensor, gram: Tensor) -> Tensor:
    """(outputs,): the squared error of each output, summed over the texts whose inputs have this Gram matrix X'X."""
    difference = weight.float() - held.float()
    return ((difference @ gram) * difference).sum(-1)
