"""Queries and keys turned by their places, in one pass each way, where a model's own code takes five and ten.

A model's attention calls `apply_rotary_pos_emb` of its module. The attention modules of one model are given a forward
that finds another function under that name: no other model's code is touched. Each product is rounded, as theirs are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from danlu.model.compute import native
from danlu.model.compute.packed import number_format

_NAME = "apply_rotary_pos_emb"
_Turned = tuple[Tensor, Tensor]


class _Rotate(torch.autograd.Function):
    """x (batch, heads, tokens, dim); cos and sin (batch or 1, tokens, turned), the first half of sin negated."""

    @staticmethod
    def forward(ctx: Any, found: native.Kernels, x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
        ctx.found = found
        ctx.save_for_backward(cos, signed)
        return _turned(found, x, cos, signed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        cos, signed = ctx.saved_tensors
        back = signed.roll(signed.shape[-1] // 2, -1)
        return None, _turned(ctx.found, grad, cos, back), None, None


def _turned(found: native.Kernels, x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
    batch, heads, tokens, dim = x.shape
    rows = x.transpose(1, 2).contiguous().view(-1, heads, dim)
    angles = (one.expand(batch, -1, -1).reshape(batch * tokens, 1, -1) for one in (cos, signed))
    return found.rotate(rows, *angles, in_steps=True).view(batch, tokens, heads, dim).transpose(1, 2)


def fast_rotary(own: Callable[..., _Turned], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **more: Any) -> _Turned:
    """What `own` answers: (queries, keys) of (batch, heads, tokens, dim). What it is not made for goes to `own`."""
    all_short = all(x.device.type == "cpu" and x.dtype == torch.bfloat16 for x in (q, k, cos, sin))
    if more or not all_short or not (q.ndim == k.ndim == 4) or cos.ndim != 3 or cos.shape[-1] > q.shape[-1]:
        return own(q, k, cos, sin, **more)
    found = native.kernels()
    if found is None:
        return own(q, k, cos, sin)
    half = sin.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    rotate: Callable[..., Tensor] = _Rotate.apply
    return rotate(found, q, cos, signed), rotate(found, k, cos, signed)


def use_fast_rotary(module: nn.Module) -> bool:
    """Whether the attention module now turns its heads in one pass; it is left alone where that answers otherwise."""
    forward, dim = getattr(type(module), "forward", None), getattr(module, "head_dim", None)
    weight = getattr(getattr(module, "q_proj", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type != "cpu" or number_format(weight) != torch.bfloat16:
        return False
    if not isinstance(forward, FunctionType) or not isinstance(dim, int) or "forward" in vars(module):
        return False
    own = forward.__globals__.get(_NAME) if _NAME in forward.__code__.co_names else None
    if own is None or native.kernels() is None or not _agrees(own, dim):
        return False
    seen = {**forward.__globals__, _NAME: partial(fast_rotary, own)}
    other = FunctionType(forward.__code__, seen, forward.__name__, forward.__defaults__, forward.__closure__)
    other.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(other, module)
    return True


@cache
@torch.inference_mode(False)
def _agrees(own: Callable[..., _Turned], dim: int) -> bool:
    """On random heads, to the bit, gradients as well: models tell documents laid end to end by their last bits."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 5, count, dim, generator=generator).bfloat16().transpose(1, 2) for count in (3, 1)]
    angles = torch.randn(1, 5, dim // 2, generator=generator).repeat(1, 1, 2)
    answers = []
    try:
        for function in (own, partial(fast_rotary, own)):
            given = [x.detach().requires_grad_() for x in heads]
            with torch.enable_grad():
                made = function(*given, angles.cos().bfloat16(), angles.sin().bfloat16())
                answers.append([*made, *torch.autograd.grad(made, given, [x.detach() for x in heads])])
    except (TypeError, ValueError, RuntimeError):
        return False  # it takes something else
    return all(map(torch.equal, *answers))
