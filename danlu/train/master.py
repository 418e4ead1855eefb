"""Trained weights in float32, whatever the model computes in.

A step of AdamW changes a weight by about the rate; bfloat16 has 8 bits of mantissa, so that a change below 1/256 of the
weight is lost in it. The optimizer therefore holds each half-precision weight in float32 (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1) and the model a rounded copy of it. Gradients are summed in float32 as well: cutting a
step into micro-batches then changes nothing but its memory.

Most models are published in bfloat16: their weights lie in the middle of what rounds to them, and the nearest copy
would not move before a weight had moved by half a unit, for many steps at the rates of tuning. The copy is therefore
rounded up or down by chance, so that in the mean it is the weight (Gupta et al. 2015, arXiv:1502.02551; for bfloat16
Zamirai et al. 2020, arXiv:2010.06192). What training leaves is the last copy: the nearest one would have unlearnt most.

Of weights that are spread over several processes (sharding.py) each has its part here, as a plain tensor.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from danlu.train.sharding import own_part, part_of, whole_of

CHANCES = 1 << 16  # drawn a step, and dealt to so many weights at a time
# Weights that are rounded at once: on a CPU they stay in the cache; a GPU begins each piece of work by itself.
_AT_ONCE = {"cpu": CHANCES, "cuda": CHANCES << 8}


class Master:
    """The trained weights of `model` as its optimizer has them.

    Args:
        seed: of how copies are rounded; with the number of a step, the same copy each time.
        copies: whether weights in half precision have a float32 copy; without, the optimizer changes the model's own.

    Attributes:
        weights: name -> float32, the model's own parameter where that is float32 or has no copy. Gradients arrive here.
        spread: name -> the model's parameter, of those whose weights are parts.
    """

    def __init__(self, model: nn.Module, seed: int = 0, *, copies: bool = True) -> None:
        self._seed = seed
        self.weights: dict[str, nn.Parameter] = {}
        self.spread: dict[str, nn.Parameter] = {}
        self._rounded: list[tuple[Tensor, nn.Parameter]] = []
        self._hooks: list[Any] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            self.weights[name] = parameter
            if (part := own_part(parameter)) is not parameter:
                self._take_part(name, parameter, part.detach())
            elif copies and parameter.dtype in (torch.bfloat16, torch.float16):
                self.weights[name] = master = nn.Parameter(parameter.detach().float())
                self._rounded.append((parameter, master))
                self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(_hand_on, master)))

    def _take_part(self, name: str, parameter: nn.Parameter, part: Tensor) -> None:
        self.spread[name] = parameter
        self.weights[name] = master = nn.Parameter(part.float())
        if part.dtype != torch.float32:
            self._rounded.append((part, master))

    def collect(self) -> None:
        """Take the gradients of parts, once they are summed over the processes."""
        for name, parameter in self.spread.items():
            grad, parameter.grad = parameter.grad, None
            if grad is not None:
                _add(self.weights[name], own_part(grad))

    def whole(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names of weights, each laid out as its weight; those of parts put together, by all."""
        return {
            name: whole_of(value, self.spread[name]) if name in self.spread else value for name, value in values.items()
        }

    def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The way back from `whole`."""
        return {
            name: part_of(value, self.spread[name]) if name in self.spread else value for name, value in values.items()
        }

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Take these values, as a checkpoint has them after so many steps."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        if step:
            self.publish(step)
        else:  # they are the model's as it came, and nothing is rounded
            for parameter, master in self._rounded:
                parameter.copy_(master)

    @torch.no_grad()
    def publish(self, step: int) -> None:
        """Give the model what the optimizer has made of its weights in so many steps."""
        dice = random.Random(f"{self._seed} {step}")
        drawn = _chances(dice.getrandbits(63)) if self._rounded else None
        dealt: dict[torch.device, Tensor] = {}
        for parameter, master in self._rounded:
            if drawn is None or parameter.dtype != torch.bfloat16 or not parameter.is_contiguous():
                parameter.copy_(master)
                continue
            if master.device not in dealt:
                dealt[master.device] = drawn.to(master.device).unfold(0, CHANCES, 1)
            at_once = _AT_ONCE[master.device.type]
            parts = (x.view(-1).split(at_once) for x in (parameter, master))
            for copy, exact in zip(*parts, strict=True):
                starts = [dice.randrange(CHANCES) for _ in range(0, len(exact), CHANCES)]
                chances = dealt[master.device][starts if len(starts) > 1 else starts[0]]
                _round_by_chance(copy, exact, chances.reshape(-1)[: len(exact)])


def _chances(seed: int) -> Tensor:
    """(2 * CHANCES,) int32 from 0 to 65,535, the second half as the first: one may begin anywhere."""
    drawn = torch.randint(1 << 16, (CHANCES,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    return drawn.repeat(2)


def _round_by_chance(copy: Tensor, exact: Tensor, chances: Tensor) -> None:
    """Round float32 to bfloat16 away from zero as often as it is nearer to what lies there.

    bfloat16 is float32 without its last 16 bits: adding so many at random carries with just that probability.
    """
    bits = exact.view(torch.int32) + chances
    copy.view(torch.int16).copy_(bits.bitwise_right_shift_(16))


def _hand_on(master: nn.Parameter, parameter: Tensor) -> None:
    """The gradient of a micro-batch goes to the float32 weight; the model's own is freed at once."""
    grad, parameter.grad = parameter.grad, None
    if grad is not None:
        _add(master, grad)


def _add(master: nn.Parameter, grad: Tensor) -> None:
    if master.grad is None:
        master.grad = grad.float()
    else:
        master.grad.add_(grad)
