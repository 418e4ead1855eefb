"""llama.cpp's Q4_K: 256 numbers of a row in 144 bytes, eight groups of 32 with a step and a least value each.

    float16 d, dmin     what the steps and the least values of the groups are multiples of
    12 bytes            eight steps and eight least values of 6 bits (`_six_bits`)
    128 bytes           codes of two groups in 32 bytes, the former in the low halves

A weight is d · step · code - dmin · least. Steps and least values of a group are sought as ggml-quants.c does
(make_qkx2_quants): 21 steps are tried, each with what least squares make of it, larger weights counting more. Knows
neither models nor files.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 256
GROUP = 32
LARGEST, LARGEST_STEP = 15, 63
TRIED = 21  # steps, from (15 - 1) to (15 + 1) to the range of a group
ROWS = 1 << 20  # numbers that are rounded at once


def q4_k(weight: Tensor) -> np.ndarray:
    """uint8 (rows, 144 · columns / 256) of float (rows, columns), columns a multiple of 256."""
    blocks = weight.float().reshape(-1, BLOCK // GROUP, GROUP)
    made = torch.cat([_blocks(part) for part in blocks.split(ROWS // BLOCK)])
    return made.view(len(weight), -1).numpy()


def _blocks(groups: Tensor) -> Tensor:
    """uint8 (blocks, 144) of (blocks, 8, 32)."""
    steps, least = fitted(groups)  # (blocks, 8) each
    d, six_steps = _of_six_bits(steps)
    dmin, six_least = _of_six_bits(least)
    whole, below = (one.float()[:, None] * six for one, six in ((d, six_steps), (dmin, six_least)))
    codes = ((groups + below[..., None]) / torch.where(whole > 0, whole, 1)[..., None]).round().clamp(0, LARGEST)
    codes = torch.where(whole[..., None] > 0, codes, 0).to(torch.uint8).unflatten(1, (-1, 2))  # (blocks, 4, 2, 32)
    halves = codes[:, :, 0] | codes[:, :, 1] << 4
    ends = torch.stack([d, dmin], 1).view(torch.uint8)
    return torch.cat([ends, _six_bits(six_steps.to(torch.uint8), six_least.to(torch.uint8)), halves.flatten(1)], 1)


def fitted(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(step, how far the least value is below zero) of each group of (..., 32), both at least zero."""
    weights = groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
    least, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True)
    is_flat = high <= least
    step = torch.where(is_flat, 1, high - least) / LARGEST
    codes = ((groups - least) / step).round().clamp(0, LARGEST)
    best = _error(groups, weights, codes, step, least)
    total, total_x = weights.sum(-1, keepdim=True), (weights * groups).sum(-1, keepdim=True)
    for tried in range(TRIED):
        span = torch.where(high > least, high - least, 1)  # from the best least value so far on
        codes = ((groups - least) * ((LARGEST - 1 + tried / 10) / span)).round().clamp(0, LARGEST)
        weighted = weights * codes
        sum_l, sum_l2, sum_xl = ((weighted * one).sum(-1, keepdim=True) for one in (1, codes, groups))
        determinant = total * sum_l2 - sum_l.square()
        divisor = torch.where(determinant > 0, determinant, 1)
        slope = (total * sum_xl - total_x * sum_l) / divisor
        base = (sum_l2 * total_x - sum_l * sum_xl) / divisor
        is_above = base > 0
        slope = torch.where(is_above, sum_xl / sum_l2.clamp(min=1e-30), slope)
        base = torch.where(is_above, 0, base)
        error = _error(groups, weights, codes, slope, base)
        is_better = (error < best) & (determinant > 0) & (slope > 0)
        best, step, least = (
            torch.where(is_better, one, other) for one, other in ((error, best), (slope, step), (base, least))
        )
    return torch.where(is_flat, 0, step)[..., 0], -least[..., 0]


def _error(groups: Tensor, weights: Tensor, codes: Tensor, step: Tensor, least: Tensor) -> Tensor:
    return (weights * (step * codes + least - groups).square()).sum(-1, keepdim=True)


def _of_six_bits(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """float16 (blocks,), and the multiples of it, 0 to 63, nearest to (blocks, 8) numbers."""
    largest = numbers.amax(-1)
    unit = torch.where(largest > 0, largest / LARGEST_STEP, 1)
    multiples = (numbers / unit[:, None]).round().clamp(0, LARGEST_STEP)
    return (largest / LARGEST_STEP).half(), multiples


def _six_bits(steps: Tensor, least: Tensor) -> Tensor:
    """(blocks, 12): the first four of each in the low 6 bits of a byte, and above them the high 2 bits of the last
    four, whose low 4 bits share a byte."""
    first = [one[:, :4] | one[:, 4:] >> 4 << 6 for one in (steps, least)]
    return torch.cat([*first, steps[:, 4:] & 15 | (least[:, 4:] & 15) << 4], 1)
