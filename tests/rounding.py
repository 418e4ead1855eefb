"""How far apart rounding alone may carry two computations of the same thing. Knows nothing of danlu.

A processor, and a library for it, chooses the order in which the terms of a sum are added, and every order rounds
otherwise. Tests that hold one computation to another take what they allow from here, not from what was once seen.

One rounding moves a number by at most u of itself: 2^-24 in float32, 2^-8 in bfloat16. A sum of n terms is off by at
most (n - 1) u of the sum of their sizes, in any order (Higham, Accuracy and Stability of Numerical Algorithms, 4.2).
Roundings go up and down alike, so that in practice it is about sqrt(n) u of the size of such a sum; and k sums, each
made of the results of the one before, are off by sqrt(k n) u. That is one deviation. What a test may see of it:

    sqrt(2)  both computations are rounded;
    5        a test looks at up to 100,000 numbers, and the furthest of so many lies 4.4 deviations out;
    2        attention turns a relative error of a score into one of its weight, times the score. In the models of these
             tests scores spread by 2 to 5, and 2 of the 6 sums of a block go into them.

`test_rounding.py` holds this to float64: float32 is up to 5.5 deviations away from it, of the 10 that leaves to one of
two computations. Weights that make attention choose one token by scores in the hundreds are off by hundreds of
deviations; a test needs gentler ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch

# Queries (with keys and values), their products, the mean of values, out, gate and up, down.
SUMS_IN_A_BLOCK = 6
_DEVIATIONS = 2**0.5 * 5 * 2


def unit(dtype: torch.dtype = torch.float32) -> float:
    """u: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def of_sums(size: float, terms: int, in_a_row: int = 1) -> float:
    """For float32 numbers that are usually of this size: sums of so many terms, so many times one after another."""
    return _DEVIATIONS * unit() * math.sqrt(terms * in_a_row) * size


def assert_same_model(found: torch.Tensor, expected: torch.Tensor, config: Any) -> None:
    """Scores of two models with equal weights, each loaded for itself: equal, but for rounding.

    Not bit for bit: where numbers lie in memory decides where a kernel's blocks begin, and so the order of its sums.
    """
    torch.testing.assert_close(found, expected, rtol=0, atol=of_model(expected, config))


def of_model(scores: torch.Tensor, config: Any) -> float:
    """For a float32 model's logits, their log-softmax, or vectors: (..., vocabulary or width), of whole rows.

    The error of a logit goes with the spread of its row, wherever the row's middle lies. A log-softmax then takes a
    mean off, and is rounded once more, as the number that it is.
    """
    scores = scores.detach()
    widths = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    terms = max(widths) if isinstance(widths, list) else widths  # some have one a layer
    in_a_row = SUMS_IN_A_BLOCK * config.num_hidden_layers + 1  # and the head
    return of_sums(float(scores.std(-1).max()), terms, in_a_row) + 2 * unit() * float(scores.abs().max())
