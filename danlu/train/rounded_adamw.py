"""AdamW on weights that are held in bfloat16 alone: 8 bytes a trained weight instead of 18.

A step changes a weight by about the rate, which is less than bfloat16's next number lies away; rounded to the nearest,
most weights would never move. Here each number is rounded up or down by chance, so that in the mean it is what was
computed (Gupta et al. 2015, arXiv:1502.02551; Zamirai et al. 2020, arXiv:2010.06192), weights and both means alike: the
mean of squares moves by a thousandth a step, which bfloat16 cannot hold either. What is drawn follows from the step and
the weight's place, so that a run that goes on draws what it would have drawn.

The definition is `plain_step`; on a CPU with a C compiler one pass in C does the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from danlu.native import FLOAT, INT, LONG, POINTER, agreeing, declared

_WORD = 0xFFFFFFFF
_AT_ONCE = 1 << 24  # weights that `plain_step` works on, of a matrix that has more: it holds many numbers of each


class Factors(NamedTuple):
    """Of one step (Loshchilov & Hutter 2019, algorithm 2).

    Attributes:
        first, second: 1 - beta1^t and 1 - beta2^t.
    """

    rate: float
    decay: float
    beta1: float
    beta2: float
    first: float
    second: float
    epsilon: float


def plain_step(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, key: int, factors: Factors) -> None:
    """Change weight, mean and square in place; where they are bfloat16, `key` says what is drawn."""
    tensors = [torch.atleast_1d(x) for x in (weight, grad, mean, square)]
    of_one = max(1, tensors[0][:1].numel())
    rows = max(1, _AT_ONCE // of_one)
    parts = zip(*(x.split(rows) for x in tensors), strict=True)
    for start, (w, g, m, v) in zip(count(0, rows * of_one), parts, strict=False):
        _step_in_part(w, g, m, v, start, key, factors)


def _step_in_part(
    weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, start: int, key: int, factors: Factors
) -> None:
    """`plain_step` for some of the weights, from that one on."""
    rate, decay, beta1, beta2, first, second, epsilon = factors
    g = grad.float()
    m = beta1 * mean.float() + (1 - beta1) * g
    v = beta2 * square.float() + (1 - beta2) * g * g
    w = weight.float() * (1 - rate * decay) - rate * (m / first) / ((v / second).sqrt() + epsilon)
    places = torch.arange(start, start + weight.numel(), device=weight.device)
    one = _mixed(places.bitwise_and_(_WORD) ^ key).view(weight.shape)
    for kept, value, chance in ((weight, w, one), (mean, m, one >> 16), (square, v, _mixed(one ^ 0x9E3779B9))):
        kept.copy_(value if kept.dtype == torch.float32 else _rounded(value, chance))


def _mixed(x: Tensor) -> Tensor:
    """32 bits that look drawn, in int64 (C. Wellons, lowbias32)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _rounded(x: Tensor, chance: Tensor) -> Tensor:
    """float32 to bfloat16, away from zero as often as it is nearer to what lies there."""
    drawn = (chance & 0xFFFF).to(torch.int32) * x.isfinite()
    return ((x.view(torch.int32) + drawn) & -0x10000).view(torch.float32).to(torch.bfloat16)


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW over bfloat16 weights whose gradients are bfloat16. What a model keeps in float32 is not rounded.

    Args:
        weights: parameters, or groups of them, as torch's optimizers take them.
    """

    def __init__(
        self, weights: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(weights, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one."""
        assert closure is None
        all_weights = [(group, weight) for group in self.param_groups for weight in group["params"]]
        for place, (group, weight) in enumerate(all_weights):
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
            state["step"] += 1
            beta1, beta2 = group["betas"]
            bias = (1 - beta1 ** state["step"], 1 - beta2 ** state["step"])
            factors = Factors(group["lr"], group["weight_decay"], beta1, beta2, *bias, group["eps"])
            key = (place * 0x9E3779B1 ^ state["step"] * 0x85EBCA6B) & _WORD
            tensors = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
            _step_of(*tensors)(*tensors, key, factors)


def _step_of(*tensors: Tensor) -> Callable[..., None]:
    is_taken = all(x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.is_contiguous() for x in tensors)
    return (is_taken and compiled_step()) or plain_step


@cache
def compiled_step() -> Callable[..., None] | None:
    """`plain_step` in C, where this machine can."""
    return agreeing(Path(__file__).with_suffix(".c"), _made, _agrees)


def _made(functions: Any) -> Callable[..., None]:
    run = declared(functions.danlu_rounded_adamw, [*(4 * [POINTER]), LONG, INT, *(7 * [FLOAT]), INT])
    threads = torch.get_num_threads()

    def step(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, key: int, factors: Factors) -> None:
        pointers = (x.data_ptr() for x in (weight, grad, mean, square))
        run(*pointers, weight.numel(), key - (key >> 31 << 32), *factors, threads)

    return step


def _agrees(found: Callable[..., None]) -> bool:
    """Whether it moves numbers as `plain_step` does: but for what lies at the edge of a chance, to the bit."""
    generator = torch.Generator().manual_seed(0)
    weight, grad, mean = (torch.randn(4_000, generator=generator).bfloat16() for _ in range(3))
    own, plain = ([x.clone() for x in (weight, mean, mean.square())] for _ in range(2))
    factors = Factors(0.01, 0.1, 0.9, 0.999, 0.1, 0.001, 1e-8)
    for step, (w, m, v) in ((found, own), (plain_step, plain)):
        step(w, grad, m, v, 0xDEADBEEF, factors)
    same = math.prod(float((one == other).float().mean()) for one, other in zip(own, plain, strict=True))
    return same > 0.99 and all(torch.allclose(*pair, rtol=0.01, atol=1e-4) for pair in zip(own, plain, strict=True))
