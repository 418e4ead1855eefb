"""How much of a group's extremes is worth its codes: a few cut off make the steps of all others finer.

Per group of a row the share of the extremes, of ten from 1 down to 0.55, at which the group's part of the output is off
by least on the texts seen (the clipping of AWQ: Lin et al. 2023, arXiv:2306.00978). What the other groups of the row
do is left out of sight. Knows one matrix and the Gram matrices of its inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from danlu.model.grouped import Scheme
from danlu.quantize.rtn import by_groups, codes_of, fitted

SHARES = tuple(1 - step / 20 for step in range(10))


def shares(weight: Tensor, grams: Tensor, scheme: Scheme) -> Tensor:
    """(outputs, groups): the best share of each.

    Args:
        grams: (groups, size, size), X'X of the inputs of each group.
    """
    grouped = by_groups(weight, scheme)
    best = torch.full(grouped.shape[:2], torch.inf)
    chosen = torch.ones(grouped.shape[:2])
    for share in SHARES:
        scales, zeros = fitted(weight, scheme, share)
        codes = codes_of(grouped, scales, zeros, scheme)
        held = (codes.float() - zeros.float().unsqueeze(-1)) * scales.unsqueeze(-1)
        errors = _errors(grouped - held, grams)
        is_better = errors < best
        best, chosen = torch.where(is_better, errors, best), torch.where(is_better, share, chosen)
    return chosen


def _errors(difference: Tensor, grams: Tensor) -> Tensor:
    """(outputs, groups), of (outputs, groups, size)."""
    by_group = difference.transpose(0, 1)  # (groups, outputs, size)
    return ((by_group @ grams) * by_group).sum(-1).T


def grams_of(gram: Tensor, scheme: Scheme) -> Tensor:
    """The square of each group on the diagonal of (inputs, inputs)."""
    groups = scheme.groups(gram.shape[0])
    size = gram.shape[0] // groups
    return torch.stack([gram[at : at + size, at : at + size] for at in range(0, gram.shape[0], size)])
