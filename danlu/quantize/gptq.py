"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): what a column loses to rounding, those after it make good.

H = 2 X'X of a layer's inputs says how much an error in one column can be answered by others. Columns go in the order of
falling diag H, the groups and their scales are set before ("static" groups: a file needs no order of its own). Two
things are otherwise than in the paper. A column that no text reached is rounded, not set to zero: another text may
reach it. And a row for which plain rounding turned out better, by H, is rounded. Knows one matrix and its H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.model.grouped import Grouped, Scheme
from danlu.quantize.rtn import codes_of, error, fitted, rounded

BLOCK = 128
DAMPING = 0.01  # of the mean of diag H


class Found(NamedTuple):
    """The codes; the rows for which plain rounding was better; why nothing but rounding was done, or nothing."""

    grouped: Grouped
    rounded_rows: int
    fallback: str = ""


def gptq(weight: Tensor, hessian: Tensor, scheme: Scheme, shrink: Tensor | float = 1.0) -> Found:
    """Codes for `weight` (outputs, inputs), given H (inputs, inputs); `shrink` as for plain rounding."""
    plain = rounded(weight, scheme, shrink)
    if not bool(hessian.diagonal().any()):
        return Found(plain, len(weight), "no text came to it")
    order = hessian.diagonal().argsort(descending=True, stable=True)
    if (factor := inverse_factor(hessian[order][:, order])) is None:
        return Found(plain, len(weight), "its H has no Cholesky factor")
    scales, zeros = fitted(weight, scheme, shrink)
    codes = _compensated(weight.float()[:, order], factor, order, scales, zeros, scheme)
    made = Grouped(codes[:, order.argsort()], scales, zeros)
    is_worse = error(weight, made.weight(), hessian) > error(weight, plain.weight(), hessian)
    codes = torch.where(is_worse.unsqueeze(1), plain.codes, made.codes)
    return Found(Grouped(codes, scales, zeros), int(is_worse.sum()))


def inverse_factor(hessian: Tensor) -> Tensor | None:
    """U, upper triangular, of inv(H) = U'U, H damped, nothing on its diagonal zero; None where there is none."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    lower, fault = torch.linalg.cholesky_ex(damped)
    if int(fault) or not bool(torch.isfinite(lower).all()):
        return None
    upper, fault = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if int(fault) or not bool(torch.isfinite(upper).all()) else upper


def _compensated(
    weight: Tensor, factor: Tensor, order: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme
) -> Tensor:
    """Codes of the columns in `order`; `weight` has them in it already."""
    left, codes = weight.clone(), torch.empty(weight.shape, dtype=torch.uint8)
    groups = order // (weight.shape[1] // scales.shape[1])
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        block, square = left[:, start:end], factor[start:end, start:end]
        errors = torch.zeros_like(block)
        for at in range(end - start):
            group = groups[start + at]
            scale, zero = scales[:, group], zeros[:, group]
            code = codes_of(block[:, at : at + 1], scale, zero, scheme)[:, 0]
            codes[:, start + at] = code
            errors[:, at] = (block[:, at] - (code.float() - zero) * scale) / square[at, at]
            block[:, at:] -= errors[:, at : at + 1] * square[at, at:]
        left[:, end:] -= errors @ factor[start:end, end:]
    return codes
