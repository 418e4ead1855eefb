"""Faster forms of hot operations, each beside its plain reference.

What is slow in an eager training step of a small model is not the matrix products but what stands
between them: drawing dropout masks, casting, normalising, attention's backward. Each operation here has
a plain form (`plain_*`, the definition) and a fast form with the same signature; tests compare them.
`use_fast_kernels` swaps the fast forms into a model, module by module, after a numeric check of each, and
says which it took; a module that differs keeps its own code.

Attention has a file of its own (attention.py). Knows no stage and no data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Rows of logits held at once by the loss: 256 x 49,152 float32 is 50 MB.
LOSS_CHUNK = 256


def apply(operation: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`operation.apply`, typed."""
    out: Tensor = operation.apply(*arguments)
    return out


# -- dropout -------------------------------------------------------------------------------------------


def plain_dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability `p`, scale the rest by 1 / (1 - p)."""
    return F.dropout(x, p, training=True)


def dropped_positions(elements: int, p: float, device: torch.device) -> Tensor:
    """Indices (drawn with replacement) to zero so that each of `elements` is dropped with probability `p`.

    k draws miss an element with probability (1 - 1/n)^k; k solves (1 - 1/n)^k = 1 - p. For p = 0.05 that
    is one random number for twenty elements, where a mask needs twenty: on a CPU, drawing masks was the
    largest single cost of a LoRA step. The number of zeros varies less than a binomial's; each
    element's probability is exact up to rounding of k.
    """
    if elements <= 1:
        return (torch.rand(elements, device=device) < p).nonzero().squeeze(1)
    draws = round(math.log1p(-p) / math.log1p(-1 / elements))
    return torch.randint(elements, (draws,), device=device)


def _zero_at(x: Tensor, positions: Tensor) -> Tensor:
    x.view(-1).index_fill_(0, positions, 0)
    return x


# -- LoRA ----------------------------------------------------------------------------------------------


def plain_lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropout: float
) -> Tensor:
    """x W^T + bias + scaling * dropout(x) A^T B^T (Hu et al. 2021, eq. 3).

    Shapes: x (..., in), weight (out, in), a (r, in), b (out, r). The adapter works in its own dtype.
    """
    dropped = plain_dropout(x, dropout) if dropout else x
    return F.linear(x, weight, bias) + (F.linear(F.linear(dropped.to(a.dtype), a), b) * scaling).to(x.dtype)


class _LoraLinear(torch.autograd.Function):
    """The same in the dtype of x: no float32 copies of activations, no mask, nothing saved but x and A x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = F.linear(rows, weight, bias)
        positions = dropped_positions(rows.numel(), dropout, x.device) if dropout else None
        kept = rows if positions is None else _zero_at(rows.clone(), positions)
        scaling = scaling / (1 - dropout)
        inner = kept @ a.to(x.dtype).T  # (rows, r)
        out.addmm_(inner, b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, inner, positions)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight, a, b, inner, positions = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_inner = (grad @ b.to(grad.dtype)) * ctx.scaling
        grad_b = (grad.T @ inner) * ctx.scaling
        kept = rows if positions is None else _zero_at(rows.clone(), positions)
        grad_a = grad_inner.T @ kept
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_inner @ a.to(grad.dtype)
            if positions is not None:
                _zero_at(grad_x, positions)
            grad_x = grad_x.addmm_(grad, weight).view(ctx.shape)
        return grad_x, None, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


def fast_lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropout: float
) -> Tensor:
    """`plain_lora_linear` for a frozen weight and bias, with gradients for x, a and b."""
    return apply(_LoraLinear, x, weight, bias, a, b, scaling, dropout)


# -- norm and activation ---------------------------------------------------------------------------------


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang & Sennrich 2019, eq. 4)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    """One pass for the norm, two for the product; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse.to(x.dtype)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # With y = x * i, i = (mean(x^2) + eps)^-1/2:  dx = i * g - x * i^3 * sum(g * x) / n
        x, weight, inverse = ctx.saved_tensors
        scaled = grad * weight
        dot = (scaled * x).sum(-1, keepdim=True, dtype=torch.float32)
        pull = (dot * inverse**3 / x.shape[-1]).to(x.dtype)
        return scaled.mul_(inverse.to(x.dtype)).addcmul_(x, pull, value=-1), None, None


def fast_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`plain_rms_norm` for a frozen weight."""
    return apply(_RmsNorm, x, weight, eps)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020)."""
    return F.silu(gate) * up


class _Swiglu(torch.autograd.Function):
    """Keeps only its inputs; silu is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def fast_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`plain_swiglu`."""
    return apply(_Swiglu, gate, up)


# -- loss at the head ----------------------------------------------------------------------------------


def plain_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target, float32: hidden (n, dim), weight (vocabulary, dim) -> (n,)."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


class _HeadLoss(torch.autograd.Function):
    """Logits exist for one chunk at a time; the gradient of the hidden states is made on the way forward.

    The gradient flows as a row factor, so the caller may weight rows. The head is frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), LOSS_CHUNK):
            rows = slice(start, start + LOSS_CHUNK)
            target = targets[rows].unsqueeze(1)
            log_probabilities = torch.log_softmax((hidden[rows] @ weight.T).float(), -1)
            losses[rows] = -log_probabilities.gather(1, target).squeeze(1)
            if grad is not None:
                probabilities = log_probabilities.exp_()
                probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
                grad[rows] = probabilities.to(hidden.dtype) @ weight
        if grad is not None:
            ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * grad_losses.unsqueeze(1).to(grad.dtype), None, None


def fast_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`plain_head_loss` for a frozen head, in chunks of rows."""
    return apply(_HeadLoss, hidden, weight, targets)


# -- swapping them in ----------------------------------------------------------------------------------


def use_fast_kernels(model: nn.Module) -> dict[str, int]:
    """Swap fast forms into `model` where they apply; returns how many modules of each kind took one."""
    taken: Counter[str] = Counter()
    for kind, applies, forward in _SWAPS:
        for module in model.modules():
            if applies(module) and _agrees(kind, module, forward):
                module.forward = MethodType(forward, module)
                taken[kind] += 1
    return dict(taken)


def _is_vanilla_lora(module: Any) -> bool:
    from peft.tuners.lora.layer import Linear

    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and not module.lora_variant
        and len(module.active_adapters) == 1
        and not module.base_layer.weight.requires_grad
        and not any(module.lora_bias.values())
    )


def _lora_forward(module: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    if module.disable_adapters or module.merged or args or options:
        out: Tensor = type(module).forward(module, x, *args, **options)
        return out
    name = module.active_adapters[0]
    dropout = module.lora_dropout[name]
    return fast_lora_linear(
        x,
        module.base_layer.weight,
        module.base_layer.bias,
        module.lora_A[name].weight,
        module.lora_B[name].weight,
        module.scaling[name],
        dropout.p if module.training and isinstance(dropout, nn.Dropout) else 0.0,
    )


def _is_rms_norm(module: Any) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(getattr(module, "variance_epsilon", None), float)
        and isinstance(getattr(module, "weight", None), Tensor)
        and not module.weight.requires_grad
    )


def _rms_norm_forward(module: Any, x: Tensor) -> Tensor:
    return fast_rms_norm(x, module.weight, module.variance_epsilon)


def _is_swiglu(module: Any) -> bool:
    return all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))


def _swiglu_forward(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(fast_swiglu(module.gate_proj(x), module.up_proj(x)))
    return out


def _agrees(kind: str, module: Any, forward: Callable[..., Tensor]) -> bool:
    """Whether the fast form of this module answers as its own code does, on random input, without dropout."""
    weight = module.gate_proj.weight if kind == "swiglu" else module.weight
    x = torch.randn(2, 5, weight.shape[-1], generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, weight.dtype)
    was_training = module.training
    module.eval()
    with torch.no_grad():
        own, fast = module(x), forward(module, x)
    module.train(was_training)
    tolerance = 2e-2 if weight.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return bool((own - fast).abs().max() <= tolerance * own.abs().max().clamp_min(1e-6))


_SWAPS: Sequence[tuple[str, Callable[[Any], bool], Callable[..., Tensor]]] = (
    ("lora", _is_vanilla_lora, _lora_forward),
    ("norm", _is_rms_norm, _rms_norm_forward),
    ("swiglu", _is_swiglu, _swiglu_forward),
)
