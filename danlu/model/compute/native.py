"""native.c on tensors: what stands between the products of a step. Its plain forms, which are the definition, too.

`kernels()` gives the functions, or None where nothing was compiled, or a result differs from torch's. All are for
contiguous bfloat16 on a CPU.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.blocks import float_functions
from danlu.model.compute.threads import threads
from danlu.native import FLOAT, INT, LONG, POINTER, agreeing, declared, place_of

SQUARES = 4096  # numbers whose squares are summed up by themselves
CHUNK = 64  # tokens whose part in a weight's gradient is summed up by itself

# -- plain forms -------------------------------------------------------------------------------------------


def plain_add_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + y, its RMS norm): x and y (tokens, dim), weight (dim,) float32."""
    total = x + y
    return total, F.rms_norm(total.float(), weight.shape, weight, eps).to(x.dtype)


def plain_swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate and up side by side: (tokens, 2 * dim) -> (tokens, dim)."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def plain_head_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (rows, vocabulary), targets (rows,) int64 -> losses (rows,) float32, and their gradient at the logits."""
    log_probabilities = torch.log_softmax(logits.float(), -1)
    losses = -log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    pull = log_probabilities.exp_()
    pull.scatter_add_(1, targets.unsqueeze(1), pull.new_full((len(targets), 1), -1.0))
    return losses, pull.to(logits.dtype)


def plain_length(x: Tensor) -> Tensor:
    """The root of the sum of squares, float32. Of bfloat16 on a CPU, torch makes a float32 copy for it."""
    found: Tensor = torch.linalg.vector_norm(x, dtype=torch.float32)
    return found


class HeadNorm(NamedTuple):
    """An RMS norm of heads: weight (dim,) float32."""

    weight: Tensor
    eps: float


def plain_norm_heads(q: Tensor, k: Tensor, of_q: HeadNorm, of_k: HeadNorm) -> Tensor:
    """q (tokens, heads, dim), k (tokens, kv_heads, dim) -> both normed, (tokens, heads + kv_heads, dim)."""
    pairs = ((q, of_q), (k, of_k))
    return torch.cat([F.rms_norm(x.float(), norm.weight.shape, *norm).to(x.dtype) for x, norm in pairs], 1)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads turned: x (tokens, heads, dim), cos and sin (tokens, 1, turned), the first half of sin negated.

    What stands behind the first `turned` numbers of a head stays.
    """
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([plain_rotate(x[..., :turned], cos, sin), x[..., turned:]], -1)
    return torch.addcmul(x * cos, x.roll(turned // 2, -1), sin)


def plain_rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same where neighbours turn together (GLM): cos and sin (tokens, 1, turned), one for each pair, twice over."""
    turned = cos.shape[-1]
    cos, sin = cos[..., : turned // 2], sin[..., : turned // 2]
    a, b = x[..., :turned].unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return out if turned == x.shape[-1] else torch.cat([out, x[..., turned:]], -1)


# -- the same, compiled --------------------------------------------------------------------------------------


class Kernels:
    """The functions of native.c, and one of floats.c, on tensors."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._add_norm = declared(functions.danlu_add_norm, 5 * [POINTER] + 2 * [LONG] + [FLOAT, INT])
        strides = [POINTER, LONG, LONG, POINTER, POINTER]
        self._norm_heads = declared(functions.danlu_norm_heads, strides + 4 * [LONG] + [FLOAT, INT])
        self._swiglu = float_functions().danlu_swiglu
        self._swiglu_back = declared(functions.danlu_swiglu_back, 5 * [POINTER] + [LONG, INT])
        self._norm_back = declared(functions.danlu_norm_back, 5 * [POINTER] + 3 * [LONG] + [FLOAT, INT])
        self._rotate = declared(functions.danlu_rotate, [POINTER, LONG] + 3 * [POINTER] + 4 * [LONG] + [INT, INT])
        self._largest = declared(functions.danlu_largest, [POINTER, LONG, LONG, POINTER, POINTER, INT])
        self._squares = declared(functions.danlu_squares, [POINTER, LONG, LONG, POINTER, INT], ctypes.c_double)
        self._head_loss = declared(functions.danlu_head_loss, 3 * [POINTER] + 2 * [LONG] + [INT], INT)
        named = {
            "add_norm": self._add_norm,
            "norm_heads": self._norm_heads,
            "rotate": self._rotate,
            "swiglu": self._swiglu,
        }
        self.places = {name: place_of(function) for name, function in named.items()}

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm of x (tokens, dim); weight (dim,) float32."""
        out = torch.empty_like(x)
        rows, dim = x.shape
        self._add_norm(x.data_ptr(), None, None, weight.data_ptr(), out.data_ptr(), rows, dim, eps, threads())
        return out

    def add_norm(self, x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`plain_add_norm`; without y, (x, its norm)."""
        if y is None:
            return x, self.norm(x, weight, eps)
        total, out = torch.empty_like(x), torch.empty_like(x)
        pointers = (x.data_ptr(), y.data_ptr(), total.data_ptr(), weight.data_ptr(), out.data_ptr())
        self._add_norm(*pointers, *x.shape, eps, threads())
        return total, out

    def norm_heads(self, q: Tensor, k: Tensor, of_q: HeadNorm, of_k: HeadNorm | None) -> Tensor:
        """`plain_norm_heads`; without of_k, of queries alone. The numbers of a head lie together."""
        parts = [(q, of_q)] if of_k is None else [(q, of_q), (k, of_k)]
        out, at = q.new_empty(len(q), sum(x.shape[1] for x, _ in parts), q.shape[2]), 0
        for x, norm in parts:
            lying, to = (x.data_ptr(), x.stride(0), x.stride(1)), out[:, at:].data_ptr()
            self._norm_heads(*lying, norm.weight.data_ptr(), to, out.stride(0), *x.shape, norm.eps, threads())
            at += x.shape[1]
        return out

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """`plain_swiglu`."""
        return self.gated(*gate_up.chunk(2, -1))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up of (tokens, dim) each, bfloat16 or float32; the numbers of a token lie together, tokens alike
        apart. It is what a product of blocks.py makes that is `gated`, bit for bit."""
        rows, dim = gate.shape
        out = gate.new_empty(rows, dim)
        pointers, is_wide = (gate.data_ptr(), up.data_ptr()), gate.dtype == torch.float32
        self._swiglu(*pointers, gate.stride(0), out.data_ptr(), rows, dim, is_wide, threads())
        return out

    def gated_back(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gate and up from that of `gated`; all contiguous."""
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        pointers = (x.data_ptr() for x in (grad, gate, up, of_gate, of_up))
        self._swiglu_back(*pointers, gate.numel(), threads())
        return of_gate, of_up

    def norm_back(
        self, grad: Tensor, x: Tensor, weight: Tensor, eps: float, *, of_weight: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of x (tokens, dim) and, where it is asked for, of weight, both float32, from that of `norm`."""
        rows, dim = x.shape
        of_x = torch.empty_like(x)
        chunks = torch.empty(-(-rows // CHUNK), dim) if of_weight else None
        pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), of_x.data_ptr())
        at = None if chunks is None else chunks.data_ptr()
        self._norm_back(*pointers, at, rows, CHUNK, dim, eps, threads())
        return of_x, None if chunks is None else chunks.sum(0)

    def head_loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`plain_head_loss`; the gradient is written over the logits."""
        losses = torch.empty(len(logits), dtype=torch.float32)
        pointers = (logits.data_ptr(), targets.data_ptr(), losses.data_ptr())
        if self._head_loss(*pointers, *logits.shape, threads()):
            raise MemoryError("no memory for the logits of one token")
        return losses, logits

    def length(self, x: Tensor) -> Tensor:
        """`plain_length`."""
        room = torch.empty(-(-x.numel() // SQUARES), dtype=torch.float64)
        squares = self._squares(x.data_ptr(), x.numel(), SQUARES, room.data_ptr(), threads())
        return torch.tensor(math.sqrt(squares))

    def largest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (rows, dim) -> the largest number of each row, float32 (rows,), and its place, int64 (rows,)."""
        values, places = torch.empty(len(x)), torch.empty(len(x), dtype=torch.int64)
        self._largest(x.data_ptr(), *x.shape, places.data_ptr(), values.data_ptr(), threads())
        return values, places

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, *, in_steps: bool = False) -> Tensor:
        """`plain_rotate`; heads of a token lie together, tokens may lie apart.

        Args:
            in_steps: whether each product is rounded as well.
        """
        out, cos, sin = x.new_empty(x.shape), cos.contiguous(), sin.contiguous()
        pointers = (cos.data_ptr(), sin.data_ptr(), out.data_ptr())
        self._rotate(x.data_ptr(), x.stride(0), *pointers, *x.shape, cos.shape[-1], in_steps, threads())
        return out


@cache
def kernels() -> Kernels | None:
    """The compiled kernels; None where there are none, or where they differ from the plain forms."""
    if float_functions() is None:
        return None
    return agreeing(Path(__file__).with_name("native.c"), Kernels, _agree)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The compiled kernels, where they take tensors like these."""
    if any(x.device.type != "cpu" or x.dtype != torch.bfloat16 or not x.is_contiguous() for x in tensors):
        return None
    return kernels()


def length(x: Tensor) -> Tensor:
    """`plain_length` of any tensor, compiled where that is possible."""
    found = kernels_for(x)
    return plain_length(x) if found is None else found.length(x)


@torch.inference_mode(False)
def _agree(found: Kernels) -> bool:
    """Whether the compiled forms answer as the plain ones do, on random input; gradients too, whoever asks first."""
    generator = torch.Generator().manual_seed(0)
    x, y, gate_up = (torch.randn(3, width, generator=generator).bfloat16() for width in (64, 64, 128))
    weight, cos, sin = (torch.randn(shape, generator=generator) for shape in ((64,), (3, 1, 16), (3, 1, 16)))
    heads, cos, sin = x.view(3, 4, 16), cos.bfloat16(), sin.bfloat16()
    some = cos[..., :8].contiguous(), sin[..., :8].contiguous()
    norms = HeadNorm(weight[:16], 1e-5), HeadNorm(weight[16:32], 1e-6)
    targets = torch.tensor([0, 63, 5])
    pairs = [
        (found.length(x), plain_length(x)),
        *zip(found.head_loss(x.clone(), targets), plain_head_loss(x, targets), strict=True),
        (found.rotate(heads, *some), plain_rotate(heads, *some)),
        (found.norm_heads(heads, heads[:, :2], *norms), plain_norm_heads(heads, heads[:, :2], *norms)),
        *zip(found.add_norm(x, y, weight, 1e-5), plain_add_norm(x, y, weight, 1e-5), strict=True),
        (found.swiglu(gate_up), plain_swiglu(gate_up)),
        (found.rotate(heads, cos, sin), plain_rotate(heads, cos, sin)),
        *zip(found.largest(x), x.max(1), strict=True),
        *_gradients(found, x, y, gate_up, weight),
    ]
    return all(torch.allclose(own.float(), wanted.float(), rtol=2e-2, atol=2e-2) for own, wanted in pairs)


def _gradients(
    found: Kernels, x: Tensor, grad: Tensor, gate_up: Tensor, weight: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Those of the compiled forms, each with torch's own in float32."""
    with torch.enable_grad():
        given, factor, both = (value.float().requires_grad_() for value in (x, weight, gate_up))
        normed = torch.autograd.grad(F.rms_norm(given, factor.shape, factor, 1e-5), (given, factor), grad.float())
        gated = torch.autograd.grad(plain_swiglu(both), both, grad.float())[0]
    own = found.norm_back(grad, x, weight, 1e-5, of_weight=True)
    gate, up = (part.contiguous() for part in gate_up.chunk(2, -1))
    for one, other in zip((*own, torch.cat(found.gated_back(grad, gate, up), -1)), (*normed, gated), strict=True):
        assert one is not None
        yield one, other
