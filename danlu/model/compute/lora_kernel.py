"""Linear layers with LoRA adapters, fast: one operation for all layers that read the same input.

A LoRA step of a small model spends its time less in products than around them: PEFT casts activations to the
adapter's float32, and draws a dropout mask for every layer. Here the adapter works in the dtype of the
activations, dropout draws only the places that it drops, and layers with one input (queries, keys, values;
gate and up) share the dropped input and the product with A. The plain form is the definition; tests compare.

A weight in 4 bits (four_bit.py) is taken out of them for each product, on the way forward and back, and kept by nobody.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.compute.packed import is_packed, whole

# Layers of one parent that transformers calls with the same input, in the order in which it calls them.
SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


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


def plain_lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropout: float
) -> Tensor:
    """x W^T + bias + scaling * dropout(x) A^T B^T (Hu et al. 2021, eq. 3).

    Shapes: x (..., in), weight (out, in), a (r, in), b (out, r). The adapter works in its own dtype.
    """
    dropped = plain_dropout(x, dropout) if dropout else x
    return F.linear(x, weight, bias) + (F.linear(F.linear(dropped.to(a.dtype), a), b) * scaling).to(x.dtype)


class _LoraLinears(torch.autograd.Function):
    """Several layers over one input; their weights and biases are frozen.

    Saved for the way back: the dropped input, what A makes of it, and the places dropped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: Sequence[float], dropout: float, *tensors: Tensor) -> Any:
        weights, biases, low, high = (tensors[at::4] for at in range(4))
        rows = x.reshape(-1, x.shape[-1])
        positions, kept = None, rows
        if dropout:
            positions = dropped_positions(rows.numel(), dropout, x.device)
            kept = _zero_at(rows.clone(), positions)
        scalings = [scaling / (1 - dropout) for scaling in scalings]
        a = torch.cat(low).to(x.dtype)  # (sum of r, in)
        inner = kept @ a.T  # (tokens, sum of r)
        outs = []
        for weight, bias, b, part, scaling in zip(weights, biases, high, _parts(inner, low), scalings, strict=True):
            out = F.linear(rows, whole(weight, x.dtype), bias)
            out.addmm_(part, b.to(x.dtype).T, alpha=scaling)
            outs.append(torch.ops.aten._unsafe_view(out, (*x.shape[:-1], out.shape[-1])))  # a caller may write into it
        ctx.save_for_backward(kept, inner, positions, *low, *high)
        ctx.weights = weights  # frozen; a packed one is more than its tensor
        ctx.scalings, ctx.shape = scalings, x.shape
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kept, inner, positions, *saved = ctx.saved_tensors
        low, high = saved[: len(grads)], saved[len(grads) :]
        rows = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grad_inner = torch.empty_like(inner)
        grad_high = []
        parts = zip(rows, high, _parts(inner, low), _parts(grad_inner, low), ctx.scalings, strict=True)
        for grad, b, part, grad_part, scaling in parts:
            torch.mul(grad @ b.to(grad.dtype), scaling, out=grad_part)
            grad_high.append(((grad.T @ part) * scaling).to(b.dtype))
        grad_low = (grad_inner.T @ kept).to(low[0].dtype).split([a.shape[0] for a in low])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_inner @ torch.cat(low).to(inner.dtype)
            if positions is not None:
                _zero_at(grad_x, positions)
            for grad, weight in zip(rows, ctx.weights, strict=True):
                grad_x.addmm_(grad, whole(weight, grad.dtype))
            grad_x = grad_x.view(ctx.shape)
        of_layers = [(None, None, a, b) for a, b in zip(grad_low, grad_high, strict=True)]
        return (grad_x, None, None, *(grad for layer in of_layers for grad in layer))


def _zero_at(x: Tensor, positions: Tensor) -> Tensor:
    x.view(-1).index_fill_(0, positions, 0)
    return x


def _parts(joined: Tensor, low: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The columns of each layer's rank."""
    return tuple(torch.split(joined, [a.shape[0] for a in low], dim=1))


def fast_lora_linears(
    x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None, Tensor, Tensor, float]], dropout: float
) -> tuple[Tensor, ...]:
    """`plain_lora_linear` of each (weight, bias, a, b, scaling), all dropping the same elements of x."""
    tensors = [tensor for weight, bias, a, b, _ in layers for tensor in (weight, bias, a, b)]
    scalings = [layer[4] for layer in layers]
    outs: tuple[Tensor, ...] = _LoraLinears.apply(x, scalings, dropout, *tensors)  # type: ignore[no-untyped-call]
    return outs


def fast_lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropout: float
) -> Tensor:
    """`plain_lora_linear` for a frozen weight and bias, with gradients for x, a and b."""
    return fast_lora_linears(x, [(weight, bias, a, b, scaling)], dropout)[0]


# -- PEFT's modules ----------------------------------------------------------------------------------------


def is_vanilla_lora(module: Any) -> bool:
    """Whether `module` is PEFT's plain LoRA over a frozen nn.Linear, packed or not, with one adapter."""
    layers = sys.modules.get("peft.tuners.lora.layer")  # not imported, it has made no module
    return (
        layers is not None
        and isinstance(module, layers.LoraLayer)
        and (is_packed(module.base_layer) or (type(module) is layers.Linear and type(module.base_layer) is nn.Linear))
        and not module.lora_variant
        and len(module.active_adapters) == 1
        and not module.base_layer.weight.requires_grad
        and not any(module.lora_bias.values())
    )


class SharedInput:
    """Modules that are called one after another with the same input: the first call computes them all."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = list(modules)
        self._own = [module.forward for module in modules]
        self._input: Tensor | None = None
        self._outs: tuple[Tensor, ...] = ()

    def take_over(self) -> None:
        """Put this in place of the modules' own forward."""
        for at, module in enumerate(self.modules):
            module.forward = partial(self.forward, at)

    def forward(self, at: int, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """What module `at` makes of `x`."""
        module = self.modules[at]
        if not is_at_work(module) or args or options:
            out: Tensor = self._own[at](x, *args, **options)
            return out
        if at > 0 and self._input is not x:
            return fast_lora_linears(x, [layer_of(module)], _dropout(module))[0]
        if at == 0:
            # A pass that is made again for its gradients is broken off in here: what is held must be set after.
            outs = fast_lora_linears(x, [layer_of(one) for one in self.modules], _dropout(module))
            self._input, self._outs = x, outs
        ready = self._outs[at]
        if at == len(self.modules) - 1:
            self._input, self._outs = None, ()  # hold nothing longer than needed
        return ready


def is_at_work(module: Any) -> bool:
    """Whether a LoRA layer answers otherwise than its base: of several adapters, one may leave this layer out."""
    return not module.disable_adapters and not module.merged and module.active_adapters[0] in module.lora_A


def layer_of(module: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float]:
    """(weight, bias, A, B, scaling) of PEFT's LoRA layer as it is now."""
    name = module.active_adapters[0]
    base, a, b = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    return base.weight, base.bias, a, b, module.scaling[name]


def _dropout(module: Any) -> float:
    dropout = module.lora_dropout[module.active_adapters[0]]
    return float(dropout.p) if module.training and isinstance(dropout, nn.Dropout) else 0.0


def sharing_groups(model: nn.Module) -> list[list[Any]]:
    """The LoRA layers of `model`, grouped by the input that they share; most stand alone."""
    groups: list[list[Any]] = []
    grouped: set[int] = set()
    for parent in model.modules():
        for names in SHARING:
            layers = [getattr(parent, name, None) for name in names]
            if all(map(is_vanilla_lora, layers)) and len({_dropout(layer) for layer in layers}) == 1:
                groups.append(layers)
                grouped |= set(map(id, layers))
    return groups + [[one] for one in model.modules() if is_vanilla_lora(one) and id(one) not in grouped]
