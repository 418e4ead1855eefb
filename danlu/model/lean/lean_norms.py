"""A model's RMS norms -> those of its lean pass: by kernels where there are some, else by torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.native import HeadNorm, Kernels
from danlu.model.lean.lean_parts import AddNorm, HeadNorms, Norm


@dataclass
class Norms:
    """Reads them.

    Attributes:
        may_change: the model's weights may; what is read then follows them.
    """

    kernels: Kernels | None
    may_change: bool

    def norm(self, module: Any) -> Norm:
        """As the module answers."""
        scale = self._scale(module)
        if self.kernels is not None and scale is not None:
            return partial(self.kernels.norm, weight=scale.float(), eps=_eps(module))
        return _plain_norm(module, scale)

    def add_norm(self, module: Any) -> AddNorm:
        """The same of a sum."""
        scale = self._scale(module)
        if self.kernels is not None and scale is not None:
            return partial(self.kernels.add_norm, weight=scale.float(), eps=_eps(module))
        norm = _plain_norm(module, scale)

        def add_norm(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
            total = x if y is None else x + y
            return total, norm(total)

        return add_norm

    def _scale(self, module: Any) -> Tensor | None:
        """The weight of an RMS norm, where it is one that answers as `_rms_norm` does; else None."""
        weight, eps = getattr(module, "weight", None), _eps(module)
        if weight is None:
            return None
        x = torch.linspace(-2, 3, 4 * len(weight), dtype=weight.dtype, device=weight.device).view(4, -1)
        # Gemma's weights are what is added to 1; that sum would not follow a weight that is trained.
        candidates = (weight,) if self.may_change else (weight, 1 + weight.float())
        with torch.no_grad():
            for scale in candidates:
                if _agree(_rms_norm(tuple(weight.shape), scale.to(weight.dtype), eps, x), module(x)):
                    found: Tensor = scale if self.may_change else scale.detach()
                    return found
        return None

    def of_heads(self, attention: Any, reads_own: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """Queries and keys -> both, normed. reads_own: keys are the layer's own."""
        modules = [attention.q_norm, attention.k_norm] if reads_own else [attention.q_norm]
        scales = [self._scale(module) for module in modules]
        found = [
            HeadNorm(scale.float(), _eps(module))
            for module, scale in zip(modules, scales, strict=True)
            if scale is not None
        ]
        if self.kernels is not None and len(found) == len(modules):
            return HeadNorms(self.kernels, found[0], found[1] if reads_own else None)
        of_q = _plain_norm(attention.q_norm, scales[0])
        if not reads_own:
            return lambda q, _: of_q(q)
        of_k = _plain_norm(attention.k_norm, scales[1])
        return lambda q, k: torch.cat([of_q(q), of_k(k)], 1)


def _agree(own: Tensor, wanted: Tensor) -> bool:
    """Whether answers are equal but for rounding."""
    tolerance = 5e-2 if wanted.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool((own - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1e-6))


def _plain_norm(module: Any, scale: Tensor | None) -> Norm:
    """The norm by torch; `scale` is what `Norms._scale` found."""
    if scale is None:
        return lambda x: module(x)
    return partial(_rms_norm, tuple(scale.shape), scale, _eps(module))


def _eps(module: Any) -> float:
    return float(getattr(module, "variance_epsilon", getattr(module, "eps", math.nan)))


def _rms_norm(shape: tuple[int, ...], weight: Tensor, eps: float, x: Tensor) -> Tensor:
    return F.rms_norm(x, shape, weight.to(x.dtype), eps)
